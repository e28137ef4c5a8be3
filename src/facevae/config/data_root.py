"""The folder of the raw data."""

from pathlib import Path

from facevae.config.schema import DataParams
from facevae.errors import UserError


def data_root(params: DataParams) -> Path:
    """The folder that `data.root` names.

    Raises
    ------
    UserError
        It does not exist, or is not a folder.
    """
    root = Path(params.root)
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else f"does not exist in {Path.cwd()}"
        raise UserError(f"data.root: {root} {problem}: set it to the folder with the data of source {params.source}")
    return root
