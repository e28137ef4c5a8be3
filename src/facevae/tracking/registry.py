"""What MLflow's registry says of a run's model."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

PUBLISHED_TAG = "facevae.published"  # of a run: the versions and aliases of its model


def versions_of(client: "MlflowClient", run: "Run") -> list["ModelVersion"]:
    """The published versions of a run's model, by name, newest first."""
    found = client.search_model_versions(f"run_id = '{run.info.run_id}'")
    return sorted(found, key=lambda version: (version.name, -int(version.version)))


def tag_published(client: "MlflowClient", run: "Run") -> bool:
    """Make the run's tag name its published versions and their aliases, which may be moved in MLflow's pages.

    Return whether that changed the tag.
    """
    text = describe(client, run)
    if text == run.data.tags.get(PUBLISHED_TAG, ""):
        return False
    if text:
        client.set_tag(run.info.run_id, PUBLISHED_TAG, text)
    else:
        client.delete_tag(run.info.run_id, PUBLISHED_TAG)
    return True


def describe(client: "MlflowClient", run: "Run") -> str:
    """The published versions of a run's model, such as "facevae version 2 (champion)"; empty if there are none."""
    described = []
    for version in versions_of(client, run):
        aliases = ", ".join(sorted(client.get_model_version(version.name, version.version).aliases))
        described.append(f"{version.name} version {version.version}" + (f" ({aliases})" if aliases else ""))
    return "; ".join(described)
