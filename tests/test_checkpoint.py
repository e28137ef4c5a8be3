import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import cut, emptied, small_params
from pydantic import BaseModel

from facevae.errors import UserError
from facevae.model import checkpoint
from facevae.model.vae import VAE
from facevae.storage.atomic import write_bytes
from facevae.storage.tensors import write_tensors


def saved(path: Path, **changes: object) -> VAE:
    torch.manual_seed(0)
    params = small_params(**changes)
    model = VAE(params.model, 8, 3).eval()
    checkpoint.save(path, model, params.train, crop=None, fingerprint="abc")
    return model


def test_saved_model_loads_unchanged(tmp_path: Path) -> None:
    model = saved(tmp_path / "vae.safetensors", model__normalization="batch", model__dropout=0.5)
    loaded, header = checkpoint.load(tmp_path / "vae.safetensors")
    assert (header.fingerprint, header.likelihood, header.binarization) == ("abc", "squared_error", "none")
    assert (header.image_size, header.image_channels) == (8, 3)
    assert header.model == model.params
    assert not loaded.training
    images = torch.rand(3, 3, 8, 8)
    assert torch.equal(loaded.decode(loaded.encode(images).mean), model.decode(model.encode(images).mean))


def test_same_model_gives_same_bytes(tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors")
    saved(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def flip_the_header(content: bytes) -> bytes:
    return content[:12] + bytes(byte ^ 0xFF for byte in content[12:40]) + content[40:]


def flip_a_weight(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def with_another_header(content: bytes) -> bytes:
    return content.replace(b'latent_dim\\":3', b'latent_dim\\":4')


@pytest.mark.parametrize("damage", [cut, flip_the_header, flip_a_weight, with_another_header, emptied])
def test_damaged_checkpoint_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "vae.safetensors"
    saved(path)
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="vae.safetensors is damaged"):
        checkpoint.load(path)


class OtherHeader(BaseModel):
    fingerprint: str


def test_intact_file_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    model = saved(path)
    _, header = checkpoint.load(path)
    write_tensors(path, model.state_dict(), OtherHeader(fingerprint="abc"))
    with pytest.raises(UserError, match="vae.safetensors does not match this version of facevae"):
        checkpoint.load(path)
    write_tensors(path, {"other": torch.zeros(1)}, header)
    with pytest.raises(UserError, match="vae.safetensors does not match this version of facevae"):
        checkpoint.load(path)


def test_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="damaged, or was not written by facevae"):
        checkpoint.load(path)


def test_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vae.safetensors is missing.*run `dvc repro train`"):
        checkpoint.load(tmp_path / "vae.safetensors")


def test_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    saved(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_bytes(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
