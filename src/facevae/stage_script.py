"""How the script of a stage starts. It imports this module before all others, and calls `run`.

Modules then load without garbage collection, which would take a fifth of the time. A worker process that imported a
stage's script again would stay without, as it never calls `run`; those of `prepare` do not import it.
"""

import gc
from collections.abc import Callable

from facevae.errors import reported_errors

gc.disable()


def run(main: Callable[[], None], memory_remedy: str) -> None:
    """Run a stage with garbage collection, and report its errors as `reported_errors` does."""
    gc.freeze()  # what has been imported is no garbage
    gc.enable()
    with reported_errors(memory_remedy):
        main()
    gc.freeze()  # else the interpreter would search for garbage once more at exit
