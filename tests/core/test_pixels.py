"""Pixels: an array, and an image of which nobody holds more than what is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from af_pipeline.core.pixels import ArrayPixels, Pixels, as_pixels
from af_pipeline.core.resize import RGB, Rect, resize
from af_pipeline.core.schema import Chip, ImageRow, rows_to_table, table_to_rows
from tests.helpers.fakes import make_plan, paint, run_cascade, scatter


@dataclass(frozen=True)
class Windows:
    """A part of an image that is read only when and where it is asked for, as of a raster file."""

    image: RGB
    box: Rect
    reads: list[Rect] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        return self.box[3] - self.box[1], self.box[2] - self.box[0]

    def read(self, height: int, width: int, rect: Rect | None = None) -> RGB:
        self.reads.append(self.box)
        x0, y0, x1, y1 = self.box
        whole = resize(self.image[y0:y1, x0:x1], height, width)
        left, top, right, low = rect or (0, 0, width, height)
        return whole[top:low, left:right]

    def part(self, box: Rect, keep: bool = True) -> Windows:
        x, y = self.box[:2]
        return Windows(self.image, (x + box[0], y + box[1], x + box[2], y + box[3]), self.reads)


def test_an_image_read_by_windows_gives_the_same_row() -> None:
    image = paint(scatter(np.random.default_rng(1), 8, 400, 700), 400, 700)
    windows = Windows(image, (0, 0, 700, 400))
    plan = make_plan()
    (held,), (read,) = run_cascade([image], plan), run_cascade([windows], plan)
    held.ledger.forward_ms = read.ledger.forward_ms = 0.0
    assert len(held.detections)
    assert rows_to_table([held]).equals(rows_to_table([read]))
    assert set(windows.reads) == {chip.box for chip in read.chips}


def test_any_pixels_travel_as_their_native_px() -> None:
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    part: Pixels = Windows(image, (1, 1, 6, 4))
    row = ImageRow("a", "a", chips=[Chip(1, 0, (1, 1, 6, 4), 1.0, pixels=part)])
    (there,) = table_to_rows(rows_to_table([row]))
    assert there.chips[0].pixels is not None
    np.testing.assert_array_equal(there.chips[0].pixels.read(3, 5), image[1:4, 1:6])


@pytest.mark.parametrize("keep", [True, False])
def test_a_part_of_an_array_holds_the_whole_only_where_that_is_kept(keep: bool) -> None:
    image = np.zeros((8, 9, 3), np.uint8)
    part = ArrayPixels(image).part((2, 3, 5, 7), keep)
    assert part.size == (4, 3)
    assert np.shares_memory(part.array, image) == keep


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 3), np.uint8),
        np.zeros((3, 3, 4), np.uint8),
        np.zeros((0, 3, 3), np.uint8),
        np.zeros((3, 3, 3), np.float32),
    ],
)
def test_what_is_no_picture_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\[H, W, 3\]"):
        as_pixels(image)


def test_a_resize_to_nothing_is_refused_and_one_to_the_same_size_is_no_copy() -> None:
    image = np.zeros((5, 7, 3), np.uint8)
    assert resize(image, 5, 7) is image
    for size in ((0, 7), (5, 0)):
        with pytest.raises(ValueError, match="both must be at least 1"):
            resize(image, *size)
