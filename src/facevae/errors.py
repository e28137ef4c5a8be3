"""How a stage or a command ends where something goes wrong: what is the user's to mend is told in one message."""

import errno
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

FREE_SPACE = "free space there, or raise the quota or limit, and run this again"
GIVE_ACCESS = "see that this user may read and write there, and run this again"
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), FREE_SPACE),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), GIVE_ACCESS),
}
OUT_OF_MEMORY = "out of memory|allocate memory|bad_alloc|ALLOC_FAILED"  # in the words of torch, CUDA and the system


class UserError(Exception):
    """Something in the input is wrong; the message names it and says what to do."""


@contextmanager
def reported_errors(memory_remedy: str = "close other programs") -> Iterator[None]:
    """End the process with exit status 1 and what is to be done as the last line on standard error.

    That is one message alone for a `UserError`, for a file that cannot be read or written, and where memory runs out.
    Anything else is a defect, which keeps its traceback. An interrupt ends in one line and exit status 130.

    Parameters
    ----------
    memory_remedy
        What helps where memory runs out: which parameters are to be lowered.
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
        _end("error: this is a defect of facevae and not of your input: please report it, with the lines above")


def _end(message: str, status: int = 1) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(status)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy, torch or the system could not get the memory that was needed."""
    if isinstance(error, RuntimeError | OSError):
        return re.search(OUT_OF_MEMORY, str(error)) is not None
    return isinstance(error, MemoryError)


def _explain(error: OSError) -> str:
    """The file, what the system says of it, and the way out where there is a known one."""
    parts = [error.filename, error.strerror, REMEDIES.get(error.errno or 0)]
    return ": ".join(str(part) for part in parts if part)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
