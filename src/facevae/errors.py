"""Errors that are the user's to mend, and how a command reports them: one message, no traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something in the input is wrong; the message names it and says what to do."""


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turn a `UserError` into its message on standard error and exit status 1."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
