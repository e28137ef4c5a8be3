"""What MLflow runs when it serves a published model: image files in, PNG files out.

MLflow copies this file beside the weights and executes it to load the model ("models from code"); nothing is pickled.
It uses the public API alone, since the code beside it is that of the published state, which may be older.
"""

import io
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel
from numpy.typing import NDArray
from PIL import Image

import facevae
from facevae.errors import UserError

OPERATIONS = ("reconstruct", "edit", "sample")


class ServedModel(PythonModel):
    """The operations of `facevae.load`, chosen by the param `operation`."""

    def load_context(self, context: Any) -> None:
        """Open the weights, the priors and the directions."""
        paths = context.artifacts
        self._model = facevae.load(paths["vae"], priors=paths["priors"], directions=paths["directions"])

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """One PNG file for each image file in the column `image`, or for each sample.

        Raises
        ------
        MlflowException
            An image or param cannot be used. A server answers with status 400 and the message.
        """
        try:
            pictures = self._pictures(model_input, params or {})
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return pd.DataFrame({"image": [_png_of(picture) for picture in pictures]})

    def _pictures(self, model_input: pd.DataFrame, params: dict[str, Any]) -> NDArray[np.uint8]:
        """Pictures (N, height, width, channels)."""
        operation = params["operation"]
        if operation not in OPERATIONS:
            raise UserError(f"operation: {operation!r} is unknown; use one of {', '.join(OPERATIONS)}")
        if operation == "sample":
            return self._model.sample(params["num_samples"], seed=params["seed"], prior=params["prior"])
        images = [_open(content) for content in model_input["image"]]
        if operation == "reconstruct":
            return self._model.reconstruct(images)
        added, removed = (dict.fromkeys(params[key], params["strength"]) for key in ("add", "remove"))
        return self._model.edit(images, add=added, remove=removed, method=params["method"])


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content))
    except OSError as error:
        raise UserError(f"image: {len(content)} bytes are no image file ({error}); send a file in base64") from error


def _png_of(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(buffer, "png")
    return buffer.getvalue()


mlflow.models.set_model(ServedModel())
