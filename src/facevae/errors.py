"""How stages and commands end when something goes wrong: user errors become one-line messages."""

import errno
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

FREE_SPACE = "free some space there, or raise the quota or size limit, then run this again"
GIVE_ACCESS = "give this user permission to read and write there, then run this again"
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), FREE_SPACE),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), GIVE_ACCESS),
}
OUT_OF_MEMORY = "out of memory|allocate memory|bad_alloc|ALLOC_FAILED"  # as torch, CUDA and the system word it


class UserError(Exception):
    """The input is wrong. The message names it and says what to do."""


@contextmanager
def reported_errors(memory_remedy: str = "close other programs") -> Iterator[None]:
    """Turn an exception into a message on standard error and an exit status.

    A `UserError`, a file that cannot be read or written, and a lack of memory each end in one message and status 1.
    An interrupt ends in one line and status 130. Anything else is a bug: it keeps its traceback and ends in status 1.

    Parameters
    ----------
    memory_remedy
        What to do when memory runs out, such as which parameters to lower.
    """
    try:
        yield
    except UserError as error:
        _end(f"error: {error}")
    except KeyboardInterrupt:
        _end("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        if _is_out_of_memory(error):
            _end(f"error: memory ran out ({_first_line(error)}): {memory_remedy}")
        if isinstance(error, OSError) and (error.filename or error.errno in REMEDIES):
            _end(f"error: {_explain(error)}")
        traceback.print_exc()
        _end("error: this is a bug in facevae, not an error in your input: please report it with the lines above")


def _end(message: str, status: int = 1) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(status)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy, torch or the system failed to allocate memory."""
    if isinstance(error, RuntimeError | OSError):
        return re.search(OUT_OF_MEMORY, str(error)) is not None
    return isinstance(error, MemoryError)


def _explain(error: OSError) -> str:
    """The file, the system's message, and what to do if that is known."""
    parts = [error.filename, error.strerror, REMEDIES.get(error.errno or 0)]
    return ": ".join(str(part) for part in parts if part)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
