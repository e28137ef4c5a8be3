"""Train several models for the same time, or on the same number of images, and measure them in the same way.

The contenders are the documented original, its deeper script version, pythae's VAE for CelebA, the demo's model, and
the best recipe, also with the original's objective. All are trained by the same loop on the same images at 64 x 64 and
judged by one classifier. The best preset is also compared at 128 x 128. Results go to benchmarks/results/quality/ and
weights to the work folder, so that an interrupted benchmark can be continued.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from measuring import NATIVE, RESULTS, ROOT, hardware
from numpy.typing import NDArray
from pydantic import BaseModel
from second_judge import second_judge
from torch import Tensor, nn

from facevae.config.params import parse_params
from facevae.config.schema import EvaluateParams, ModelParams, Params, TrainParams
from facevae.data.preparation import prepare
from facevae.data.prepared import PreparedSet
from facevae.data.sources.dispatch import open_source
from facevae.device import autocast, set_up_device
from facevae.errors import UserError, reported_errors
from facevae.evaluate.distances import frechet_distance
from facevae.evaluate.edits import RANDOM
from facevae.evaluate.evaluation import Evaluation, evaluate
from facevae.evaluate.judge import Classifier, load_classifier, save_classifier
from facevae.evaluate.judge_training import train_classifier
from facevae.model.checkpoint import CheckpointHeader
from facevae.model.inference import decode_all, encode_all
from facevae.model.vae import VAE, Posterior, bounded_log_variance, new_model
from facevae.storage.tables import write_csv, write_json
from facevae.storage.tensors import read_tensors, write_tensors
from facevae.train.loop import Progress, Setup, train
from facevae.train.phases import sharpen

IMAGE_SIZE = 64
NUM_TRAIN, NUM_VALIDATION, NUM_IMAGES = 6500, 500, 8000  # in order; the rest is the test split
PROBED_IMAGES, NUM_PROBES = 512, 4  # to measure the speed
MARGIN = 0.97  # share of the time that is planned
WARMUP_SHARE = 1 / 3  # longest KL warm-up, so that a short training reaches the full weight
JUDGE_EPOCHS = 24  # images are few: after the presets' 6 epochs the classifier finds one pair of glasses in six
JUDGE = f"classifier-{JUDGE_EPOCHS}.safetensors"

BEST_ADAM = {  # for half the size and a few thousand steps
    "model.channels": [32, 64, 128, 256],
    "model.strides": [2, 2, 2, 2],
    "model.latent_dim": 128,
    "model.refinement_steps": 0,
    "train.batch_size": 32,
    "train.optimizer": "adam",
    "train.muon_learning_rate": None,
    "train.momentum": None,
    "train.learning_rate_warmup_steps": 200,
    "train.kl_warmup_epochs": 4.0,
    "train.average_decay": 0.995,
    "train.clip_gradient_norm": 100000.0,
}
BEST_ADAM_LARGE = {  # the preset before Muon
    **BEST_ADAM,
    "model.channels": [32, 64, 128, 256, 256],
    "model.strides": [2, 2, 2, 2, 2],
    "model.residual_blocks": 1,
    "model.latent_dim": 256,
    "train.batch_size": 64,
    "train.learning_rate": 0.001,
    "train.kl_warmup_epochs": 2.0,
    "train.average_decay": 0.999,
}
BEST = {
    **BEST_ADAM,
    "train.optimizer": "muon",
    "train.batch_size": 96,
    "train.muon_learning_rate": 0.03,
    "train.learning_rate_warmup_steps": 150,
    "train.momentum": 0.95,
    "train.kl_warmup_epochs": 1.0,
    "train.average_decay": 0.98,
}
ADAM = {  # the demo as it was measured, before Muon
    "model.channels": [32, 64, 128, 256],
    "model.kernel_size": 4,
    "train.learning_rate": 0.002,
    "train.average_decay": 0.995,
    "train.clip_gradient_norm": 20000.0,
    "train.optimizer": "adam",
    "train.muon_learning_rate": None,
    "train.momentum": None,
    "train.kl_warmup_epochs": 4.0,
}
ORIGINAL_OBJECTIVE = {"train.likelihood": "squared_error", "train.clip_gradient_norm": 200.0}
PYTHAE = {"model.latent_dim": 64, "train.batch_size": 64, "train.learning_rate": 0.001}

SHARP = {  # for 64 x 64
    **BEST,
    "evaluate.temperature": 1.0,
    "sharpen.epochs": 5,
    "sharpen.batch_size": 32,
    "sharpen.learning_rate": 0.001,
    "sharpen.muon_learning_rate": 0.01,
    "sharpen.discriminator_channels": [32, 64, 128, 256],
    "sharpen.adversarial_weight": 1.5,
    "sharpen.feature_weight": 45.0,
    "sharpen.squared_error_weight": 240.0,
    "sharpen.colour_weight": 0.0,
    "sharpen.grain_weight": 40.0,
}

SHOWN = ("sharpness_ratio", "sliced_wasserstein_distance")  # of reconstructions too

COLUMNS = {  # of the table, with the number of decimals
    "num_weights": 0,
    "training_seconds": 0,
    "images_seen": 0,
    "squared_error_plus_kl": 1,
    "squared_error": 1,
    "kl_nats": 1,
    "importance_weighted_bits_per_dimension": 3,
    "fitted_prior_bits_per_dimension": 3,
    "ssim": 3,
    "best_frechet_distance": 2,
    "frechet_distance": 2,
    "frechet_distance_normal": 2,
    "sliced_wasserstein_distance": 1,
    "edit_success": 2,
    "edit_success_over_strengths": 2,
    "edit_success_over_strengths_random": 2,
    "edit_leakage_over_strengths": 3,
    "edit_leakage": 3,
}

Overrides = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """A complete params file, and the values that differ from it."""

    title: str
    preset: str
    overrides: Overrides
    image_size: int = IMAGE_SIZE
    sharpens: str | None = None  # the contender whose decoder is sharpened
    weights_of: str | None = None  # the contender that is measured in another way


CONTENDERS = {
    "documented": Contender("documented original", "presets/celeba.yaml", {}),
    "script": Contender("script of the original", "presets/celeba-script.yaml", {}),
    "pythae": Contender("pythae's VAE for CelebA", "presets/celeba.yaml", PYTHAE),
    "demo": Contender("demo's model, Adam", "params.yaml", ADAM),
    "best": Contender("best recipe, Adam", "presets/celeba-best.yaml", BEST_ADAM),
    "best-original": Contender(
        "best recipe, Adam, original's objective", "presets/celeba-best.yaml", BEST_ADAM | ORIGINAL_OBJECTIVE
    ),
    "muon": Contender("best recipe", "presets/celeba-best.yaml", BEST),
    "refined": Contender(
        "best recipe, refined latents",
        "presets/celeba-best.yaml",
        BEST | {"model.refinement_steps": 3},
        weights_of="muon",
    ),
    "sharp": Contender("best recipe, sharpened", "presets/celeba-best.yaml", SHARP, sharpens="muon"),
}
ABLATION: dict[str, tuple[str, Overrides]] = {  # the best recipe of Adam with one change
    "one-way": ("no mirrored images", {"train.horizontal_flip": False}),
    "last-weights": ("last weights, not their average", {"train.average_decay": None}),
    "constant-rate": ("constant learning rate", {"train.learning_rate_decay": "none"}),
    "no-warmup": ("no warm-up of the KL", {"train.kl_warmup_epochs": 0.0}),
    "short-warmup": ("a warm-up of two epochs", {"train.kl_warmup_epochs": 2.0}),
    "batch-64": ("batches of 64", {"train.batch_size": 64}),
    "residual": ("a residual block", {"model.residual_blocks": 1}),
    "group-normalization": ("group normalisation", {"model.normalization": "group"}),
    "no-normalization": ("no normalisation", {"model.normalization": "none"}),
    "latent-64": ("latent of 64", {"model.latent_dim": 64}),
    "latent-256": ("latent of 256", {"model.latent_dim": 256}),
    "kernel-3": ("kernels of 3 x 3 in the decoder too", {"model.decoder_kernel_size": 3}),
    "kernel-4": ("kernels of 4 x 4 in the encoder too", {"model.kernel_size": 4}),
}
LARGE = {  # the best recipe at 128 x 128
    "best-128": Contender("best recipe, Adam", "presets/celeba-best.yaml", BEST_ADAM_LARGE, 128),
    "plain-128": Contender(
        "no residual block", "presets/celeba-best.yaml", BEST_ADAM_LARGE | {"model.residual_blocks": 0}, 128
    ),
    "muon-128": Contender("no refinement", "presets/celeba-best.yaml", {"model.refinement_steps": 0}, 128),
    "refined-128": Contender("celeba-best.yaml", "presets/celeba-best.yaml", {}, 128, weights_of="muon-128"),
    "sharp-128": Contender("sharpened", "presets/celeba-sharp-128.yaml", {}, 128, sharpens="muon-128"),
}
ALL = (
    CONTENDERS
    | {
        name: Contender(title, "presets/celeba-best.yaml", BEST_ADAM | change)
        for name, (title, change) in ABLATION.items()
    }
    | LARGE
)


@dataclass(frozen=True)
class Budget:
    """Length of a training: so many minutes, or until it has seen `num_images` if given.

    The sharpening that follows, if any, takes `sharpen_epochs` if given, else as many as the contender has.
    """

    minutes: float
    num_images: int | None
    sharpen_epochs: int | None

    @property
    def name(self) -> str:
        training = f"{self.num_images}-images" if self.num_images else f"{self.minutes:g}-minutes"
        return training if self.sharpen_epochs is None else f"{training}-{self.sharpen_epochs}-epochs"


class Trained(BaseModel):
    """Header of a contender's weights. `params` are the sections that determine them, as JSON.

    The hardware is that of the training. The evaluation may run on another machine, since it is not timed.
    """

    params: str
    hardware: dict[str, Any]
    images_seen: int
    seconds: int
    summary: dict[str, int | float]


class PythaeVAE(VAE):
    """pythae's networks for CelebA behind our interface.

    The sigmoid is moved out of the decoder and computed in float32, as in ours. Half precision would round the pixels.
    """

    def __init__(self, params: ModelParams) -> None:
        from pythae.models import VAEConfig
        from pythae.models.nn.benchmarks.celeba import Decoder_Conv_AE_CELEBA, Encoder_Conv_VAE_CELEBA

        nn.Module.__init__(self)
        self.params = params
        self.image_size = IMAGE_SIZE
        config = VAEConfig(input_dim=(3, IMAGE_SIZE, IMAGE_SIZE), latent_dim=params.latent_dim)
        self.encoder = Encoder_Conv_VAE_CELEBA(config)
        decoder: Any = Decoder_Conv_AE_CELEBA(config)
        decoder.layers[-1][-1] = nn.Identity()
        self.decoder = decoder
        self.log_sigma = nn.Parameter(torch.tensor(0.5 * np.log(0.5), dtype=torch.float32))
        self.to(memory_format=torch.channels_last)

    def set_memory_format(self, _: torch.memory_format) -> None:
        """Keep the format: the maps are small, and the params do not describe these networks."""

    def encode(self, images: Tensor) -> Posterior:
        output = self.encoder(images)
        return Posterior(output["embedding"].float(), bounded_log_variance(output["log_covariance"].float()))

    def decode_logits(self, latent: Tensor) -> Tensor:
        logits: Tensor = self.decoder(latent)["reconstruction"]
        return logits.float()


class InPrecision(VAE):
    """A model that is evaluated in the precision of its training. In float32 the largest would take half an hour."""

    def __init__(self, model: VAE, params: TrainParams, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.model = model
        self.params = model.params
        self.log_sigma = model.log_sigma
        self._precision = params.precision, device

    def encode(self, images: Tensor) -> Posterior:
        with autocast(*self._precision):
            return self.model.encode(images)

    def decode_logits(self, latent: Tensor) -> Tensor:
        with autocast(*self._precision):
            return self.model.decode_logits(latent)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", type=Path, help="a folder with img_align_celeba/ and list_attr_celeba.txt")
    parser.add_argument("work", type=Path, help="a folder for prepared images, classifiers and weights")
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(CONTENDERS), help="default: the first nine")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--num-threads", type=int, help="CPU threads of each training, instead of the preset's")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=10.0, help="minutes of training for each; default: 10")
    length.add_argument("--num-images", type=int, help="instead, the number of images that each training sees")
    parser.add_argument("--sharpen-epochs", type=int, help="epochs of sharpening, instead of the contender's")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with reported_errors():
        for seed in arguments.seeds:
            for name in arguments.only:
                sharpen_epochs = arguments.sharpen_epochs if ALL[name].sharpens else None
                params = params_of(ALL[name], arguments.num_threads, sharpen_epochs)
                budget = Budget(arguments.minutes, arguments.num_images, sharpen_epochs)
                run(arguments.images, arguments.work, name, params, budget, seed)
        compared = table()
        write_csv(RESULTS / "quality.csv", compared)
        print(as_markdown(compared))


def run(images: Path, work: Path, name: str, params: Params, budget: Budget, seed: int) -> None:
    """Train and measure one contender, unless its result exists."""
    stem = f"{budget.name}-{name}-{seed}"
    target = RESULTS / "quality" / f"{stem}.json"
    if target.exists():
        print(f"{target.relative_to(ROOT)} exists: remove it to measure this contender again", flush=True)
        return
    prepared, classifier = prepared_and_judge(images, work / str(params.data.image_size), params)
    device = set_up_device(params.train)
    origin = ALL[name].weights_of or name
    tensors, trained = trained_weights(work / "trained", origin, params, prepared, budget, seed)
    model = fresh_model(name, params, seed)
    model.load_state_dict(tensors)
    model = InPrecision(model.to(device), params.train, device).eval()
    header = CheckpointHeader(
        model=params.model,
        image_size=params.data.image_size,
        image_channels=3,
        likelihood=params.train.likelihood,
        binarization=params.train.binarization,
        crop=None,
        fingerprint="",
    )
    mirrors = params.train.horizontal_flip
    evaluation = evaluate(
        model, header, classifier.to(device), prepared, evaluation_params(params), horizontal_flip=mirrors, seed=seed
    )
    compared = evaluation.tables["samplers.csv"].set_index("sampler")
    samplers = compared["frechet_distance"]
    drawn = samplers.loc[list(evaluation.priors.priors)]
    facts = {
        **trained.hardware,
        "length": budget.name,
        "contender": name,
        "seed": seed,
        "num_threads": params.train.num_threads,
        "images_seen": trained.images_seen,
        "training_seconds": trained.seconds,
        "num_weights": sum(weight.numel() for weight in model.parameters()),
        **trained.summary,
        **evaluation.metrics,
        "squared_error_plus_kl": evaluation.metrics["squared_error"] + evaluation.metrics["kl_nats"],
        "best_sampler": str(drawn.idxmin()),
        "best_frechet_distance": float(drawn.min()),
        **{f"frechet_distance_{sampler}": value for sampler, value in samplers.items()},
        **{f"{key}_reconstructions": compared[key]["reconstructions"] for key in SHOWN},
        **second_opinion(work / str(params.data.image_size), model, evaluation, prepared),
        **edits_by_strength(evaluation),
    }
    write_json(target, facts)
    print(json.dumps(facts), flush=True)


def trained_weights(
    folder: Path, name: str, params: Params, prepared: PreparedSet, budget: Budget, seed: int
) -> tuple[dict[str, Tensor], Trained]:
    """A contender's weights, trained or sharpened if they are missing."""
    weights = folder / f"{budget.name}-{name}-{seed}.safetensors"
    if not weights.exists() and (plain := ALL[name].sharpens):
        plain_params = params_of(ALL[plain], params.train.num_threads)
        training = replace(budget, sharpen_epochs=None)
        start = trained_weights(folder, plain, plain_params, prepared, training, seed)
        sharpen_one(weights, *start, params, prepared, seed)
    elif not weights.exists():
        train_one(weights, name, params, prepared, budget, seed)
    tensors, trained = read_tensors(weights, Trained, remedy="run this again")
    if trained.params != determining(params):
        raise UserError(f"{weights} was trained with other params: remove it and run this again")
    return tensors, trained


