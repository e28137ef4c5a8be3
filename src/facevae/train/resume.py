"""The progress of a training on disk, so that one that was killed goes on where it was.

There is one file for each training, named after the fingerprint of all that its result depends on, so that no other
training ever finds it. A file that is not whole is removed with a warning, and training starts over.
"""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from facevae.errors import UserError
from facevae.storage.atomic import partial_path
from facevae.storage.tensors import read_tensors, write_tensors
from facevae.train.loop import Progress

FOLDER = Path(".facevae/resume")
MAX_FILES = 4  # of trainings that never ended; more are kept while they may be at work
SECONDS_TO_REST = 7 * 24 * 3600.0  # without an epoch, after which a training is taken to have been given up
LOCK_SECONDS = 60

logger = logging.getLogger(__name__)


class ResumeHeader(BaseModel):
    """The history so far."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    rows: list[dict[str, float]]


class ResumeFile:
    """Where the progress of one training is kept.

    It lies in the project's own folder also while DVC runs a queued experiment in another one, which it deletes. As a
    context it is removed where that ends without an error.
    """

    def __init__(self, fingerprint: str) -> None:
        self.path = Path(os.environ.get("DVC_ROOT", "")) / FOLDER / fingerprint
        self._lock = FileLock(self.path.parent.with_suffix(".lock"), timeout=LOCK_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.remove()

    def load(self) -> Progress | None:
        """What was saved last; None where there is nothing, or nothing whole."""
        if not self.path.exists():
            return None
        try:
            tensors, header = read_tensors(self.path, ResumeHeader, remedy="")
        except UserError as error:
            logger.warning("%s; training starts over", error)
            self.remove()
            return None
        logger.warning("training goes on after epoch %d, where it was stopped", len(header.rows))
        return Progress(header.rows, tensors)

    def save(self, progress: Progress) -> None:
        """Keep this in place of what was saved before; a disk that is full costs a warning, not the training.

        One process at a time: queued experiments that differ in later stages alone have the same training.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                write_tensors(self.path, progress.tensors, ResumeHeader(rows=progress.rows))
                with suppress(FileNotFoundError):  # another training may have removed its own
                    self._remove_abandoned()
        except OSError as error:
            message = "%s cannot be written (%s): were training stopped now, more would be lost"
            logger.warning(message, self.path, error.strerror or error)  # the lock's timeout has no strerror

    def remove(self) -> None:
        """Forget the training: it has ended, and its results are on disk; a file that stays costs a warning."""
        for path in (self.path, partial_path(self.path)):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s cannot be removed (%s): it is of no use any more", path, error.strerror)

    def _remove_abandoned(self) -> None:
        written = {path: path.stat().st_mtime for path in self.path.parent.iterdir()}
        for path in sorted(written, key=written.__getitem__)[:-MAX_FILES]:
            if time.time() - written[path] > SECONDS_TO_REST:
                path.unlink(missing_ok=True)
