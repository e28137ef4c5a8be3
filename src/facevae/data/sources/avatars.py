"""Cartoon faces, drawn offline: a stand-in for CelebA, which not everybody can download.

The art is the style "avataaars" from the package dicebear-styles. The factors of a face are drawn independently, so
its attributes are known exactly. They have the names of CelebA's attributes; `attributes_of` defines them.
"""

import io
from bisect import bisect
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
from PIL import Image

from facevae.data.sources.source import Source

if TYPE_CHECKING:
    import dicebear

Value = TypeVar("Value")

# How often each value of a factor is drawn, in percent. The values of parts are names in the style.
STRAIGHT_HAIR = {"shortFlat": 12, "straight02": 11, "miaWallace": 12}
WAVY_HAIR = {"shortCurly": 10, "curly": 10, "shaggyMullet": 10}
HATS = {"winterHat1": 7, "winterHat02": 7, "turban": 7}
TOPS = {"bald": 14} | STRAIGHT_HAIR | WAVY_HAIR | HATS
HAIR_COLOURS = {"black": 24, "brown": 27, "blond": 25, "gray": 24}
SKIN_COLOURS = {"pale": 25, "light": 27, "tan": 26, "brown": 22}
EYES = {"default": 45, "squint": 35, "side": 20}
EYEBROWS = {"flatNatural": 40, "raisedExcited": 60}
MOUTH_SMILING = {True: 50, False: 50}
MOUTH_OPEN = {True: 55, False: 45}
BEARDS = {"beardLight": 14, "beardMedium": 14}
FACIAL_HAIR = {"none": 45, "moustacheFancy": 27} | BEARDS
GLASSES = {"none": 55, "prescription02": 23, "round": 22}
FABRIC_COLOURS = {"blue": 34, "green": 33, "red": 33}
BACKGROUND_COLOURS = {"blue": 34, "green": 33, "lilac": 33}

BANGS = {"miaWallace", "shaggyMullet"}
COVERED_EYEBROWS = BANGS | {"winterHat1"}
MOUTHS = {  # (smiling, open): name in the style
    (True, True): "smile",
    (True, False): "twinkle",
    (False, True): "disbelief",
    (False, False): "serious",
}

HAIR_HEX = {"black": "231c1c", "brown": "5f3523", "blond": "e6c65f", "gray": "b4b1ae"}
SKIN_HEX = {"pale": "ffdfc4", "light": "eab086", "tan": "d08f60", "brown": "a26d4a"}
FABRIC_HEX = {"blue": "3f6d99", "green": "5f8f6b", "red": "a8525a"}
BACKGROUND_HEX = {"blue": "cfdfec", "green": "d3e6d8", "lilac": "dfd9ec"}
GLASSES_HEX = "262e33"

# The pictures show a square of the style's canvas as wide as the widest hair. Lengths are in canvas units.
CANVAS_SIDE = 280
CROP_SIDE = 216
CROP_CENTRE_Y = 106


@dataclass(frozen=True)
class Avatar:
    """The factors of one face. Their values are keys of the tables above."""

    top: str
    hair_colour: str
    hat_colour: str
    skin_colour: str
    eyes: str
    eyebrows: str
    smiling: bool
    mouth_open: bool
    facial_hair: str
    glasses: str
    clothes_colour: str
    background_colour: str


def open_avatars(num_images: int, image_size: int, seed: int) -> Source:
    """Cartoon faces, each drawn when it is read.

    Parameters
    ----------
    num_images
        How many faces. Image i does not depend on it.
    image_size
        Height and width in pixels.
    seed
        Determines all faces; 0 or more.
    """
    names = [f"avatar-{index:06d}" for index in range(num_images)]
    rows = [attributes_of(draw_avatar(seed, index)) for index in range(num_images)]
    attributes = pd.DataFrame(rows, index=names).astype(np.uint8)
    return Source(names, attributes, partial(read_avatar, seed, image_size))


def read_avatar(seed: int, image_size: int, index: int) -> Image.Image:
    """Image `index` of `seed`: RGB, `image_size` x `image_size` pixels."""
    return render(draw_avatar(seed, index), image_size)


