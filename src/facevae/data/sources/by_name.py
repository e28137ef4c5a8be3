"""The source of raw images that `data.source` names."""

from pathlib import Path

from facevae.config.schema import DataParams
from facevae.data.sources.avatars import open_avatars
from facevae.data.sources.celeba import open_celeba
from facevae.data.sources.folder import open_folder
from facevae.data.sources.mnist import fetch_mnist, open_mnist
from facevae.data.sources.source import Source
from facevae.errors import UserError


def fetch(params: DataParams) -> None:
    """Download what the source that `data.source` names lacks under `data.root`, if it is one that can be downloaded.

    Raises
    ------
    UserError
        The download fails.
    """
    if params.source == "mnist":
        fetch_mnist(Path(params.root))


def open_source(params: DataParams, seed: int) -> Source:
    """The source that `data.source` names.

    Raises
    ------
    UserError
        Something that the source needs is missing or malformed under `data.root`, or it has fewer images than
        `data.num_images` asks for.
    """
    source = _open(params, Path(params.root), seed)
    if params.num_images is not None and len(source.names) < params.num_images:
        raise UserError(
            f"data.num_images: {params.num_images}, but {params.root} holds only {len(source.names)}: "
            "lower it, or set it to null to take all"
        )
    return source


def _open(params: DataParams, root: Path, seed: int) -> Source:
    match params.source:
        case "avatars":
            assert params.num_images is not None  # checked with the params
            return open_avatars(params.num_images, params.image_size, seed)
        case "celeba":
            return open_celeba(root, params.num_images, official=params.split == "official")
        case "mnist":
            return open_mnist(root, params.num_images)
        case "folder":
            return open_folder(root, params.num_images)
