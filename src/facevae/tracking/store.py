"""The MLflow store: its address, a client for it, and keeping credentials out of what is logged."""

import logging
import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from filelock import FileLock

from facevae.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCK_SECONDS = 60
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # here the client decides where artifacts go
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
SHORTEST_SECRET = 4  # characters; hiding shorter ones would blot out every message
LONGEST_REASON = 500  # characters of an error that is passed on; a server's answer may be a whole page
REFUSALS = {"INVALID_PARAMETER_VALUE", "INVALID_STATE", "PERMISSION_DENIED", "RESOURCE_ALREADY_EXISTS"}


class RefusedError(UserError):
    """The store works but refuses what one state asks for. Other states may be logged."""


def project_root() -> Path:
    """The root of DVC's repository, even when DVC works in a temporary copy."""
    here = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def own_folder() -> Path:
    """`.facevae` in the project's root, for locks."""
    folder = project_root() / ".facevae"
    folder.mkdir(exist_ok=True)
    return folder


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or mlflow.db in the project's root; relative SQLite paths start from that root."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, separator, path = uri.partition(":///")
    if separator and scheme.startswith("sqlite") and not path.startswith("/"):
        return f"{scheme}:///{quote(os.fsencode(project_root()))}/{path}"
    return uri


@contextmanager
def session() -> Iterator["MlflowClient"]:
    """A client of the store, for one process of this project at a time: creating the store or a run is a race.

    Every failure becomes a `UserError`: a store that is down, damaged or of another version. If the store works but
    refuses a value, that is a `RefusedError`.
    """
    try:
        with FileLock(own_folder() / "mlflow.lock", timeout=LOCK_SECONDS):
            yield connect()
    except UserError:
        raise
    except Exception as error:  # drivers, databases and servers raise errors of their own
        if is_refusal(error):
            raise RefusedError(f"{store_name()} refuses it: {reason_of(error)}") from error
        raise UserError(f"{store_name()} failed: {reason_of(error)}") from error


def is_refusal(error: Exception) -> bool:
    """Whether an error of MLflow is about a value that it was given, so that the store itself works."""
    return getattr(error, "error_code", None) in REFUSALS or isinstance(error, UnicodeError)


def reason_of(error: Exception) -> str:
    """The first sentences of an error in one line, without credentials.

    A sentence is left out if it would exceed `LONGEST_REASON`. A first sentence that does so alone ends in "...".
    """
    text = re.split(r"\n\s*(?:\n|\[SQL|\(Background)", str(error).strip())[0]  # what follows may go on for pages
    first, *others = re.split(r"(?<=[.!?])\s+", without_credentials(" ".join(text.split())) or type(error).__name__)
    reason = textwrap.shorten(first, LONGEST_REASON, placeholder=" ...")
    for sentence in others:
        if len(reason) + 1 + len(sentence) > LONGEST_REASON:
            break
        reason += f" {sentence}"
    return reason


def connect() -> "MlflowClient":
    """A client of the store that fails within seconds if the store does not answer."""
    _probe(tracking_uri())
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    for name in ("urllib3.connectionpool", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # we report their failures ourselves, once
    mlflow.set_tracking_uri(tracking_uri())
    with chdir(project_root()):  # a new store remembers the working directory, which may be DVC's temporary copy
        return mlflow.MlflowClient()


@cache
def _probe(uri: str) -> None:
    """Fail at once if a database is out of reach: MLflow would retry for minutes."""
    if uri.startswith(DATABASES):
        import sqlalchemy

        os.environ.setdefault("PGCONNECT_TIMEOUT", "10")  # seconds
        engine = sqlalchemy.create_engine(uri)
        engine.connect().close()
        engine.dispose()


def store_name() -> str:
    """The store's address without credentials, for messages."""
    return f"MLflow at {without_credentials(tracking_uri())}"


def without_credentials(text: str) -> str:
    """A text without user, password and query in its addresses, and without MLflow's credentials."""
    text = re.sub(r"(?<=://)\S*@", "", text)  # up to the last @, since a password may have one too
    text = re.sub(r"(://[^\s?]*)\?\S*", r"\1", text)
    for secret in _secrets():
        text = text.replace(secret, "***")
    return text


def _secrets() -> list[str]:
    """MLflow's credentials in the environment, longest first, and their parts, since libraries cut addresses freely."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    owner, _, query = re.sub(r"^[^:]*://", "", address).partition("?")
    user, _, password = owner.rpartition("@")[0].partition(":")
    values = [query, user, password, *re.split("[/@:#]", password)]
    values += [os.environ.get(name, "").strip() for name in CREDENTIALS]
    return sorted((value for value in values if len(value) >= SHORTEST_SECRET), key=len, reverse=True)
