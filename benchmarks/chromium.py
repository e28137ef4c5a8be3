"""The machine's Chromium, as the tests and the benchmark of the face editor start it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",  # required for root, the user in containers
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
MILLISECONDS = 60_000  # for each step, on a busy machine


@contextmanager
def started_browser() -> Iterator["Browser"]:
    """A browser without a window, for as long as the context lasts."""
    from playwright.sync_api import sync_playwright  # takes half a second

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS, timeout=MILLISECONDS)
        yield browser
        browser.close()
