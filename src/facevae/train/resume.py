"""The progress of a training on disk, so that a killed training continues where it stopped.

Each training has its own file. Its name is the fingerprint of everything that the result depends on, so no other
training ever finds it. A damaged file is removed with a warning, and training starts over.
"""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from facevae.errors import UserError
from facevae.storage.atomic import partial_path
from facevae.storage.tensors import read_tensors, write_tensors
from facevae.train.loop import Progress

FOLDER = Path(".facevae/resume")
MAX_FILES = 4  # of unfinished trainings; more are kept while they may still be running
SECONDS_TO_REST = 7 * 24 * 3600.0  # without an epoch: the training counts as abandoned
LOCK_SECONDS = 60

logger = logging.getLogger(__name__)


class ResumeHeader(BaseModel):
    """The history so far, and the names of each epoch's previews."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    rows: list[dict[str, float]]
    previews: list[list[str]]


class ResumeFile:
    """The file with one training's progress; as a context manager it removes the file unless an error occurs.

    The file lies in the project's own folder even if DVC runs a queued experiment in another folder, which it deletes.
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
        """Load what was saved last; None if there is no file or it is damaged."""
        if not self.path.exists():
            return None
        try:
            tensors, header = read_tensors(self.path, ResumeHeader, remedy="")
        except UserError as error:
            logger.warning("%s; training starts over", error)
            self.remove()
            return None
        logger.warning("training continues after epoch %d, where it stopped", len(header.rows))
        previews = [
            {name: tensors.pop(_preview(epoch, name)).numpy().tobytes() for name in names}
            for epoch, names in enumerate(header.previews, 1)
        ]
        return Progress(header.rows, tensors, previews)

    def save(self, progress: Progress) -> None:
        """Replace what was saved before. A full disk costs a warning, not the training.

        The previews are saved too: their weights are gone. A lock admits one process at a time: queued experiments that
        differ only in later stages share a training.
        """
        header = ResumeHeader(rows=progress.rows, previews=[list(previews) for previews in progress.previews])
        pictures = {
            _preview(epoch, name): torch.frombuffer(bytearray(content), dtype=torch.uint8)
            for epoch, previews in enumerate(progress.previews, 1)
            for name, content in previews.items()
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                write_tensors(self.path, progress.tensors | pictures, header)
                with suppress(FileNotFoundError):  # another training may have removed its own
                    self._remove_abandoned()
        except OSError as error:
            message = "cannot write %s (%s): if training stops now, it continues from an earlier epoch or starts over"
            logger.warning(message, self.path, error.strerror or error)  # the lock's timeout has no strerror

    def remove(self) -> None:
        """Remove the file: the training has ended and its results are on disk. Failing to remove it costs a warning."""
        for path in (self.path, partial_path(self.path)):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("cannot remove %s (%s), which is no longer needed", path, error.strerror)

    def _remove_abandoned(self) -> None:
        written = {path: path.stat().st_mtime for path in self.path.parent.iterdir()}
        for path in sorted(written, key=written.__getitem__)[:-MAX_FILES]:
            if time.time() - written[path] > SECONDS_TO_REST:
                path.unlink(missing_ok=True)


def _preview(epoch: int, name: str) -> str:
    """The name of a preview among the tensors."""
    return f"preview.{epoch}.{name}"
