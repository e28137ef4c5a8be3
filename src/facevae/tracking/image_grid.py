"""Pictures by name and step, which MLflow's pages show as a grid with a slider."""

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = "images"  # of MlflowClient.log_image, among a run's artifacts
LOGGED = re.compile(rf"{FOLDER}/(?P<name>[^/]+)\+step\+(?P<step>\d+)\+.*\.webp")  # the last file that it writes

Pictures = Mapping[tuple[str, int], bytes]  # PNG files by name and step


class ImageGrid:
    """The pictures of one run; each is logged once."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        paths = [file.path for file in client.list_artifacts(run_id, FOLDER)]
        self._logged = {(match["name"], int(match["step"])) for path in paths if (match := LOGGED.fullmatch(path))}

    def __len__(self) -> int:
        return len(self._logged)

    def log(self, pictures: Pictures, milliseconds: int | None) -> int:
        """Log the pictures that the run lacks; return how many. `milliseconds` is their time since 1970; None: now."""
        new = sorted(pictures.keys() - self._logged, key=lambda key: (key[1], key[0]))
        for name, step in new:
            with Image.open(io.BytesIO(pictures[name, step])) as image:
                self._client.log_image(self._run_id, image, key=name, step=step, timestamp=milliseconds)
            self._logged.add((name, step))
        return len(new)
