"""Scale factors, valid ranges and pyramid pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.core.scales import Scale, pyramid_pixels, scaled_size

PAPER = (Scale(None, 480, 512), Scale(None, 800, 1280), Scale(None, 1400, 2000))
RANGES = {"coarse": (75, -1), "middle": (32, 180), "fine": (-1, 75)}


def box_of_side(side: float) -> np.ndarray:
    return np.array([[3, 5, 3 + side, 5 + side]], np.float32)


@pytest.mark.parametrize(
    ("width", "height", "factors"),
    [
        (640, 480, (0.8, 1.6667, 2.9167)),
        (640, 640, (0.75, 1.25, 2.1875)),
        (500, 375, (1.024, 2.1333, 3.7333)),
    ],
)
def test_resolution_rule(width: int, height: int, factors: tuple[float, ...]) -> None:
    found = [scale.factor_for(height, width) for scale in PAPER]
    assert found == pytest.approx(factors, abs=1e-4)
    assert [scale.factor_for(width, height) for scale in PAPER] == found


def test_bounds_of_the_resolution_rule_can_be_left_out() -> None:
    assert Scale(None, -1, 512).factor_for(480, 640) == 0.8
    assert Scale(None, 960, -1).factor_for(480, 6400) == 2.0


def test_factor_overrides_the_image_size() -> None:
    assert Scale(0.25).factor_for(123, 45678) == 0.25


@pytest.mark.parametrize("sides", [(480, -1), (-1, 512), (480, 512)])
def test_a_factor_beside_the_resolution_rule_is_refused(sides: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not both"):
        Scale(1.0, *sides)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000))
def test_resolution_rule_keeps_its_bounds(height: int, width: int) -> None:
    for scale in PAPER:
        rows, columns = scaled_size(height, width, scale.factor_for(height, width))
        assert max(rows, columns) <= scale.max_side
        assert min(rows, columns) <= scale.min_side
        assert min(rows, columns) == scale.min_side or max(rows, columns) == scale.max_side


@pytest.mark.parametrize(
    ("side", "kept_by"),
    [
        (20, {"fine"}),
        (32, {"fine"}),
        (33, {"fine", "middle"}),
        (75, {"fine", "middle"}),
        (76, {"middle", "coarse"}),
        (180, {"middle", "coarse"}),
        (181, {"coarse"}),
    ],
)
def test_valid_ranges_are_open_below_and_closed_above(side: float, kept_by: set[str]) -> None:
    box = box_of_side(side)
    kept = {
        name
        for name, (low, high) in RANGES.items()
        if Scale(1.0, valid_range=(low, high)).valid(box)[0]
    }
    assert kept == kept_by


def test_valid_compares_the_root_of_the_area() -> None:
    flat = np.array([[0, 0, 100, 25], [0, 0, 100, 100]], np.float32)
    assert Scale(1.0, valid_range=(-1, 50)).valid(flat).tolist() == [True, False]


def test_valid_range_in_network_px() -> None:
    assert Scale(2.0, valid_range=(-1, 46)).valid_range_px(2.0) == (0.0, 92.0)
    assert Scale(0.5, valid_range=(72, -1)).valid_range_px(0.5) == (36.0, float("inf"))


def test_scaled_size_is_never_empty() -> None:
    assert scaled_size(3, 4000, 0.1) == (1, 400)


def test_pyramid_pixels_of_the_paper() -> None:
    # 640x480 at the three scales: the root is about the paper's 1910 px
    assert pyramid_pixels(480, 640, PAPER) == 384 * 512 + 800 * 1067 + 1400 * 1867
    assert round(pyramid_pixels(480, 640, PAPER) ** 0.5) == pytest.approx(1914, abs=1)
