"""The typed tree of params.yaml: strict, frozen, and without defaults, so that the file says all that a run used."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Split = Literal["validation", "test"]
Likelihood = Literal["squared_error", "gaussian", "bernoulli"]
Precision = Literal["auto", "float32", "bfloat16"]
Numerics = Literal["native", "portable"]
Binarization = Literal["none", "threshold", "fixed", "per_epoch"]
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]  # fits a C int, as torch requires
ImageSize = Annotated[int, Field(ge=8, le=1024)]  # pixels, height = width
KernelSize = Annotated[int, Field(ge=1, le=15)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(min_length=1, max_length=500, pattern="^[^\0]*$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Temperature = Annotated[float, Field(ge=0, le=2)]  # of a draw: factor of its noise
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _require_visible(text: str) -> str:
    if text != text.strip() or not text.isprintable():
        raise ValueError("must have no space at its ends, and no line break or other invisible character")
    return text


ExperimentName = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_require_visible)]


class Section(BaseModel):
    """A mapping in params.yaml: every key is required, no other key is allowed, no value is converted."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class DataParams(Section):
    """Where the images come from and how they are prepared."""

    source: Literal["avatars", "celeba", "mnist", "folder", "parquet"]
    root: Text
    num_images: PositiveInt | None  # None: all images of the source
    image_size: ImageSize
    channels: Literal[1, 3]
    crop: PositiveInt | None  # side of the centred square in source pixels; None: the largest
    split: Literal["random", "official"]
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    test_fraction: Fraction
    keep_duplicates_together: bool  # whether equal images go into the split of the first of them
    on_bad_image: Literal["fail", "skip"]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a prepared image."""
        return self.image_size, self.image_size, self.channels


class ModelParams(Section):
    """The encoder; the decoder mirrors it."""

    channels: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1, max_length=100)]
    strides: Annotated[tuple[Annotated[int, Field(ge=1, le=4)], ...], Field(strict=False, min_length=1, max_length=100)]
    kernel_size: KernelSize
    decoder_kernel_size: KernelSize  # of the transposed convolutions
    residual_blocks: Annotated[int, Field(ge=0, le=1000)]  # in encoder and decoder each, on the smallest feature map
    latent_dim: Annotated[int, Field(ge=2, lt=2**31)]
    normalization: Literal["none", "batch", "group"]
    negative_slope: Fraction
    dropout: Fraction
    refinement_steps: Annotated[int, Field(ge=0, le=1000)]  # of posterior means, outside training


class TrainParams(Section):
    """The objective and how it is optimised."""

    epochs: PositiveInt
    batch_size: PositiveInt  # summed over all processes
    micro_batch_size: PositiveInt | None  # images of a batch in each pass through the network; None: all
    optimizer: Literal["adam", "muon"]
    learning_rate: Positive  # of Adam; with Muon, of biases, normalisation and log sigma
    muon_learning_rate: Positive | None  # None with Adam
    momentum: Fraction | None  # of Muon; None with Adam
    learning_rate_decay: Literal["none", "cosine"]
    learning_rate_warmup_steps: Count
    likelihood: Likelihood
    num_importance_samples: PositiveInt  # draws of each posterior in the objective
    binarization: Binarization  # only for the Bernoulli likelihood
    horizontal_flip: bool  # mirror each image with probability 1/2
    beta: NotNegative
    kl_warmup_epochs: NotNegative
    average_decay: Fraction | None  # of the moving average of the weights; None: no average
    clip_gradient_norm: Positive | None  # None: no clipping
    skip_gradient_norm: Positive | None  # None: skip only steps whose gradient is not finite
    max_skipped_steps: Count  # in one epoch
    precision: Precision
    device: Literal["auto", "cpu", "cuda"]
    numerics: Numerics  # native: as fast as the processor can; portable: the same bits on every x86-64
    num_threads: Annotated[int, Field(gt=0, le=1024)]  # of each process
    launcher: Text  # the command that runs the train stage, such as `python` or `torchrun`


class SharpenParams(Section):
    """How the decoder trains on against a discriminator once the training has ended."""

    epochs: Count  # 0: not at all
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Positive  # of Adam
    muon_learning_rate: Positive
    discriminator_channels: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1, max_length=10)]
    adversarial_weight: NotNegative
    feature_weight: NotNegative
    squared_error_weight: NotNegative
    colour_weight: NotNegative
    grain_weight: NotNegative


class ClassifierParams(Section):
    """How to train the attribute classifier, which judges samples and edits."""

    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: Positive


class EvaluateParams(Section):
    """What the metrics are measured on, and with how many draws."""

    split: Split
    batch_size: PositiveInt
    num_importance_samples: PositiveInt  # latents drawn for each image
    num_samples: Annotated[int, Field(ge=2, lt=2**31)]  # pictures drawn from each prior
    temperature: Temperature  # of these draws
    attributes: Annotated[tuple[str, ...], Field(strict=False)]  # whose edits are judged
    strengths: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
    num_edited_images: PositiveInt  # with each attribute, and as many without it
    original_lambda: Finite
    inception_weights: Text | None  # path of the weights that the FID needs; None: no FID


class FiguresParams(Section):
    """What the pictures show."""

    split: Split
    num_reconstructions: PositiveInt
    num_samples: PositiveInt
    temperature: Temperature
    num_interpolations: PositiveInt
    interpolation_steps: Annotated[int, Field(ge=3, lt=2**31)]
    attributes: Annotated[tuple[str, ...], Field(strict=False)]
    strengths: Annotated[tuple[Finite, ...], Field(strict=False, min_length=3)]
    latent_map_attributes: Annotated[tuple[str, ...], Field(strict=False, max_length=10)]  # one colour each


class TrackingParams(Section):
    """The MLflow experiment that holds the runs."""

    experiment: ExperimentName


class Params(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    data: DataParams
    model: ModelParams
    train: TrainParams
    sharpen: SharpenParams
    classifier: ClassifierParams
    evaluate: EvaluateParams
    figures: FiguresParams
    tracking: TrackingParams