def draw_avatar(seed: int, index: int) -> Avatar:
    """The factors of image `index`, which depend on (seed, index) alone."""
    generator = np.random.default_rng([seed, index])
    return Avatar(
        top=_draw(TOPS, generator),
        hair_colour=_draw(HAIR_COLOURS, generator),
        hat_colour=_draw(FABRIC_COLOURS, generator),
        skin_colour=_draw(SKIN_COLOURS, generator),
        eyes=_draw(EYES, generator),
        eyebrows=_draw(EYEBROWS, generator),
        smiling=_draw(MOUTH_SMILING, generator),
        mouth_open=_draw(MOUTH_OPEN, generator),
        facial_hair=_draw(FACIAL_HAIR, generator),
        glasses=_draw(GLASSES, generator),
        clothes_colour=_draw(FABRIC_COLOURS, generator),
        background_colour=_draw(BACKGROUND_COLOURS, generator),
    )


def _draw(percents: dict[Value, int], generator: np.random.Generator) -> Value:
    """Draw a key with the probability given by its percentage."""
    bounds = list(accumulate(percents.values()))
    return list(percents)[bisect(bounds, generator.random() * bounds[-1])]


def attributes_of(avatar: Avatar) -> dict[str, bool]:
    """What the picture shows, under CelebA's names.

    Only what is visible counts. A hair colour is that of hair on the head, not of hair under a hat or of a bald face's
    beard. Arched eyebrows are hidden by bangs and by a low hat. Mustache means a moustache without a beard, because
    every beard of the style includes one. No_Beard means no facial hair at all.
    """
    hair_colour = avatar.hair_colour if avatar.top in STRAIGHT_HAIR | WAVY_HAIR else "none"
    return {
        "Arched_Eyebrows": avatar.eyebrows == "raisedExcited" and avatar.top not in COVERED_EYEBROWS,
        "Bald": avatar.top == "bald",
        "Bangs": avatar.top in BANGS,
        "Black_Hair": hair_colour == "black",
        "Blond_Hair": hair_colour == "blond",
        "Brown_Hair": hair_colour == "brown",
        "Eyeglasses": avatar.glasses != "none",
        "Gray_Hair": hair_colour == "gray",
        "Mouth_Slightly_Open": avatar.mouth_open,
        "Mustache": avatar.facial_hair == "moustacheFancy",
        "No_Beard": avatar.facial_hair == "none",
        "Pale_Skin": avatar.skin_colour == "pale",
        "Smiling": avatar.smiling,
        "Straight_Hair": avatar.top in STRAIGHT_HAIR,
        "Wavy_Hair": avatar.top in WAVY_HAIR,
        "Wearing_Hat": avatar.top in HATS,
    }


def render(avatar: Avatar, image_size: int) -> Image.Image:
    """Draw a face: RGB, `image_size` x `image_size` pixels."""
    import dicebear  # other sources do without these
    import resvg_py

    svg = dicebear.Avatar(_load_style(), _style_options(avatar)).to_string()
    png = resvg_py.svg_to_bytes(svg_string=svg, width=image_size, height=image_size, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGB")


@cache
def _load_style() -> "dicebear.Style":
    """The style "avataaars": art by Pablo Stanley, free for personal and commercial use, https://avataaars.com."""
    import dicebear

    return dicebear.Style.from_json(files("dicebear_styles").joinpath("avataaars.json").read_text("utf-8"))


def _style_options(avatar: Avatar) -> dict[str, object]:
    """The style's options for a face. All are set, so that nothing is left to its random choice."""
    scale = CANVAS_SIDE / CROP_SIDE
    return {
        "scale": scale,
        "translateY": 100 * scale * (CANVAS_SIDE / 2 - CROP_CENTRE_Y) / CANVAS_SIDE,
        "backgroundColor": BACKGROUND_HEX[avatar.background_colour],
        "skinColor": SKIN_HEX[avatar.skin_colour],
        "topVariant": avatar.top,
        "topProbability": 0 if avatar.top == "bald" else 100,
        "hairColor": HAIR_HEX[avatar.hair_colour],
        "hatColor": FABRIC_HEX[avatar.hat_colour],
        "eyesVariant": avatar.eyes,
        "eyebrowsVariant": avatar.eyebrows,
        "mouthVariant": MOUTHS[avatar.smiling, avatar.mouth_open],
        "facialHairVariant": avatar.facial_hair,
        "facialHairProbability": 0 if avatar.facial_hair == "none" else 100,
        "facialHairColor": HAIR_HEX[avatar.hair_colour],
        "accessoriesVariant": avatar.glasses,
        "accessoriesProbability": 0 if avatar.glasses == "none" else 100,
        "accessoriesColor": GLASSES_HEX,
        "clothesVariant": "shirtCrewNeck",
        "clothesColor": FABRIC_HEX[avatar.clothes_colour],
    }
