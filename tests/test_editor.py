"""The face editor's export: what the page holds equals the model, and no name can break out of it."""

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
import wasmtime
from conftest import disc_images, small_params
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from facevae.crop import Crop
from facevae.editor import page
from facevae.editor.network import Operation, TensorFile, decoder_operations, encoder_operations
from facevae.editor.page import build_page
from facevae.evaluate.directions import FittedDirections
from facevae.model.checkpoint import CheckpointHeader
from facevae.model.vae import VAE, new_model
from facevae.priors.comparison import PriorScores
from facevae.priors.fitting import FittedPriors
from facevae.priors.normal import StandardNormal

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch": {"normalization": "batch"},
    "group": {"normalization": "group", "channels": [12, 16]},
    "odd kernels": {"kernel_size": 3, "decoder_kernel_size": 3, "strides": [1, 2], "normalization": "batch"},
    "other strides": {"kernel_size": 5, "decoder_kernel_size": 7, "strides": [4, 2]},
    "residual": {"residual_blocks": 2},
    "residual, batch": {"residual_blocks": 1, "normalization": "batch", "dropout": 0.2},
    "residual, group": {"residual_blocks": 1, "normalization": "group"},
    "uneven widths": {"channels": [5, 11], "normalization": "batch", "negative_slope": 0.2},
}

DIRECTIONS = dict(
    zip(("Smiling", "Pale_Skin"), torch.randn(2, 3, generator=torch.Generator().manual_seed(2)), strict=True)
)


def trained_looking(image_channels: int = 3, image_size: int = 8, **changes: Any) -> VAE:
    """A model in evaluation mode: all layers do something, latents tell images apart, pictures have all intensities."""
    params = small_params(data__image_size=image_size, **{f"model__{key}": value for key, value in changes.items()})
    model = new_model(params.model, image_size, image_channels, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.from_numpy(disc_images(50, image_size, image_channels)).permute(0, 3, 1, 2) / 255
    latents = torch.randn(50, model.params.latent_dim, generator=generator)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:  # biases, and scales of normalisations
                tensor.add_(torch.rand(tensor.shape, generator=generator) - 0.5)
            if not tensor.any():  # the last weights of residual blocks
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 10)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        model.train().decode(latents), model.encode(images)  # for the running moments of batch normalisation
        model.eval()
        *_, last = (layer for layer in model.decoder.modules() if isinstance(layer, nn.ConvTranspose2d))
        for layer, values in ((last, model.decode_logits(latents)), (model.encoder.mean, model.encode(images).mean)):
            assert layer.bias is not None
            layer.weight.mul_(2 / values.std())
            layer.bias.sub_(values.mean()).mul_(2 / values.std())
    return model


def header_of(model: VAE, **changes: Any) -> CheckpointHeader:
    trained = {
        "likelihood": "gaussian",
        "binarization": "none",
        "crop": Crop(side=148, raw_side=178),
        "fingerprint": "0123456789abcdef",
    }
    shape = {"image_size": model.image_size, "image_channels": model.image_channels}
    return CheckpointHeader.model_validate({"model": model.params, **shape, **trained, **changes})


def priors_of(model: VAE) -> FittedPriors:
    """Priors of which only the normal one is used."""
    normal = StandardNormal(model.params.latent_dim)
    unused: Any = None
    return FittedPriors(
        normal, unused, unused, {"normal": PriorScores(heldout_nats=0, validation_frechet_distance=0, copied_share=0)}
    )


def page_of(model: VAE, directions: Mapping[str, Tensor] | None = None, **header: Any) -> str:
    """A page with sliders for these directions, or for `DIRECTIONS`; keywords change the model's header."""
    chosen = dict(DIRECTIONS if directions is None else directions)
    fitted = FittedDirections({"original": {}, "difference": {}, "balanced": {}, "joint": chosen}, "joint")
    return build_page(model, header_of(model, **header), priors_of(model), fitted, seed=0)


def tensor_of(tensors: TensorFile, reference: dict[str, Any]) -> Tensor:
    content = b"".join(tensors.parts)
    array: NDArray[Any] = np.frombuffer(content, reference["type"], reference["length"], reference["offset"])
    return torch.from_numpy(array.astype(np.float32))