def determining(params: Params) -> str:
    """The params that determine the weights, as JSON."""
    sections = {"model", "train"} | ({"sharpen"} if params.sharpen.epochs else set())
    return params.model_dump_json(include=sections, exclude={"model": {"refinement_steps"}})


def sharpen_one(
    target: Path, tensors: dict[str, Tensor], plain: Trained, params: Params, prepared: PreparedSet, seed: int
) -> None:
    """Sharpen a trained contender and save its weights. Seconds are of the sharpening alone."""
    row = {
        "epoch": 1,
        "train_loss": plain.summary["best_train_loss"],
        "validation_loss": plain.summary["best_validation_loss"],
        "skipped_steps": plain.summary["total_skipped_steps"],
    }
    start = Progress([row], {f"best.{name}": tensor for name, tensor in tensors.items()})
    begin = time.process_time()
    images = prepared.images("train"), prepared.images("validation")
    one_epoch = params.train.model_copy(update={"epochs": 1})  # as `start` has one row
    model = new_model(params.model, params.data.image_size, 3, seed=seed)
    device = set_up_device(params.train)
    result = sharpen(model, Setup(*images, one_epoch, device, seed=seed), params.sharpen, start=start)
    sharpened = Trained(
        params=determining(params),
        hardware=hardware(),
        images_seen=plain.images_seen + params.sharpen.epochs * len(images[0]),
        seconds=round(time.process_time() - begin),
        summary=result.summary(),
    )
    write_tensors(target, result.model.state_dict(), sharpened)


