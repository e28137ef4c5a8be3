"""Images per second of our training loop, the original's loop, pythae's trainer and Lightning's.

All train the same networks on the same faces at 64 x 64, each in its own process. The original's loop decodes JPEGs in
two DataLoader processes, in float32 and NCHW, and reads three numbers a step. The others have their images in memory.
bfloat16 is measured only where the processor has it: emulated, a single step takes minutes.
"""

import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from gpu import flops_per_image, peak_flops
from measuring import NATIVE, Row, alone, compared, interleaved
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from facevae.config.params import parse_params
from facevae.config.schema import Params
from facevae.data.image_file import fit_image, read_image
from facevae.device import memory_format, set_up_device, uses_bfloat16
from facevae.model.pixels import to_unit_range
from facevae.model.vae import feature_shape, largest_map_bytes, new_model
from facevae.train.loop import Progress, Setup, train
from facevae.train.step import Objective, Optimization

IMAGE_SIZE = 64
PEAK_SIZE = 2048  # side of the square matrices that give the peak


@dataclass(frozen=True)
class Subject:
    """A model to train, with the steps in an epoch and the repeats, which are fewer for a large model."""

    title: str
    preset: str
    num_steps: int
    num_repeats: int


SUBJECTS = (
    Subject("demo's model", "params.yaml", num_steps=16, num_repeats=7),
    Subject("documented", "presets/celeba.yaml", num_steps=4, num_repeats=3),
)


