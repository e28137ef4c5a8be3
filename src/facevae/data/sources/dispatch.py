"""Open the source that `data.source` names."""

from facevae.config.data_root import data_root
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
        `data.root` is not a folder, or the download fails.
    """
    if params.source == "mnist":
        fetch_mnist(data_root(params))


def open_source(params: DataParams, seed: int) -> Source:
    """Open the source that `data.source` names.

    Raises
    ------
    UserError
        `data.root` is not a folder, a file of the source is missing or malformed, or there are fewer images than
        `data.num_images`.
    """
    source = _open(params, seed)
    if params.num_images is not None and len(source.names) < params.num_images:
        raise UserError(
            f"data.num_images: {params.num_images}, but {params.root} holds only {len(source.names)}: "
            "lower it, or set it to null to take all"
        )
    return source


def _open(params: DataParams, seed: int) -> Source:
    if params.source == "avatars":
        assert params.num_images is not None  # config.checks requires it
        return open_avatars(params.num_images, params.image_size, seed)
    root = data_root(params)
    match params.source:
        case "celeba":
            return open_celeba(root, params.num_images, official=params.split == "official")
        case "mnist":
            return open_mnist(root, params.num_images)
        case "folder":
            return open_folder(root, params.num_images)
        case "parquet":
            from facevae.data.sources.parquet import open_parquet  # imports what only it needs

            return open_parquet(root, params.num_images)
