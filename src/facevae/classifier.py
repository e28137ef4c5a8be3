"""A small classifier of the set's attributes: it judges edited images, and its features tell samples from images.

It stands in for a network that would have to be downloaded, and is trained on the training images alone.
"""

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from facevae.adam import Adam
from facevae.attributes import area_under_curve, varied_attributes
from facevae.errors import UserError
from facevae.hardware import autocast
from facevae.inference import batches_of
from facevae.model import to_unit_range
from facevae.params import ClassifierParams, ImageSize, PositiveInt, Precision
from facevae.tensor_file import build_module, read_tensors, write_tensors

WIDTHS = (32, 64, 128, 128)  # and so on with the last for large images
MAP_SIZE = 4  # pixels, about, of the last feature maps of large images
DROPOUT = 0.2
THRESHOLD = 0.5  # an attribute of a higher probability is there


class Header(BaseModel):
    """What a file of a classifier says of itself: the images it takes, and the names of its outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: ImageSize
    image_channels: PositiveInt
    attributes: tuple[str, ...]
    data_digest: str


class Classifier(nn.Module):
    """Images (batch, channel, height, width) in [0, 1] to one logit for each attribute, (batch, num_attributes).

    Each block halves the images, and there is one more for each doubling of `image_size`, so that the means over the
    last feature maps are always those of large parts of the face.
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
        with warnings.catch_warnings(action="ignore"):  # of no weights to draw, where there are no attributes
            self.logits = nn.Linear(WIDTHS[-1], len(attributes))
        self.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """The means over the last feature maps, (batch, num_features)."""
        maps: Tensor = self.blocks(images)
        return maps.mean((2, 3)).float()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.dropout(self.features(images)))
        return logits.float()


@dataclass(frozen=True)
class Judgement:
    """What a classifier makes of N images: `features` (N, num_features) and `probabilities` (N, num_attributes)."""

    features: Tensor
    probabilities: Tensor


@torch.no_grad()
def judge(classifier: Classifier, images: NDArray[np.uint8], batch_size: int) -> Judgement:
    """Features and probabilities of images (N, height, width, channels), on the CPU."""
    device = next(classifier.parameters()).device
    features = torch.cat([classifier.features(batch).cpu() for batch in batches_of(images, batch_size, device)])
    logits = functional.linear(features, classifier.logits.weight.cpu(), classifier.logits.bias.cpu())
    return Judgement(features, torch.sigmoid(logits))


def skill_table(judgement: Judgement, judged: Sequence[str], attributes: pd.DataFrame) -> pd.DataFrame:
    """How well a classifier knows attributes by images that it was not trained on.

    Parameters
    ----------
    judgement, judged
        Of N images, and the names of the attributes that its probabilities are of.
    attributes
        What the images really have: values 0 and 1, one row an image.

    Returns
    -------
    pandas.DataFrame
        index attribute; classifier_auc (area under the ROC curve of its probability), classifier_recall (share of the
        images with the attribute that it finds) and classifier_specificity (share of those without it that it finds to
        be so). Attributes that these images share are left out.
    """
    rows = {}
    for name, probability in zip(judged, judgement.probabilities.T.numpy(), strict=True):
        has = attributes[name].to_numpy(dtype=bool)
        if has.any() and not has.all():
            found = probability > THRESHOLD
            auc = area_under_curve(probability, has)
            rows[name] = (auc, found[has].mean(), 1 - found[~has].mean())
    columns = [f"classifier_{name}" for name in ("auc", "recall", "specificity")]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("attribute")


