"""Raw images behind links: DVC sees that they change, or the stage refuses them."""

import shutil
from pathlib import Path

import pytest
from conftest import clone, commit_all, disc_images, dvc, small_params
from PIL import Image

from facevae.data.sources.links import refuse_linked_folders
from facevae.errors import UserError

NAMES = [f"{number:06}.jpg" for number in range(1, 31)]


def write_celeba(folder: Path, seed: int = 0) -> Path:
    (folder / "img_align_celeba").mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(NAMES, disc_images(len(NAMES), 16, seed=seed), strict=True):
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name)
    rows = [f"{name} {'1' if index % 2 else '-1'}" for index, name in enumerate(NAMES)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(NAMES)), "Smiling", *rows, ""]))
    return folder


@pytest.mark.parametrize("place", [".", "deep/er"])
@pytest.mark.parametrize(
    ("source", "is_refused"), [("celeba", True), ("mnist", True), ("folder", False), ("avatars", False)]
)
def test_a_linked_folder_is_refused_where_it_may_be_read(
    tmp_path: Path, place: str, source: str, is_refused: bool
) -> None:
    celeba = write_celeba(tmp_path / "elsewhere")
    link = tmp_path / "raw" / place / "img_align_celeba"
    link.parent.mkdir(parents=True)
    link.symlink_to(celeba / "img_align_celeba")
    number = 40 if source == "avatars" else None
    params = small_params(data__source=source, data__root=str(tmp_path / "raw"), data__num_images=number).data
    if is_refused:
        with pytest.raises(
            UserError, match=f"^data.root: {link} is a link to the folder .* set data.root to the folder"
        ):
            refuse_linked_folders(params)
    else:
        refuse_linked_folders(params)


def test_links_to_files_and_a_linked_root_are_allowed(tmp_path: Path) -> None:
    celeba = write_celeba(tmp_path / "elsewhere")
    (tmp_path / "raw").symlink_to(celeba)
    (celeba / "img_align_celeba" / "linked.jpg").symlink_to(celeba / "img_align_celeba" / NAMES[0])
    root = str(tmp_path / "raw")
    refuse_linked_folders(small_params(data__source="celeba", data__root=root, data__num_images=None).data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["files", "root"])
def test_dvc_sees_that_an_image_behind_a_link_was_replaced(tmp_path: Path, kind: str) -> None:
    celeba, raw = write_celeba(tmp_path / "elsewhere"), tmp_path / "raw"
    if kind == "root":
        raw.symlink_to(celeba)
    else:
        (raw / "img_align_celeba").mkdir(parents=True)
        shutil.copy(celeba / "list_attr_celeba.txt", raw)
        for name in NAMES:
            (raw / "img_align_celeba" / name).symlink_to(celeba / "img_align_celeba" / name)
    lists: dict[str, object] = {"evaluate__attributes": [], "figures__latent_map_attributes": []}
    changes = {"data__source": "celeba", "data__root": str(raw), "data__num_images": None, **lists}
    project = clone(tmp_path / "project", **changes)
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("  - Eyeglasses\n  - Smiling\n", "  - Smiling\n"))
    commit_all(project, "Settings")
    dvc(project, "repro", "prepare")
    assert "didn't change" in dvc(project, "repro", "prepare")
    before = (project / "data/prepared/train.npy").read_bytes()
    write_celeba(celeba, seed=1)
    assert "Running stage 'prepare'" in dvc(project, "repro", "prepare")
    assert (project / "data/prepared/train.npy").read_bytes() != before


@pytest.mark.slow
def test_the_stage_refuses_a_linked_folder(tmp_path: Path) -> None:
    celeba, raw = write_celeba(tmp_path / "elsewhere"), tmp_path / "raw"
    raw.mkdir()
    (raw / "img_align_celeba").symlink_to(celeba / "img_align_celeba")
    shutil.copy(celeba / "list_attr_celeba.txt", raw)
    project = clone(tmp_path / "project", data__source="celeba", data__root=str(raw), data__num_images=None)
    with pytest.raises(RuntimeError, match="error: data.root: .*img_align_celeba is a link to the folder"):
        dvc(project, "repro", "prepare")
