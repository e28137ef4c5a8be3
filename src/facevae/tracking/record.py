"""Writing a state's results to its MLflow run, adding what is missing and changing nothing that is there."""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from facevae.config.paths import EDITOR, EPOCHS, MODEL, PREPARED
from facevae.storage.tables import round_number
from facevae.tracking.descriptions import describe_run
from facevae.tracking.image_grid import ImageGrid, Pictures
from facevae.tracking.outputs import Kept, Outputs, Point
from facevae.tracking.state import State, flatten
from facevae.tracking.store import without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FIGURES_TAG = "mlflow.facevae.figures"  # the digest of each figure by its file name, as JSON
PREVIEWS_TAG = "mlflow.facevae.epochs"  # the digest of the folder with the pictures of all epochs
EDITOR_TAG = "mlflow.facevae.editor"  # the digest of the face editor
MODEL_DIGEST_TAG = "dvc.md5"  # of a logged model: the digest of its weights
BATCH_SIZE = 1000  # points that MLflow takes in one call

logger = logging.getLogger(__name__)


class Record:
    """One run. Every method adds what the run lacks and keeps what it has."""

    def __init__(self, client: "MlflowClient", run: "Run", milliseconds: int | None = None) -> None:
        self.name: str = run.info.run_name
        self.changes: list[str] = []  # what was added or set
        self._run_id: str = run.info.run_id
        self._conflicts: list[str] = []
        self._client = client
        self._run = run
        self._milliseconds = milliseconds  # the time of new points, since 1970; None: now
        self._values: dict[tuple[str, int], float] = {}
        for key in run.data.metrics:
            if not key.startswith("system/"):
                history = client.get_metric_history(self._run_id, key)
                self._values.update({(key, point.step): point.value for point in history})

    def set_name(self, name: str) -> None:
        """Rename the run."""
        if self.name != name:
            self._client.update_run(self._run_id, name=name)
            self.changes.append(f"name (was {self.name})")
            self.name = name

    def set_status(self, status: str, end_milliseconds: int | None = None) -> None:
        """Set one of MLflow's statuses."""
        if self._run.info.status != status:
            self._client.set_terminated(self._run_id, status, end_milliseconds)
            self.changes.append(f"status (was {self._run.info.status})")

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, except those with an empty value."""
        from mlflow.entities import RunTag

        new = [RunTag(key, value) for key, value in tags.items() if value and self._run.data.tags.get(key) != value]
        if new:
            self._client.log_batch(self._run_id, tags=new)
            self.changes.append(f"{len(new)} tags")

    def log_state(self, state: State) -> None:
        """Log the params, and the prepared set as a dataset with DVC's digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        params = [
            Param(key, "null" if value is None else without_credentials(str(value)))
            for key, value in flatten(state.params).items()
            if key not in self._run.data.params
        ]
        if params:
            self._client.log_batch(self._run_id, params=params)
            self.changes.append(f"{len(params)} params")
        if self._run.inputs is None or not self._run.inputs.dataset_inputs:
            source = json.dumps({"uri": PREPARED.as_posix()})
            dataset = Dataset(str(state.param("data.source")), state.data_digest, "local", source)
            context = InputTag("mlflow.data.context", "training")
            self._client.log_inputs(self._run_id, [DatasetInput(dataset, [context])])
            self.changes.append("dataset")

    def log_points(self, points: Iterable[Point]) -> None:
        """Log values of metrics at steps, with as many digits as the files have."""
        from mlflow.entities import Metric

        new = []
        for key, step, exact in points:
            value = round_number(exact)
            if (key, step) not in self._values:
                self._values[key, step] = value
                new.append(Metric(key, value, self._milliseconds or int(time.time() * 1000), step))
            else:
                self._compare(f"{key} at step {step}", value, self._values[key, step])
        for start in range(0, len(new), BATCH_SIZE):
            self._client.log_batch(self._run_id, metrics=new[start : start + BATCH_SIZE])
        if new:
            self.changes.append(f"{len(new)} points")

    def log_outputs(self, outputs: Outputs) -> None:
        """Log results of stages, and warn if the run has other values for them."""
        self.log_points(outputs.points)
        if outputs.figures:
            self._log_figures(outputs.figures)
        if outputs.model_digest is not None:
            self._link_model(outputs.model_digest)
        if outputs.previews is not None:
            self._log_previews(outputs.previews)
        if outputs.editor is not None:
            self._log_editor(outputs.editor)
        if self._conflicts:
            number = len(self._conflicts) - 1
            more = f" (and {number} more value(s) differ)" if number else ""
            logger.warning("run %s: %s%s", self.name, self._conflicts[0], more)

    def describe(self) -> None:
        """Bring the description up to date, after all else."""
        if describe_run(self._client, self._run_id):
            self.changes.append("description")

    def log_pictures(self, pictures: Pictures) -> None:
        """Log pictures of epochs."""
        if number := self._grid.log(pictures, self._milliseconds):
            self.changes.append(f"{number} pictures of epochs")

    @cached_property
    def _grid(self) -> ImageGrid:
        return ImageGrid(self._client, self._run_id)

    def _log_previews(self, previews: Kept[Pictures]) -> None:
        """Log the pictures of all epochs, unless neither the work tree nor DVC's cache has them."""
        recorded = self._run.data.tags.get(PREVIEWS_TAG)
        if recorded is not None and len(self._grid):
            self._compare(EPOCHS.as_posix(), previews.digest, recorded)
        elif (pictures := previews.read()) is not None:
            self.log_pictures(pictures)
            self._client.set_tag(self._run_id, PREVIEWS_TAG, previews.digest)

    def _log_figures(self, figures: Mapping[str, bytes]) -> None:
        stored = {file.path for file in self._client.list_artifacts(self._run_id)}
        recorded = json.loads(self._run.data.tags.get(FIGURES_TAG, "{}"))
        new = {}
        for name, content in figures.items():
            digest = hashlib.md5(content).hexdigest()
            if name in stored and name in recorded:
                self._compare(name, digest, recorded[name])
            else:
                new[name] = digest
        if new:
            with tempfile.TemporaryDirectory() as folder:
                for name in new:
                    (Path(folder) / name).write_bytes(figures[name])
                self._client.log_artifacts(self._run_id, folder)  # at the top: MLflow compares no images in folders
            self._client.set_tag(self._run_id, FIGURES_TAG, json.dumps(recorded | new, sort_keys=True))
            self.changes.append(f"{len(new)} figures")

    def _log_editor(self, editor: Kept[bytes]) -> None:
        """Log the face editor, unless neither the work tree nor DVC's cache has it."""
        stored = {file.path for file in self._client.list_artifacts(self._run_id)}
        if EDITOR.name in stored and EDITOR_TAG in self._run.data.tags:
            self._compare(EDITOR.name, editor.digest, self._run.data.tags[EDITOR_TAG])
        elif (content := editor.read()) is not None:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / EDITOR.name).write_bytes(content)
                self._client.log_artifacts(self._run_id, folder)
            self._client.set_tag(self._run_id, EDITOR_TAG, editor.digest)
            self.changes.append("face editor")

    def _link_model(self, digest: str) -> None:
        """Link a logged model that stands for the weights, which stay in DVC."""
        import mlflow
        from mlflow.entities import LoggedModelOutput

        linked = self._run.outputs.model_outputs if self._run.outputs is not None else []
        if linked:
            recorded = self._client.get_logged_model(linked[0].model_id).tags.get(MODEL_DIGEST_TAG)
            self._compare(MODEL.as_posix(), digest, recorded)
            return
        experiment_id = self._run.info.experiment_id
        existing = self._client.search_logged_models([experiment_id], f"source_run_id = '{self._run_id}'")
        user = self._run.data.tags.get("mlflow.user", "")  # MLflow's default is the name it signs in with
        model = next(iter(existing), None) or mlflow.create_external_model(
            name=MODEL.stem,
            source_run_id=self._run_id,
            experiment_id=experiment_id,
            model_type="VAE",
            tags={"dvc.path": MODEL.as_posix(), MODEL_DIGEST_TAG: digest, "mlflow.user": user},
        )
        self._client.log_outputs(self._run_id, [LoggedModelOutput(model.model_id, step=0)])
        self.changes.append("model")

    def _compare(self, name: str, value: object, recorded: object) -> None:
        if value != recorded:
            self._conflicts.append(f"{name} is {value}, but {recorded} is on record for the same state of the pipeline")