def train_one(target: Path, name: str, params: Params, prepared: PreparedSet, budget: Budget, seed: int) -> None:
    """Train one contender and save its weights, since measuring takes long too and may change."""
    train_images = prepared.images("train")
    num_images = budget.num_images
    if num_images is None:
        rate = images_per_second(partial(fresh_model, name, params, seed), train_images, params.train)
        num_images = int(MARGIN * 60 * budget.minutes * rate)
    order, epochs = epochs_of(num_images, len(train_images), seed)
    warmup = min(params.train.kl_warmup_epochs, WARMUP_SHARE * epochs)
    train_params = params.train.model_copy(update={"epochs": epochs, "kl_warmup_epochs": warmup})
    start = time.monotonic()
    split = train_images[order], prepared.images("validation")
    setup = Setup(*split, train_params, set_up_device(train_params), seed=seed)
    result = train(fresh_model(name, params, seed), setup)
    trained = Trained(
        params=determining(params),
        hardware=hardware(),
        images_seen=epochs * len(order),
        seconds=round(time.monotonic() - start),
        summary=result.summary(),
    )
    write_tensors(target, result.model.state_dict(), trained)


def fresh_model(name: str, params: Params, seed: int) -> VAE:
    """A contender's model with its initial weights."""
    if name != "pythae":
        return new_model(params.model, params.data.image_size, 3, seed=seed)
    torch.manual_seed(seed)
    return PythaeVAE(params.model)


