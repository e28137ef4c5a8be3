"""facevae: a reproducible pipeline that trains a variational autoencoder on faces.

`load` opens a trained model; docs/api.md shows what to do with it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from facevae.face_model import FaceModel

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def load(
    path: str | Path, *, priors: str | Path | None = None, directions: str | Path | None = None, device: str = "cpu"
) -> "FaceModel":
    """Open a trained model.

    Parameters
    ----------
    path
        The weights, such as models/vae.safetensors.
    priors, directions
        What the stage `evaluate` fitted to the model; None: priors.safetensors and directions.safetensors beside the
        weights. They are read when first needed.
    device
        Where the network runs: "cpu", or another device of torch, such as "cuda".

    Raises
    ------
    UserError
        The weights are missing or damaged, or torch cannot use the device.
    """
    from facevae.face_model import FaceModel  # here, so that `import facevae` does not import torch

    return FaceModel(path, priors=priors, directions=directions, device=device)