def run(operations: list[Operation], maps: Tensor, tensors: TensorFile) -> Tensor:
    """Carry out the operations on maps (batch, channel, height, width) by torch's own functions."""
    for operation in operations:
        parts = {key: tensor_of(tensors, value) for key, value in operation.items() if isinstance(value, dict)}
        match operation["type"]:
            case "convolution":
                kernel, stride, padding = (operation[key] for key in ("kernel", "stride", "padding"))
                outputs = len(parts["scale"])
                weights = parts["weights"].reshape(kernel, kernel, -1, outputs) * parts["scale"]
                spare = weights.shape[2] - maps.shape[1]
                maps = functional.pad(maps, (0, 0, 0, 0, 0, spare))
                if operation["transposed"]:
                    sizes = (
                        stride,
                        padding,
                        stride + 2 * padding - kernel,
                    )  # the last makes the size stride times as large
                    maps = functional.conv_transpose2d(maps, weights.permute(2, 3, 0, 1), parts["bias"], *sizes)
                else:
                    maps = functional.conv2d(maps, weights.permute(3, 2, 0, 1), parts["bias"], stride, padding)
            case "affine":
                maps = maps * parts["scale"][:, None, None] + parts["shift"][:, None, None]
            case "groupNormalization":
                own = operation["channels"]
                scale, shift = parts["scale"][:own], parts["shift"][:own]
                normal = functional.group_norm(maps[:, :own], operation["groups"], scale, shift, operation["epsilon"])
                maps = functional.pad(normal, (0, 0, 0, 0, 0, maps.shape[1] - own))
            case "residual":
                maps = maps + run(operation["change"], maps, tensors)
        maps = functional.leaky_relu(maps, operation.get("slope", 1.0))
    return maps


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("image_channels", [1, 3])
def test_operations_equal_the_network(changes: dict[str, Any], image_channels: int) -> None:
    model = trained_looking(image_channels, **changes)
    generator = torch.Generator().manual_seed(3)
    latent, images = torch.randn(4, 3, generator=generator), torch.rand(4, image_channels, 8, 8, generator=generator)
    tensors = TensorFile()
    decoder, encoder = decoder_operations(model, tensors), encoder_operations(model, tensors)
    with torch.no_grad():
        logits, means = model.decode_logits(latent), model.encode(images).mean
        ones = torch.ones(4, 1)
        decoded = run(decoder, torch.cat([latent, ones], dim=1)[..., None, None], tensors)[:, :image_channels]
        encoded = run(encoder, images, tensors)[:, :3, 0, 0]
    torch.testing.assert_close(decoded, logits, rtol=0, atol=2e-3 * float(logits.abs().max()))
    torch.testing.assert_close(encoded, means, rtol=0, atol=2e-3 * float(means.abs().max()))


def test_batch_normalization_takes_no_operation_of_its_own() -> None:
    model = trained_looking(normalization="batch")
    assert {operation["type"] for operation in decoder_operations(model, TensorFile())} == {"convolution"}


def test_kernel_is_assembled_from_its_text() -> None:
    folder = files(page.__package__)
    text = folder.joinpath("gather_matmul.wat").read_text()
    assert folder.joinpath("gather_matmul.wasm").read_bytes() == wasmtime.wat2wasm(text), "run `make kernel`"


def test_same_model_gives_same_page() -> None:
    assert page_of(trained_looking()) == page_of(trained_looking())


class Scripts(HTMLParser):
    """The texts of a page's scripts by id; the last one has none."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self._id: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._id = (dict(attributes).get("id") or "") if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._id is not None:
            self.texts[self._id] = self.texts.get(self._id, "") + data

    def handle_endtag(self, _tag: str) -> None:
        self._id = None


def test_names_of_attributes_cannot_break_out_of_the_page() -> None:
    names = ("</script><script>alert(1)</script>", "{{weights}}", '"; alert(1); "', "<!--<script>", "\u2028é")
    scripts = Scripts(page_of(trained_looking(), dict.fromkeys(names, torch.ones(3)))).texts
    assert list(scripts) == list(Scripts(page_of(trained_looking())).texts)
    described = json.loads(scripts["model"])
    assert tuple(direction["attribute"] for direction in described["directions"]) == names


def test_page_names_no_other_address() -> None:
    text = page_of(trained_looking())
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", Scripts(text).texts[""])
    assert not re.findall(r"\b(?:src|href|action)=[\"']?[\w/]|url\(|@import", text)


def test_page_that_is_too_large_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_BYTES", 1000)
    text = page_of(trained_looking())
    assert len(text) < 2000
    assert "too large" in text
    assert "{{" not in text


def test_draws_come_from_the_best_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained_looking()
    monkeypatch.setattr(page, "NUM_FACES", 5)
    described = json.loads(Scripts(page_of(model)).texts["model"])
    assert described["prior"] == "normal"
    assert described["faces"]["length"] == 5 * 3
