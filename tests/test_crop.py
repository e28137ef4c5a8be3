import pytest
from pydantic import ValidationError

from facevae.crop import Crop


def test_an_image_of_the_data_set_keeps_the_crop() -> None:
    for raw_side in range(2, 400):
        for side in (1, 2, raw_side // 2, raw_side - 1, raw_side):
            assert Crop(side=side, raw_side=raw_side).side_in((raw_side, raw_side + 40)) == side


@pytest.mark.parametrize(
    ("size", "expected"), [((178, 218), 148), ((3024, 4032), 2514), ((4032, 3024), 2514), ((89, 109), 74), ((1, 9), 1)]
)
def test_the_square_grows_with_the_shorter_side(size: tuple[int, int], expected: int) -> None:
    assert Crop(side=148, raw_side=178).side_in(size) == expected


def test_a_crop_has_a_side() -> None:
    with pytest.raises(ValidationError):
        Crop(side=0, raw_side=178)