def second_opinion(work: Path, model: VAE, evaluation: Evaluation, prepared: PreparedSet) -> dict[str, float]:
    """Fréchet distances of reconstructions and samples to held-out images, in the features of the second judge."""
    judge = second_judge(work / "second-judge.safetensors", prepared)
    images = np.array(prepared.images("test"))
    real = judge.features(images)
    prior = evaluation.priors.priors[evaluation.priors.best]
    latents = {
        "reconstructions": encode_all(model, images).mean,
        "samples": prior.sample(len(images), torch.Generator().manual_seed(0)),
    }
    pictures = {name: decode_all(model, latent) for name, latent in latents.items()}
    return {
        f"second_frechet_distance_{name}": frechet_distance(judge.features(decoded), real)
        for name, decoded in pictures.items()
    }


def edits_by_strength(evaluation: Evaluation) -> dict[str, float]:
    """Success and leakage of the best method at each strength, and of the control; means over attributes.

    At the strength chosen for each attribute nearly all edits of a good model succeed, so that one number says little.
    """
    means = evaluation.tables["edits.csv"].groupby(["method", "strength"])[["success", "leakage"]].mean()
    own, control = means.loc[evaluation.directions.best], means.loc[RANDOM]
    return {
        "edit_success_over_strengths": float(own["success"].mean()),
        "edit_leakage_over_strengths": float(own["leakage"].mean()),
        "edit_success_over_strengths_random": float(control["success"].mean()),
        **{f"edit_{name}_at_{strength:g}": value for strength, row in own.iterrows() for name, value in row.items()},
    }


