"""The way to the runs in MLflow's pages, whose first page is about something else."""

import os
import sys
import time
import webbrowser
from contextlib import suppress
from urllib.parse import quote, urlencode
from urllib.request import urlopen

from facevae.errors import UserError
from facevae.tracking import runs, store

LOCAL = "http://127.0.0.1:5000"  # where `make ui` serves
SECONDS = 120  # to wait for the server


def address_of_runs(server: str, experiment: str, condition: str = "") -> str:
    """The page of a server with the runs of an experiment that meet a condition, written in MLflow's language."""
    with store.session() as client:
        experiment_id = runs.find_or_create_experiment(client, experiment)
    query = {"workflowType": "machine_learning"} | ({"searchFilter": condition} if condition else {})
    return f"{server}/#/experiments/{experiment_id}/runs?{urlencode(query, quote_via=quote)}"


def server_address() -> str:
    """The MLflow server that the project logs to, or that of `make ui` if it logs to a database."""
    uri = store.tracking_uri().rstrip("/")
    return store.without_credentials(uri) if uri.startswith("http") else LOCAL


def wait_for(server: str) -> None:
    """Wait until a server answers, or raise a `UserError`."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError), urlopen(f"{server}/health", timeout=5):
            return
        time.sleep(0.5)
    raise UserError(f"{server} does not answer: start it with `make ui`")


def show(address: str) -> None:
    """Open an address, if this session has a browser with windows."""
    if sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        with suppress(webbrowser.Error):
            webbrowser.open(address)