def train_classifier(
    images: NDArray[np.uint8],
    attributes: pd.DataFrame,
    params: ClassifierParams,
    precision: Precision,
    device: torch.device,
    *,
    seed: int,
) -> Classifier:
    """Train with Adam and a cosine schedule on the cross-entropy of all attributes together.

    Half of the images of each batch are blurred and all are mirrored or not at random, so that the judgement does not
    turn on the fine grain that a reconstruction lacks.

    Parameters
    ----------
    images
        Shape (N, height, width, channels).
    attributes
        Values 0 and 1, one row an image; those that all images share are left out, and where none is left the network
        stays as it was drawn.
    seed
        Determines the initial weights, the order of the images and what is done to them.

    Raises
    ------
    UserError
        The training exploded.
    """
    varied = varied_attributes(attributes)
    torch.manual_seed(seed)
    classifier = Classifier(images.shape[1], images.shape[3], tuple(varied.columns)).to(device).train()
    if varied.empty:
        return classifier.cpu().eval()
    labels = torch.from_numpy(varied.to_numpy(dtype=np.float32, copy=True)).to(device)
    num_batches = math.ceil(len(images) / params.batch_size)
    optimizer = Adam(classifier.parameters())
    schedule = one_cycle(params.learning_rate, params.epochs * num_batches)
    order = np.random.default_rng(seed)
    augmentation = torch.Generator().manual_seed(seed)
    with tqdm(total=params.epochs * len(images), desc="classifier", unit="image", disable=None) as bar:
        for _ in range(params.epochs):
            for chosen in np.array_split(order.permutation(len(images)), num_batches):
                batch = _augment(to_unit_range(images[chosen], device), augmentation)
                with autocast(precision, device):
                    logits = classifier(batch)
                optimizer.zero_grad()
                functional.binary_cross_entropy_with_logits(logits, labels[torch.from_numpy(chosen)]).backward()
                learning_rate, beta1 = next(schedule)
                optimizer.step(learning_rate, beta1=beta1)
                bar.update(len(chosen))
    if not all(torch.isfinite(tensor).all() for tensor in classifier.state_dict().values()):
        raise UserError(
            "the training of the classifier has exploded: lower classifier.learning_rate, or set train.precision to "
            "float32"
        )
    return classifier.cpu().eval()


def save_classifier(path: Path, classifier: Classifier, *, data_digest: str) -> None:
    """Write a classifier that was trained on the prepared set of this digest."""
    header = Header(
        image_size=classifier.image_size,
        image_channels=classifier.image_channels,
        attributes=classifier.attributes,
        data_digest=data_digest,
    )
    write_tensors(path, classifier.state_dict(), header)


def load_classifier(path: Path, *, data_digest: str) -> Classifier:
    """Read a classifier, in evaluation mode on the CPU, and see that it was trained on the set of this digest.

    Raises
    ------
    UserError
        The file is missing or damaged, or belongs to another set.
    """
    tensors, header = read_tensors(path, Header, remedy="make it by `dvc repro classifier`")
    sizes = header.image_size, header.image_channels
    classifier = build_module(path, lambda: Classifier(*sizes, header.attributes), tensors)
    if header.data_digest != data_digest:
        raise UserError(f"{path} was trained on another set ({header.data_digest}, not {data_digest}): train it anew")
    return classifier


def one_cycle(learning_rate: float, num_steps: int) -> Iterator[tuple[float, float]]:
    """The learning rate and Adam's beta1 of each step: up to `learning_rate` in 0.3 of the steps, then down to nothing.

    The 1-cycle policy (arXiv 1708.07120), with the cosines and the numbers of PyTorch's `OneCycleLR`.
    """
    peak, end = 0.3 * num_steps - 1, num_steps - 1
    for step in range(num_steps):
        if step <= peak:
            lowest, height = learning_rate / 25, 0.5 * (1 - math.cos(math.pi * step / peak))
        else:
            lowest, height = learning_rate / 250_000, 0.5 * (1 + math.cos(math.pi * (step - peak) / (end - peak)))
        yield lowest + (learning_rate - lowest) * height, 0.95 - 0.1 * height


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (batch, channel, height, width), of which a random half is blurred and a random half mirrored."""
    size = images.shape[-1]
    halved = functional.interpolate(images, size=size // 2, mode="bilinear", antialias=True)
    blurred = functional.interpolate(halved, size=size, mode="bilinear")
    is_blurred, is_mirrored = (torch.rand(2, len(images), 1, 1, 1, generator=generator) < 0.5).to(images.device)
    images = torch.where(is_blurred, blurred, images)
    return torch.where(is_mirrored, images.flip(3), images)