def epochs_of(num_seen: int, num_images: int, seed: int) -> tuple[NDArray[np.int64], int]:
    """The images of an epoch and the number of epochs, so that `num_seen` images are seen in all.

    An epoch has each image once and some twice, or only some of them if there is no time for all.
    """
    epochs = max(1, num_seen // num_images)
    order = np.random.default_rng(seed).permutation(num_images)
    return np.resize(order, num_seen // epochs), epochs


def params_of(contender: Contender, num_threads: int | None = None, sharpen_epochs: int | None = None) -> Params:
    """The params of a contender on the benchmark's images, with other numbers of threads and epochs if given."""
    tree = yaml.safe_load((ROOT / contender.preset).read_text(encoding="utf-8"))
    own = {"data.source": "celeba", "data.num_images": NUM_IMAGES, "data.image_size": contender.image_size}
    own |= {"data.crop": None, "data.split": "official", **contender.overrides}
    own |= {"train.num_threads": num_threads} if num_threads else {}
    own |= {"sharpen.epochs": sharpen_epochs} if sharpen_epochs is not None else {}
    for key, value in own.items():
        section, _, last = key.partition(".")
        tree[section][last] = value
    tree["train"] |= NATIVE
    return parse_params(tree, name=contender.preset)


def evaluation_params(params: Params) -> EvaluateParams:
    """The same for all contenders, except for the weight in the original's directions."""
    return EvaluateParams(
        split="test",
        batch_size=100,
        num_importance_samples=8,
        num_samples=1000,
        temperature=params.evaluate.temperature,
        attributes=("Eyeglasses", "Smiling", "Male", "Blond_Hair"),
        strengths=(0.5, 1.0, 2.0, 3.0),
        num_edited_images=40,
        original_lambda=params.evaluate.original_lambda,
        inception_weights=None,
    )


def prepared_and_judge(images: Path, work: Path, params: Params) -> tuple[PreparedSet, Classifier]:
    """The prepared images of one size and their classifier, made if they are missing."""
    folder = work / "prepared"
    if not folder.exists():
        source = work / "celeba"
        source.mkdir(parents=True)
        for name in ("img_align_celeba", "list_attr_celeba.txt"):
            (source / name).symlink_to((images / name).resolve())
        files = sorted(path.name for path in (images / "img_align_celeba").iterdir())[:NUM_IMAGES]
        parts = np.digitize(np.arange(len(files)), [NUM_TRAIN, NUM_TRAIN + NUM_VALIDATION])
        lines = "".join(f"{name} {part}\n" for name, part in zip(files, parts, strict=True))
        (source / "list_eval_partition.txt").write_text(lines)
        data = params.data.model_copy(update={"root": str(source)})
        prepare(open_source(data, params.seed), data, params.seed, folder)
    prepared = PreparedSet(folder)
    judge = work / JUDGE
    if not judge.exists():
        tables = prepared.images("train"), prepared.attributes("train")
        device = set_up_device(params.train)
        schooling = params.classifier.model_copy(update={"epochs": JUDGE_EPOCHS})
        classifier = train_classifier(
            *tables,
            schooling,
            params.train.precision,
            device,
            horizontal_flip=params.train.horizontal_flip,
            seed=params.seed,
        )
        save_classifier(judge, classifier, data_digest=prepared.digest)
    return prepared, load_classifier(judge, data_digest=prepared.digest)


def images_per_second(fresh: Callable[[], VAE], images: NDArray[np.uint8], params: TrainParams) -> float:
    """Training speed: the best of some short trainings, since other load can only slow them down."""
    some = params.model_copy(update={"epochs": 1, "max_skipped_steps": PROBED_IMAGES})
    rates = []
    for _ in range(NUM_PROBES):
        start = time.monotonic()
        train(fresh(), Setup(images[:PROBED_IMAGES], images[:2], some, set_up_device(some), seed=0))
        rates.append(PROBED_IMAGES / (time.monotonic() - start))
    return max(rates)


def table() -> pd.DataFrame:
    """One row for each contender and length of training: medians over the seeds, with the extremes in brackets."""
    runs = pd.DataFrame([json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS / "quality").glob("*.json")])
    runs["order"] = runs["contender"].map(list(ALL).index)
    rows = []
    for (length, _, name), group in runs.groupby(["length", "order", "contender"]):
        cells = {column: spread(group[column], digits) for column, digits in COLUMNS.items()}
        title = ALL[str(name)].title
        rows.append({"length": length, "contender": title, "seeds": len(group), **cells})
    return pd.DataFrame(rows)


def as_markdown(compared: pd.DataFrame) -> str:
    """One table for each length of training, with one column for each contender."""
    parts = []
    for length, group in compared.groupby("length", sort=False):
        rows = {name: group[name].astype(str) for name in group.columns.drop(["length", "contender"])}
        lines = [f"| {length} | {' | '.join(group['contender'])} |", f"|---|{'---:|' * len(group)}"]
        parts.append("\n".join(lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]))
    return "\n\n".join(parts)


def spread(values: "pd.Series[float]", digits: int) -> str:
    """The median, with the extremes if there are several values."""
    median, least, most = (f"{value:.{digits}f}" for value in (values.median(), values.min(), values.max()))
    return median if len(values) == 1 else f"{median} ({least} to {most})"


if __name__ == "__main__":
    main()
