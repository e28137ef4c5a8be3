"""Assemble the page: template, style, scripts, weights and faces in one HTML file without references to others."""

import base64
import json
import re
from importlib.resources import files

import numpy as np
import torch

from facevae.editor.network import TensorFile, decoder_operations, encoder_operations
from facevae.evaluate.directions import FittedDirections
from facevae.model.checkpoint import CheckpointHeader
from facevae.model.vae import VAE
from facevae.priors.fitting import FittedPriors

NUM_FACES = 1000  # draws from the best prior, among which the page chooses
MAX_BYTES = 64 * 2**20  # of a page; browsers take seconds to open a larger one


def build_page(
    model: VAE, header: CheckpointHeader, priors: FittedPriors, directions: FittedDirections, *, seed: int
) -> str:
    """The editor of a model on the CPU, in evaluation mode; the same arguments give the same text.

    Parameters
    ----------
    priors
        The page holds draws from the best of them, since it does not know their formulas.
    directions
        Those of the best method become the sliders.
    seed
        Determines the draws.
    """
    tensors = TensorFile()
    faces = priors.priors[priors.best].sample(NUM_FACES, torch.Generator().manual_seed(seed))
    vectors = directions.by_method[directions.best]
    description = {
        "fingerprint": header.fingerprint,
        "imageSize": header.image_size,
        "channels": header.image_channels,
        "latentDim": header.model.latent_dim,
        "crop": None if header.crop is None else header.crop.model_dump(),
        "binarization": header.binarization,
        "prior": priors.best,
        "method": directions.best,
        "faces": tensors.add(faces.numpy().astype(np.float16)),
        "directions": [{"attribute": name, "values": tensors.add(vector.numpy())} for name, vector in vectors.items()],
        "decoder": decoder_operations(model, tensors),
        "encoder": encoder_operations(model, tensors),
    }
    page = _filled(
        "editor.html",
        style=_text("editor.css"),
        engine=_text("engine.js"),
        faces=_text("faces.js"),
        photograph=_text("photograph.js"),
        editor=_text("editor.js"),
        model=json.dumps(description).replace("<", "\\u003c"),  # a name must not end the script
        kernel=_base64(files(__package__).joinpath("gather_matmul.wasm").read_bytes()),
        weights=_base64(b"".join(tensors.parts)),
    )
    if len(page) <= MAX_BYTES:
        return page
    return _filled("too_large.html", size=f"{len(page) / 2**20:.0f}", limit=f"{MAX_BYTES / 2**20:.0f}")


def _filled(name: str, **parts: str) -> str:
    """A template, with each `{{part}}` replaced."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _text(name))


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
