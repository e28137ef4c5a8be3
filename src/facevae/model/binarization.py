"""Turn images into black and white ones, which the Bernoulli likelihood needs."""

import numpy as np
from numpy.typing import NDArray

from facevae.config.schema import Binarization


def binarize(images: NDArray[np.uint8], binarization: Binarization, seed: int, epoch: int = 0) -> NDArray[np.uint8]:
    """Images (N, height, width, channels) with levels 0 and 255 only, or the images themselves for "none".

    "threshold" makes pixels of intensity 1/2 or more white. "fixed" and "per_epoch" draw each pixel white with its
    intensity as probability (Salakhutdinov and Murray 2008, section 5), once or anew in every epoch.

    Parameters
    ----------
    seed, epoch
        Determine the draw. Held-out images use epoch 0.
    """
    match binarization:
        case "none":
            return images
        case "threshold":
            return np.where(images >= 128, np.uint8(255), np.uint8(0))
        case "fixed" | "per_epoch":
            generator = np.random.default_rng([seed, epoch if binarization == "per_epoch" else 0])
            thresholds = generator.integers(255, size=images.shape, dtype=np.uint8)  # 0 to 254
            return np.where(thresholds < images, np.uint8(255), np.uint8(0))
