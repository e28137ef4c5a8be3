"""Open the source that `data.source` names."""

from pathlib import Path

from facevae.config.schema import DataParams
from facevae.data.sources.avatars import open_avatars
from facevae.data.sources.celeba import open_celeba
from facevae.data.sources.folder import open_folder
from facevae.data.sources.mnist import fetch_mnist, open_mnist
from facevae.data.sources.source import Source
from facevae.errors import UserError


def fetch(params: DataParams) -> None:
    """Download the source to `data.root` if it is missing and can be downloaded, as only MNIST can.

    Raises
    ------
    UserError
        The download fails.
    """
    if params.source == "mnist":
        fetch_mnist(Path(params.root))


def open_source(params: DataParams, seed: int) -> Source:
    """Open the source that `data.source` names.

    Raises
    ------
    UserError
        A file of the source is missing or malformed, or there are fewer images than `data.num_images`.
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
            assert params.num_images is not None  # config.checks requires it
            return open_avatars(params.num_images, params.image_size, seed)
        case "celeba":
            return open_celeba(root, params.num_images, official=params.split == "official")
        case "mnist":
            return open_mnist(root, params.num_images)
        case "folder":
            return open_folder(root, params.num_images)
