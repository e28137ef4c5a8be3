"""Links that would hide changes of the raw images from DVC."""

import os
from pathlib import Path

from facevae.config.schema import DataParams
from facevae.errors import UserError

WITHOUT_LINKS = {"avatars", "folder"}  # the one has no files, the other leaves linked folders out


def refuse_linked_folders(params: DataParams) -> None:
    """Raise a `UserError` if a source may read a folder behind a link below `data.root`.

    DVC follows links to files, and `data.root` itself may be a link to a folder. It looks behind no link to a folder
    below that, so that after a change there `dvc repro` would find nothing to do.
    """
    if params.source in WITHOUT_LINKS:
        return
    for folder, names, _ in os.walk(params.root):
        for path in (Path(folder, name) for name in names):
            if path.is_symlink():
                raise UserError(
                    f"data.root: {path} is a link to the folder {path.resolve()}, behind which DVC sees no changes: "
                    "replace it by the folder, by links to its files, or set data.root to the folder that holds it"
                )
