"""Turn raw images into the prepared set: decode on all cores, split, and stream to disk.

Only a few chunks of images are in memory at a time. The folder gets its name when it is whole. This module does not
import torch.
"""

import hashlib
import logging
import math
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from facevae.config.needs import Needs
from facevae.config.schema import DataParams
from facevae.crop import Crop
from facevae.data.decode_pool import decode_in_order
from facevae.data.prepared import ATTRIBUTES, MANIFEST, SPLITS, ArrayWriter, BadFile, Manifest, data_digest
from facevae.data.sameness import Sameness
from facevae.data.sources.source import Source
from facevae.data.splits import assign_splits, check_splits
from facevae.errors import UserError
from facevae.storage.atomic import replace_folder, write_bytes

CHUNK_BYTES = 2**21  # decoded pixels that one process handles at a time
MAX_LISTED = 20  # bad images that one error lists
NOTHING = Needs()
NUM_MEASURED = 25  # images whose size is measured; those of most data sets have one size

logger = logging.getLogger(__name__)


def prepare(source: Source, params: DataParams, seed: int, target: Path, needs: Needs = NOTHING) -> Manifest:
    """Write the prepared set of `source` to the folder `target`, replacing what is there.

    Raises
    ------
    UserError
        A split would be empty, or is not what `needs` says; there are bad images and `data.on_bad_image` is "fail" (the
        message lists them); or a decoding process was killed.
    """
    splits = assign_splits(source, params, seed)
    check_splits(splits, source.attributes, params, needs)  # before hours of decoding, and again after it
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
    partial.mkdir(parents=True)
    try:
        manifest = _write(source, splits, params, needs, partial)
        replace_folder(target, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def _write(source: Source, splits: NDArray[np.str_], params: DataParams, needs: Needs, folder: Path) -> Manifest:
    shape = params.image_shape
    chunk_size = max(1, CHUNK_BYTES // math.prod(shape))
    bad_images: list[tuple[int, str]] = []
    sameness = Sameness()
    with ExitStack() as stack:
        arrays = {split: stack.enter_context(ArrayWriter(folder / f"{split}.npy", shape)) for split in SPLITS}
        bar = stack.enter_context(tqdm(total=len(source.names), desc="prepare", unit="image", disable=None))
        for start, (images, bad) in decode_in_order(source.read, params, len(source.names), chunk_size):
            stop = start + len(images) + len(bad)
            positions = np.setdiff1d(np.arange(start, stop), [position for position, _ in bad])
            splits[positions] = sameness.add(images, splits[positions], keep_together=params.keep_duplicates_together)
            for split in SPLITS:
                arrays[split].append(images[splits[positions] == split])
            bad_images.extend(bad)
            bar.update(len(images) + len(bad))
    _refuse(source, bad_images, params)
    good = np.ones(len(splits), dtype=bool)
    good[[position for position, _ in bad_images]] = False
    check_splits(splits[good], source.attributes[good], params, needs)
    _check_sameness(sameness, params, needs)
    attributes_digest = _write_attributes(source, np.where(good, splits, ""), folder / ATTRIBUTES)
    manifest = Manifest(
        source=params.source,
        image_size=params.image_size,
        channels=params.channels,
        crop=None if params.crop is None else Crop(side=params.crop, raw_side=_raw_side(source, np.flatnonzero(good))),
        split=params.split,
        num_images={split: arrays[split].length for split in SPLITS},
        bad_images=[BadFile(name=source.names[position], reason=reason) for position, reason in bad_images],
        left_out=dict(source.left_out),
        duplicates=sameness.across_splits(),
        digest=data_digest(shape, [*(arrays[split].digest.hexdigest() for split in SPLITS), attributes_digest]),
    )
    write_bytes(folder / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
    return manifest


def _check_sameness(sameness: Sameness, params: DataParams, needs: Needs) -> None:
    """Refuse images of which nothing can be learnt or measured; warn of equal images in different splits."""
    if "train" in needs.pairs and sameness.num_distinct("train") == 1:
        raise UserError(f"data.root: all training images of {params.root} have the same pixels: use other images")
    for split in needs.measured:
        if sameness.is_plain(split):
            raise UserError(f"data.root: every {split} image of {params.root} has a single colour: use other images")
    remedy = "" if params.split == "official" else ": data.keep_duplicates_together keeps them in one split"
    for split, number in sameness.across_splits().items():
        earlier = "training or validation" if split == "test" else "training"
        logger.warning("%d %s image(s) equal a %s image, pixel by pixel%s", number, split, earlier, remedy)


def _raw_side(source: Source, good: NDArray[np.intp]) -> int:
    """The median of the shorter sides of some good images, in pixels.

    Called when all images are decoded, because this process must not open an archive before it is forked.
    """
    some = np.unique(np.linspace(0, len(good) - 1, NUM_MEASURED).round().astype(int))
    return int(np.median([min(source.read(int(position)).size) for position in good[some]]))


def _refuse(source: Source, bad_images: list[tuple[int, str]], params: DataParams) -> None:
    if not bad_images or params.on_bad_image == "skip":
        return
    lines = [f"  {source.names[position]}: {reason}" for position, reason in bad_images[:MAX_LISTED]]
    if len(bad_images) > MAX_LISTED:
        lines.append(f"  and {len(bad_images) - MAX_LISTED} more")
    raise UserError(
        f"{len(bad_images)} of {len(source.names)} images under {params.root} cannot be used:\n"
        + "\n".join(lines)
        + "\nFix or remove them, or set data.on_bad_image to skip them and list them in the manifest."
    )


def _write_attributes(source: Source, splits: NDArray[np.str_], path: Path) -> str:
    table = source.attributes.copy()
    table.index.name = "name"
    table.insert(0, "split", splits)
    ordered = [table[table["split"] == split] for split in SPLITS]
    content = "".join(part.to_csv(header=i == 0, lineterminator="\n") for i, part in enumerate(ordered)).encode()
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()
