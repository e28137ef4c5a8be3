"""What later stages need of the prepared images, so that `prepare` refuses at once what they would refuse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from facevae.config.schema import Params


@dataclass(frozen=True)
class Needs:
    """What the stages need of the prepared set. Without arguments they need nothing.

    Attributes
    ----------
    pairs
        The splits that need at least two images, each with who needs them.
    varied
        Pairs of a key and an attribute that it names, which some training images must have and others lack.
    measured
        The splits on which sharpness is measured, so that not all images may be of a single colour.
    """

    pairs: Mapping[str, str] = field(default_factory=dict)
    varied: Sequence[tuple[str, str]] = ()
    measured: Sequence[str] = ()


def needs_of(params: Params) -> Needs:
    """What `train`, `evaluate` and `figures` need under these params."""
    return Needs(
        pairs={
            params.figures.split: "figures.split",
            params.evaluate.split: "evaluate.split",
            "train": "evaluate",
            "validation": "evaluate",
        },
        varied=[
            *(("evaluate.attributes", attribute) for attribute in params.evaluate.attributes),
            *(("figures.attributes", attribute) for attribute in params.figures.attributes),
        ],
        measured=[params.evaluate.split],
    )