class PlainVAE(nn.Module):
    """The same networks in PyTorch's default memory format, with the original's loss."""

    def __init__(self, params: Params) -> None:
        super().__init__()
        self.vae = new_model(params.model, IMAGE_SIZE, 3, seed=0).to(memory_format=torch.contiguous_format)
        self.vae.log_sigma.requires_grad_(False)
        self.feature_shape = feature_shape(params.model, IMAGE_SIZE)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, reconstruction term and KL, means over images (batch, channel, height, width)."""
        posterior = self.vae.encode(images)
        decoder = self.vae.decoder
        features = decoder.features(posterior.at(torch.randn_like(posterior.mean))).unflatten(1, self.feature_shape)
        reconstruction = torch.sigmoid(decoder.blocks(features).float())
        error = functional.mse_loss(reconstruction, images, reduction="sum") / len(images)
        kl = -0.5 * (1 + posterior.log_variance - posterior.mean.square() - posterior.log_variance.exp()).sum(1).mean()
        return error + kl, error, kl


class Faces(Dataset[Tensor]):
    """JPEG files, decoded on access."""

    def __init__(self, files: list[Path]) -> None:
        from torchvision import transforms

        self._files = files
        steps = [transforms.CenterCrop(89), transforms.Resize((IMAGE_SIZE, IMAGE_SIZE)), transforms.ToTensor()]
        self._transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self._files[index]) as image:
            transformed: Tensor = self._transform(image.convert("RGB"))
        return transformed


class Contenders:
    """Ways to train on the same files. Each method returns the images per second of an epoch."""

    def __init__(self, params: Params, files: list[Path]) -> None:
        self.params = params
        self.files = files
        self.images: NDArray[np.uint8] = np.stack([fit_image(read_image(path), IMAGE_SIZE, 3, None) for path in files])
        self._batch_size = params.train.batch_size
        self._num_steps = len(files) // self._batch_size
        self._learning_rate = params.train.learning_rate

    def ours(self, *, deterministic: bool = True, **changes: object) -> float:
        """Our loop, with some of its params changed. Its first epoch is always deterministic."""
        params = self.params.train.model_copy(update={"epochs": 2, "max_skipped_steps": 10**6, **changes})
        ends: list[float] = []

        def note(_: Progress) -> None:
            ends.append(time.perf_counter())
            if not deterministic:
                torch.set_deterministic_debug_mode("default")

        model = new_model(self.params.model, IMAGE_SIZE, 3, seed=0)
        setup = Setup(self.images, self.images[:2], params, set_up_device(params), seed=0)
        train(model, setup, on_epoch=[note])
        return len(self.images) / (ends[1] - ends[0])

    def original(self) -> float:
        """The original's loop."""
        model = PlainVAE(self.params)
        optimizer = torch.optim.Adam(model.vae.parameters(), lr=self._learning_rate)
        loader = DataLoader(
            Faces(self.files),
            self._batch_size,
            shuffle=True,
            num_workers=2,
            multiprocessing_context="fork",  # Linux's default; a spawned process would import torch again
            persistent_workers=True,  # their start is negligible in an epoch of 5,000 steps
        )
        totals, ends = [0.0, 0.0, 0.0], []
        for _ in range(2):
            for images in loader:
                optimizer.zero_grad()
                terms = model(images)
                terms[0].backward()
                optimizer.step()
                totals = [total + term.item() for total, term in zip(totals, terms, strict=True)]
            ends.append(time.perf_counter())
        return len(self.images) / (ends[1] - ends[0])

    def pythae(self) -> float:
        """pythae's trainer."""
        from pythae import models
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
        from pythae.trainers.training_callbacks import TrainingCallback

        logging.getLogger("pythae").setLevel(logging.ERROR)
        plain = PlainVAE(self.params)

        class Encoder(BaseEncoder):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.network = plain.vae.encoder

            def forward(self, images: Tensor) -> Any:
                posterior = self.network(images)
                return ModelOutput(embedding=posterior.mean, log_covariance=posterior.log_variance)

        class Decoder(BaseDecoder):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.network = plain.vae.decoder

            def forward(self, latent: Tensor) -> Any:
                features = self.network.features(latent).unflatten(1, plain.feature_shape)
                return ModelOutput(reconstruction=torch.sigmoid(self.network.blocks(features)))

        ends: list[float] = []

        class Clock(TrainingCallback):  # type: ignore[misc]
            def on_epoch_end(self, *_: object, **__: object) -> None:
                ends.append(time.perf_counter())

        config = models.VAEConfig(
            input_dim=(3, IMAGE_SIZE, IMAGE_SIZE), latent_dim=self.params.model.latent_dim, reconstruction_loss="mse"
        )
        with tempfile.TemporaryDirectory() as folder:
            trainer = BaseTrainer(
                models.VAE(config, Encoder(), Decoder()),
                train_dataset=_pythae_dataset(self._tensor()),
                training_config=BaseTrainerConfig(
                    output_dir=folder,
                    num_epochs=2,
                    per_device_train_batch_size=self._batch_size,
                    learning_rate=self._learning_rate,
                    no_cuda=True,
                ),
                callbacks=[Clock()],
            )
            trainer.train()
        return len(self.images) / (ends[1] - ends[0])

    def lightning(self, precision: str = "32-true") -> float:
        """Lightning's trainer, with everything off that costs time."""
        import pytorch_lightning as lightning

        for name in ("pytorch_lightning", "lightning_utilities"):
            logging.getLogger(name).setLevel(logging.ERROR)
        networks, learning_rate = PlainVAE(self.params), self._learning_rate
        ends: list[float] = []

        class Module(lightning.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.networks = networks

            def training_step(self, batch: list[Tensor], _: int) -> Tensor:
                loss: Tensor
                loss, error, kl = self.networks(batch[0])
                self.log_dict({"loss": loss, "error": error, "kl": kl})
                return loss

            def on_train_epoch_end(self) -> None:
                ends.append(time.perf_counter())

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.Adam(self.parameters(), lr=learning_rate)

        loader = DataLoader(TensorDataset(self._tensor()), self._batch_size, shuffle=True)
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(Module(), loader)
        return len(self.images) / (ends[1] - ends[0])

    def step_and_arithmetic(self, num_epochs: int) -> tuple[float, float]:
        """Median seconds of a step of our loop, and of its mathematics alone: forward, backward, optimisers.

        An epoch of the loop alternates with as many steps of the mathematics on one batch in memory.
        """
        params = self.params.train.model_copy(update={"epochs": num_epochs, "max_skipped_steps": 10**6})
        device = set_up_device(params)
        model = new_model(self.params.model, IMAGE_SIZE, 3, seed=0)
        model.set_memory_format(memory_format(device, largest_map_bytes(model.params, IMAGE_SIZE)))  # as the loop does
        optimizers = [optimizer for optimizer, _ in Optimization(model, params, self._num_steps, device).optimizers]
        objective = Objective(model, params, device)
        images = to_unit_range(self.images[: self._batch_size], device)
        noise = torch.randn(len(images), self.params.model.latent_dim)
        seconds: dict[str, list[float]] = {"step": [], "arithmetic": []}
        start = time.perf_counter()

        def take_turns(_: Progress) -> None:
            nonlocal start
            middle = time.perf_counter()
            for _step in range(self._num_steps):
                for optimizer in optimizers:
                    optimizer.zero_grad()
                objective(images, noise).sum().backward()
                for optimizer in optimizers:
                    optimizer.step(1e-6)
            end = time.perf_counter()
            seconds["step"].append((middle - start) / self._num_steps)
            seconds["arithmetic"].append((end - middle) / self._num_steps)
            start = time.perf_counter()

        trained = new_model(self.params.model, IMAGE_SIZE, 3, seed=0)
        setup = Setup(self.images, self.images[:2], params, set_up_device(params), seed=0)
        train(trained, setup, on_epoch=[take_turns])
        return float(np.median(seconds["step"][1:])), float(np.median(seconds["arithmetic"][1:]))

    def _tensor(self) -> Tensor:
        return to_unit_range(self.images, torch.device("cpu")).contiguous()


def _pythae_dataset(images: Tensor) -> Any:
    from pythae.data.datasets import BaseDataset

    return BaseDataset(images, torch.zeros(len(images)))


def measure(images: Path, root: Path) -> list[Row]:
    """Speed of each subject in each way, and how close our loop comes to the processor's peak."""
    files = sorted((images / "img_align_celeba").iterdir())
    device = torch.device("cpu")
    has_bfloat16 = uses_bfloat16("auto", device)
    peak = peak_flops(PEAK_SIZE, device, torch.float32)
    rows = [Row("product of matrices in float32", peak / 1e9, "GFLOP/s")]
    if has_bfloat16:
        peak, in_float32 = peak_flops(PEAK_SIZE, device, torch.bfloat16), peak
        rows.append(Row("product of matrices in bfloat16", peak / 1e9, "GFLOP/s", "in float32", peak / in_float32))
    for subject in SUBJECTS:
        params = _params(root / subject.preset)
        contenders = Contenders(params, files[: subject.num_steps * params.train.batch_size])
        choices: dict[str, Callable[[], float]] = {
            "our loop": contenders.ours,
            "our loop, not deterministic": partial(contenders.ours, deterministic=False),
            "original's loop": contenders.original,
            "pythae's trainer": contenders.pythae,
            "Lightning's trainer": contenders.lightning,
        }
        if has_bfloat16:
            choices["our loop in float32"] = partial(contenders.ours, precision="float32")
            choices["Lightning's trainer, bf16-mixed"] = partial(contenders.lightning, "bf16-mixed")
        own = f"{subject.title}: our loop"
        rates = interleaved(
            {f"{subject.title}: {name}": partial(alone, choice) for name, choice in choices.items()},
            subject.num_repeats,
        )
        rows += compared(rates, own, "images/s", faster_is="more")
        flops = rates[own] * flops_per_image(params, device)
        rows.append(Row(own, flops / 1e9, "GFLOP/s", "product of matrices", flops / peak))
        step, arithmetic = alone(partial(contenders.step_and_arithmetic, 1 + subject.num_repeats))
        rows.append(
            Row(f"{subject.title}: a step", step * 1e3, "ms", "the share of mathematics in it", arithmetic / step)
        )
    return rows


def _params(path: Path) -> Params:
    """The params of a file, for images of our size."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    tree["data"]["image_size"] = IMAGE_SIZE
    tree["train"] |= {"learning_rate_decay": "none", "learning_rate": 0.0005, "likelihood": "squared_error"}
    tree["train"] |= {"optimizer": "adam", "muon_learning_rate": None, "momentum": None}  # as all contenders have it
    tree["train"] |= NATIVE
    return parse_params(tree, name=path.name)
