"""How far a run could come with an object, case by case."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from af_pipeline.core.scales import Scale
from af_pipeline.core.stacking import border_keep
from af_pipeline.evaluation.coverage import CAUSES, Looked, farthest
from tests.helpers.fakes import make_plan

COARSE = Scale(0.5, valid_range=(50.0, -1))
FINE = Scale(2.0, valid_range=(5.0, 60.0))
HEIGHT, WIDTH = 400, 600


def cause(box: list[float], chips: list[list[int]], scales: tuple = (COARSE, FINE)) -> str:
    looked = Looked(
        make_plan(scales=scales), {"a": (HEIGHT, WIDTH)}, {"a": np.array(chips).reshape(-1, 5)}
    )
    (reached,) = farthest(np.array([box]), "a", looked)
    return CAUSES[reached]


CHIP = [1, 100, 100, 200, 200]


@pytest.mark.parametrize(
    ("box", "chips", "expected"),
    [
        ([120, 120, 140, 140], [CHIP], "no_detection"),
        ([120, 120, 140, 140], [], "no_chip"),
        ([90, 120, 110, 140], [CHIP], "no_chip"),  # cut by the chip's edge
        ([190, 120, 205, 140], [CHIP], "no_chip"),
        ([101, 120, 121, 140], [CHIP], "border"),  # 1 px inside is 2 network px
        ([102, 120, 122, 140], [CHIP], "no_detection"),  # 2 px inside are the 4 of the rule
        ([120, 180, 140, 199], [CHIP], "border"),
        ([101, 120, 121, 140], [CHIP, [1, 60, 100, 160, 200]], "no_detection"),
        ([0, 0, 20, 20], [[1, 0, 0, 100, 100]], "no_detection"),  # the image's edge is no chip's
        ([580, 380, 600, 400], [[1, 500, 300, 600, 400]], "no_detection"),
        ([-5, -5, 20, 20], [[1, 0, 0, 100, 100]], "no_detection"),  # reaches out of the image
        ([120, 120, 124, 124], [CHIP], "range"),  # sqrt(area) 4
        ([100, 100, 155, 155], [], "no_detection"),  # both ranges hold it; scale 0 sees all
        ([100, 100, 300, 300], [], "no_detection"),
        ([120, 120, 140, 140], [[0, 100, 100, 200, 200]], "no_chip"),  # a chip of another scale
    ],
)
def test_cases(box: list[float], chips: list[list[int]], expected: str) -> None:
    assert cause(box, chips) == expected


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0, 0, 40, 238], "no_detection"),  # whole in the first row of tiles
        ([0, 160, 40, 300], "seam"),  # 280 network px, across rows of tiles that share 128
        ([0, 180, 40, 230], "no_detection"),  # 100 network px: both rows show it
    ],
)
def test_tiles_show_an_object_whole_or_in_parts(box: list[float], expected: str) -> None:
    assert cause(box, [], (Scale(2.0),)) == expected


def test_open_ranges_see_everything() -> None:
    assert cause([120, 120, 121, 121], [], (Scale(0.5),)) == "no_detection"


def test_factors_by_the_resolution_rule() -> None:
    fine = Scale(min_side=800, max_side=2000)  # factor 2 for 400 x 600
    assert cause([101, 120, 121, 140], [CHIP], (COARSE, fine)) == "border"
    assert cause([102, 120, 122, 140], [CHIP], (COARSE, fine)) == "no_detection"


def test_other_images_have_their_own_chips() -> None:
    sizes = {"a": (HEIGHT, WIDTH), "b": (HEIGHT, WIDTH)}
    looked = Looked(make_plan(scales=(COARSE, FINE)), sizes, {"a": np.array([CHIP])})
    box = np.array([[120, 120, 140, 140]])
    assert [CAUSES[farthest(box, name, looked)[0]] for name in "ab"] == ["no_detection", "no_chip"]


@given(
    box=st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(6, 40), st.integers(6, 40)),
    chip=st.tuples(
        st.integers(0, 300), st.integers(0, 300), st.integers(32, 300), st.integers(32, 300)
    ),
)
def test_agrees_with_the_rule_of_the_cascade(box: tuple, chip: tuple) -> None:
    x0, y0, x1, y1 = chip[0], chip[1], min(WIDTH, sum(chip[::2])), min(HEIGHT, sum(chip[1::2]))
    corners = np.array([[box[0], box[1], box[0] + box[2], box[1] + box[3]]], float)
    found = cause(corners[0].tolist(), [[1, x0, y0, x1, y1]])
    inner = (x0 > 0, y0 > 0, x1 < WIDTH, y1 < HEIGHT)
    local = (corners - [x0, y0, x0, y0]) * 2
    whole = bool((corners[0] >= [x0, y0, 0, 0]).all() and (corners[0, 2:] <= [x1, y1]).all())
    kept = bool(border_keep(local, ((y1 - y0) * 2, (x1 - x0) * 2), inner, 4.0)[0])
    assert found == ("no_chip" if not whole else "no_detection" if kept else "border")
