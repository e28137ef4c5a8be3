"""Writing to one MLflow run so that what is there already is neither doubled nor changed."""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from facevae.config.paths import MODEL, PREPARED
from facevae.storage.tables import round_number
from facevae.tracking.outputs import Outputs, Point
from facevae.tracking.secrets import without_credentials
from facevae.tracking.state import State, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FIGURES_TAG = "facevae.figures.png"  # the digest of each figure by its file name, as JSON
MODEL_DIGEST_TAG = "dvc.md5"  # of a logged model: which weights it stands for
BATCH_SIZE = 1000  # points that MLflow takes in one call

logger = logging.getLogger(__name__)


class Record:
    """One run; every method adds what the run lacks and leaves what it has.

    Parameters
    ----------
    milliseconds
        The time that new points get, since 1970; None: now.

    Attributes
    ----------
    changes
        What was added or set.
    """

    def __init__(self, client: "MlflowClient", run: "Run", milliseconds: int | None = None) -> None:
        self.run_id: str = run.info.run_id
        self.name: str = run.info.run_name
        self.changes: list[str] = []
        self._conflicts: list[str] = []
        self._client = client
        self._run = run
        self._milliseconds = milliseconds
        self._values: dict[tuple[str, int], float] = {}
        for key in run.data.metrics:
            if not key.startswith("system/"):
                history = client.get_metric_history(self.run_id, key)
                self._values.update({(key, point.step): point.value for point in history})

    def set_name(self, name: str) -> None:
        """Call the run by another name."""
        if self.name != name:
            self._client.update_run(self.run_id, name=name)
            self.changes.append(f"name, which was {self.name}")
            self.name = name

    def set_status(self, status: str, end_milliseconds: int | None = None) -> None:
        """Set one of MLflow's statuses."""
        if self._run.info.status != status:
            self._client.set_terminated(self.run_id, status, end_milliseconds)
            self.changes.append(f"status, which was {self._run.info.status}")

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; those of an empty value are left as they are."""
        from mlflow.entities import RunTag

        new = {key: value for key, value in tags.items() if value and self._run.data.tags.get(key) != value}
        if new:
            self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in new.items()])
            self.changes.append(f"{len(new)} tags")

    def log_state(self, state: State) -> None:
        """The params, and the prepared set as a dataset under DVC's digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        params = {key: value for key, value in flatten(state.params).items() if key not in self._run.data.params}
        if params:
            texts = {key: "null" if value is None else without_credentials(str(value)) for key, value in params.items()}
            entries = [Param(key, text) for key, text in texts.items()]
            self._client.log_batch(self.run_id, params=entries)
            self.changes.append(f"{len(params)} params")
        if self._run.inputs is None or not self._run.inputs.dataset_inputs:
            source = json.dumps({"uri": PREPARED.as_posix()})
            dataset = Dataset(str(state.param("data.source")), state.data_digest, "local", source)
            context = InputTag("mlflow.data.context", "training")
            self._client.log_inputs(self.run_id, [DatasetInput(dataset, [context])])
            self.changes.append("dataset")

    def log_points(self, points: Iterable[Point]) -> None:
        """Values of metrics at steps, to as many digits as the files have."""
        from mlflow.entities import Metric

        new = []
        for key, step, exact in points:
            value = round_number(exact)
            if (key, step) not in self._values:
                self._values[key, step] = value
                new.append(Metric(key, value, self._milliseconds or int(time.time() * 1000), step))
            elif self._values[key, step] != value:
                self._report_conflict(f"{key} at step {step}", value, self._values[key, step])
        for start in range(0, len(new), BATCH_SIZE):
            self._client.log_batch(self.run_id, metrics=new[start : start + BATCH_SIZE])
        if new:
            self.changes.append(f"{len(new)} points")

    def log_outputs(self, outputs: Outputs) -> None:
        """All that stages have left behind, with a warning where the run has it otherwise."""
        self.log_points(outputs.points)
        if outputs.figures:
            self._log_figures(outputs.figures)
        if outputs.model_digest is not None:
            self._link_model(outputs.model_digest)
        if self._conflicts:
            number = len(self._conflicts) - 1
            more = f" (and {number} more value(s) differ)" if number else ""
            logger.warning("run %s: %s%s", self.name, self._conflicts[0], more)

    def _log_figures(self, figures: Mapping[str, bytes]) -> None:
        stored = {file.path for file in self._client.list_artifacts(self.run_id)}
        recorded = json.loads(self._run.data.tags.get(FIGURES_TAG, "{}"))
        digests = {name: hashlib.md5(content).hexdigest() for name, content in figures.items()}
        new = {name: digest for name, digest in digests.items() if name not in stored or name not in recorded}
        for name in digests:
            if name not in new and digests[name] != recorded[name]:
                self._report_conflict(name, digests[name], recorded[name])
        if new:
            with tempfile.TemporaryDirectory() as folder:
                for name in new:
                    (Path(folder) / name).write_bytes(figures[name])
                self._client.log_artifacts(self.run_id, folder)  # not below a folder: MLflow compares none of those
            self._client.set_tag(self.run_id, FIGURES_TAG, json.dumps(recorded | new, sort_keys=True))
            self.changes.append(f"{len(new)} figures")

    def _link_model(self, digest: str) -> None:
        """A logged model that stands for the weights, which stay where DVC holds them."""
        import mlflow
        from mlflow.entities import LoggedModelOutput

        linked = self._run.outputs.model_outputs if self._run.outputs is not None else []
        if linked:
            recorded = self._client.get_logged_model(linked[0].model_id).tags.get(MODEL_DIGEST_TAG)
            if recorded != digest:
                self._report_conflict(MODEL.as_posix(), digest, recorded)
            return
        experiment_id = self._run.info.experiment_id
        made = self._client.search_logged_models([experiment_id], f"source_run_id = '{self.run_id}'")
        user = self._run.data.tags.get("mlflow.user", "")  # MLflow itself would write down by whose name it signs in
        model = next(iter(made), None) or mlflow.create_external_model(
            name=MODEL.stem,
            source_run_id=self.run_id,
            experiment_id=experiment_id,
            model_type="VAE",
            tags={"dvc.path": MODEL.as_posix(), MODEL_DIGEST_TAG: digest, "mlflow.user": user},
        )
        self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
        self.changes.append("model")

    def _report_conflict(self, name: str, value: object, recorded: object) -> None:
        self._conflicts.append(f"{name} is {value}, but for this same state of the pipeline {recorded} is on record")
