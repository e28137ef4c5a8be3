"""Features of the Inception network, which the FID of the literature uses, with weights that the user provides.

Nothing is downloaded. The network is torch-fidelity's, a port of the original TensorFlow code (Heusel et al. 2017,
arXiv 1706.08500). The weights are pt_inception-2015-12-05, which torch-fidelity and pytorch-fid use.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facevae.errors import UserError

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # its beginning is in the file's name


class Inception:
    """The network up to its last pooling.

    Raises
    ------
    UserError
        The file is missing or does not have the weights of this network, or torch-fidelity is not installed.
    """

    def __init__(self, weights: Path, batch_size: int, device: torch.device) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise UserError(
                "evaluate.inception_weights needs torch-fidelity. Install facevae[fid], or set the key to null"
            ) from None
        _require_digest(weights)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
        self._network = network.to(device)
        self._batch_size = batch_size
        self._device = device

    @torch.no_grad()
    def features(self, images: NDArray[np.uint8]) -> Tensor:
        """Features (N, 2048) of uint8 images (N, height, width, channels); the network resizes them to 299 x 299."""
        features = []
        for start in range(0, len(images), self._batch_size):
            batch = torch.from_numpy(np.array(images[start : start + self._batch_size])).to(self._device)
            colour = batch.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)  # (batch, 3, height, width)
            features.append(self._network(colour)[0].cpu())
        return torch.cat(features)


def _require_digest(weights: Path) -> None:
    """Refuse any other file. torch-fidelity unpickles it, and DVC would not notice a change: it is no dependency."""
    try:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"evaluate.inception_weights: {weights} is missing; null skips the FID") from None
    except OSError as error:
        raise UserError(f"evaluate.inception_weights: {weights} cannot be read: {error.strerror}") from error
    if digest != SHA256:
        raise UserError(
            f"evaluate.inception_weights: {weights} does not have the weights pt_inception-2015-12-05: its SHA-256 is "
            f"{digest}, not {SHA256}. Download the file again"
        )
