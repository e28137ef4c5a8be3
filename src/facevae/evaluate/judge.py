"""A small classifier of the set's attributes. It judges edited images; distances of samples use its features.

It is trained on the training images only, so no pretrained network has to be downloaded.
"""

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from facevae.config.schema import ImageSize, PositiveInt
from facevae.errors import UserError
from facevae.model.pixels import batches_of
from facevae.storage.tensors import build_module, read_tensors, write_tensors

WIDTHS = (32, 64, 128, 128)  # channels of each block; for large images the last repeats
MAP_SIZE = 4  # smallest size in pixels of the last feature maps of large images
DROPOUT = 0.2
THRESHOLD = 0.5  # an image has an attribute if its probability is higher


class ClassifierHeader(BaseModel):
    """The images that a classifier takes, the names of its outputs, and the prepared set that it was trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: ImageSize
    image_channels: PositiveInt
    attributes: tuple[str, ...]
    data_digest: str


class Classifier(nn.Module):
    """Images (batch, channel, height, width) in [0, 1] to one logit per attribute, (batch, num_attributes).

    Each block halves the feature maps. Large images get one more block per doubling of `image_size`, so each pixel of
    the last maps always sees a large part of the face.
    """

    def __init__(self, image_size: int, image_channels: int, attributes: tuple[str, ...]) -> None:
        super().__init__()
        self.image_size = image_size
        self.image_channels = image_channels
        self.attributes = attributes
        num_blocks = max(len(WIDTHS), int(math.log2(image_size / MAP_SIZE)))
        widths = (image_channels, *WIDTHS, *[WIDTHS[-1]] * (num_blocks - len(WIDTHS)))
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(out_channels),
                    nn.ReLU(),
                )
                for in_channels, out_channels in itertools.pairwise(widths)
            )
        )
        self.dropout = nn.Dropout(DROPOUT)
        with warnings.catch_warnings(action="ignore"):  # a set without attributes leaves no weights to draw
            self.logits = nn.Linear(WIDTHS[-1], len(attributes))
        self.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """Means over the last feature maps, (batch, num_features)."""
        maps: Tensor = self.blocks(images)  # (batch, num_features, height, width)
        return maps.mean((2, 3)).float()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.dropout(self.features(images)))
        return logits.float()


@dataclass(frozen=True)
class Judgement:
    """A classifier's output for N images: `features` (N, num_features), `logits` (N, num_attributes)."""

    features: Tensor
    logits: Tensor

    @property
    def probabilities(self) -> Tensor:
        return torch.sigmoid(self.logits)


@torch.no_grad()
def judge(classifier: Classifier, images: NDArray[np.uint8], batch_size: int) -> Judgement:
    """Features and logits of uint8 images (N, height, width, channels), on the CPU."""
    device = next(classifier.parameters()).device
    features = torch.cat([classifier.features(batch).cpu() for batch in batches_of(images, batch_size, device)])
    logits = functional.linear(features, classifier.logits.weight.cpu(), classifier.logits.bias.cpu())
    return Judgement(features, logits)


def skill_table(judgement: Judgement, judged: Sequence[str], attributes: pd.DataFrame) -> pd.DataFrame:
    """How well a classifier recognises attributes in images that it was not trained on.

    Parameters
    ----------
    judgement, judged
        Its judgement of N images, and the attributes in the order of its logits.
    attributes
        The true attributes: values 0 and 1, one row an image.

    Returns
    -------
    pandas.DataFrame
        index attribute; classifier_auc (area under the ROC curve of its logit; probabilities near 1 would tie),
        classifier_recall (share of the images with the attribute that it recognises) and classifier_specificity (the
        same for the images without it).
        Attributes that do not vary in these images are left out.
    """
    from sklearn.metrics import roc_auc_score  # a second of imports, which the classifier stage does without

    rows = {}
    for name, logit, probability in zip(judged, judgement.logits.T, judgement.probabilities.T.numpy(), strict=True):
        has = attributes[name].to_numpy(dtype=bool)
        if has.any() and not has.all():
            found = probability > THRESHOLD
            auc = roc_auc_score(has, logit.numpy())
            rows[name] = (auc, found[has].mean(), 1 - found[~has].mean())
    columns = [f"classifier_{name}" for name in ("auc", "recall", "specificity")]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("attribute")


def save_classifier(path: Path, classifier: Classifier, *, data_digest: str) -> None:
    """Write a classifier; `data_digest` identifies the prepared set that it was trained on."""
    header = ClassifierHeader(
        image_size=classifier.image_size,
        image_channels=classifier.image_channels,
        attributes=classifier.attributes,
        data_digest=data_digest,
    )
    write_tensors(path, classifier.state_dict(), header)


def load_classifier(path: Path, *, data_digest: str) -> Classifier:
    """Read a classifier, in evaluation mode on the CPU, that was trained on the prepared set with this digest.

    Raises
    ------
    UserError
        The file is missing or damaged, or was trained on another set.
    """
    tensors, header = read_tensors(path, ClassifierHeader, remedy="run `dvc repro classifier`")
    sizes = header.image_size, header.image_channels
    classifier = build_module(path, lambda: Classifier(*sizes, header.attributes), tensors)
    if header.data_digest != data_digest:
        raise UserError(
            f"{path} was trained on another set ({header.data_digest}, not {data_digest}). Run `dvc repro classifier`"
        )
    return classifier
