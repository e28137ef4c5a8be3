"""What is kept out of MLflow and out of every message: the credentials that addresses and the environment hold."""

import os
import re

VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

SHORTEST = 4  # characters of what is taken for a secret: less would blot out every message


def without_credentials(text: str) -> str:
    """A text whose addresses have no user, password and query, and that has nothing of MLflow's credentials."""
    text = re.sub(r"(?<=://)\S*@", "", text)  # up to the last @, since a password may have one too
    text = re.sub(r"(://[^\s?]*)\?\S*", r"\1", text)
    for secret in _secrets():
        text = text.replace(secret, "***")
    return text


def _secrets() -> list[str]:
    """Those of the environment, the longest first, and their pieces, since libraries cut addresses where they like."""
    store = os.environ.get("MLFLOW_TRACKING_URI", "")
    owner, _, query = re.sub(r"^[^:]*://", "", store).partition("?")
    user, _, password = owner.rpartition("@")[0].partition(":")
    values = [query, user, password, *re.split("[/@:#]", password)]
    values += [os.environ.get(name, "").strip() for name in VARIABLES]
    return sorted((value for value in values if len(value) >= SHORTEST), key=len, reverse=True)
