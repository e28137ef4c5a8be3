"""The part of an image that a model sees."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Pixels = Annotated[int, Field(ge=1, lt=2**31)]


class Crop(BaseModel):
    """A centred square of `side` pixels in images whose shorter side is `raw_side` pixels, as those of the data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: Pixels
    raw_side: Pixels

    def side_in(self, size: tuple[int, int]) -> int:
        """The side in an image of another width and height: in proportion to the shorter of them."""
        shorter = min(size)
        return min(max(1, round(self.side * shorter / self.raw_side)), shorter)
