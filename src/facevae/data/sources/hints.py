"""What to do with a folder that holds no data of the chosen source, judged by what it does hold."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from facevae.data.image_file import SUFFIXES
from facevae.data.sources.listing import reason_to_leave_out

MAX_FILES = 10_000  # that are looked at
ANY_IMAGE = rf"\.({'|'.join(suffix[1:] for suffix in SUFFIXES)})$"
SOURCES = {  # data.source: what its files look like
    "parquet": r"\.parquet$",
    "celeba": r"(^|/)(img_align_celeba(_png)?|CelebA-HQ-img)/[^/]+$|(^|/)img_align_celeba\.zip$",
    "mnist": r"-idx[13]-ubyte(\.gz)?$|\.idx[13]-ubyte(\.gz)?$",
    "folder": ANY_IMAGE,
}
PACKED = r"\.(7z|7z\.\d+|rar|tar|tar\.\w+|tgz|zip|zst)$"
ARRAYS = r"\.(npz|npy|mat|h5|hdf5|tfrecords?|lmdb|mdb|rec|pt|pkl|arrow|bin)$"


def hint(root: Path, source: str) -> str:
    """A sentence that begins with a blank: another source that fits, or files to unpack; empty if nothing is known."""
    files = list(islice(_files(root), MAX_FILES))
    for other, pattern in SOURCES.items():
        if other != source and any(re.search(pattern, name, re.IGNORECASE) for name in files):
            return f" It holds files for data.source: {other}."
    for pattern, what in ((PACKED, "unpack it"), (ARRAYS, "save its images as files, such as PNG")):
        if found := next((name for name in files if re.search(pattern, name, re.IGNORECASE)), None):
            return f" It holds {found}: {what}."
    return ""


def _files(root: Path) -> Iterator[str]:
    paths = (path.relative_to(root) for path in root.rglob("*") if not path.is_dir())
    return (path.as_posix() for path in paths if not reason_to_leave_out(path.parts))
