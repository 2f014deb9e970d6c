"""Training samples: one image and one generator -> one augmented SNIPER chip with its targets.

Everything random comes from the generator, so a sample is a function of (seed, epoch, image).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.boxes import box_side, visible_share
from af_pipeline.core.focus import focus_labels
from af_pipeline.core.resize import resize
from af_pipeline.images.guards import SIDEWAYS
from af_pipeline.sniper.chips import MIN_SIDE, ChipMaking, ChipWindow

GREY = np.array([0.299, 0.587, 0.114])  # luma of R, G, B
PAD_VALUE = 114  # grey used for padding, near the mean of natural images


@dataclass(frozen=True)
class ChipBoxes:
    """Boxes of a chip in chip px. boxes [N, 4] clipped to the chip, unclipped [N, 4] as scaled;
    labels [N]; valid [N]: to be learned; ignored [N]: give no loss (out of the valid range, too
    small, cut, or crowd); crowd [N]. Every box that meets the chip is valid or ignored.
    """

    boxes: NDArray[np.float32]
    unclipped: NDArray[np.float32]
    labels: NDArray[np.int32]
    valid: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class LabelledImage:
    """image uint8 [H, W, 3] RGB; boxes float32 [N, 4] original px; labels [N]; crowd [N] bool.

    ``turn``: the EXIF orientation by which boxes were turned from the stored pixels, 1: not.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int32]
    crowd: NDArray[np.bool_]
    turn: int = 1

    @property
    def drawn_size(self) -> tuple[int, int]:
        """(height, width) of the pixels that boxes were drawn on."""
        height, width = self.image.shape[:2]
        return (width, height) if self.turn in SIDEWAYS else (height, width)


@dataclass(frozen=True)
class Sample:
    """image uint8 [size, size, 3]; boxes as in `ChipBoxes`; focus int64 [size/16, size/16];
    range_px: sizes in chip px, above and up to, that the chip answers for.
    """

    image: NDArray[np.uint8]
    boxes: ChipBoxes
    focus: NDArray[np.int64]
    window: ChipWindow
    range_px: tuple[float, float]


def make_sample(
    rng: np.random.Generator, labelled: LabelledImage, window: ChipWindow, making: ChipMaking
) -> Sample:
    """The chip of ``labelled`` at ``window``, augmented, with its targets."""
    scale = making.scales[window.scale]
    range_px = scale.valid_range_px(scale.factor_for(*labelled.image.shape[:2]))
    boxes = boxes_in_window(window, labelled.boxes, labelled.labels, labelled.crowd, range_px)
    image = cut_window(labelled.image, window)
    image, boxes = _turn(rng, image, boxes, making.chips.flips)
    image = recolour(rng, image, making.chips.colour)
    size = window.size
    focus = focus_labels(boxes.unclipped, size, size, making.focus, boxes.crowd)
    return Sample(image, boxes, focus, window, range_px)


def boxes_in_window(
    window: ChipWindow,
    boxes: NDArray,
    labels: NDArray,
    crowd: NDArray,
    range_px: tuple[float, float],
    min_visible: float = 0.5,
) -> ChipBoxes:
    """Boxes (original px) of an image as a training chip sees them.

    Valid: not crowd, at least ``min_visible`` of the area inside the chip, clipped side at least
    `MIN_SIDE` chip px, and the whole size in chip px above ``range_px[0]`` and up to
    ``range_px[1]`` (the scale's valid range at its nominal factor). A window that owns boxes
    learns those, whatever their size and share, down to `MIN_SIDE`.
    """
    factor = np.float32(window.size / window.span)
    shift = np.array([window.x0, window.y0] * 2, np.float32)
    scaled = (boxes.astype(np.float32) - shift) * factor
    share = visible_share(scaled, (0.0, 0.0, float(window.size), float(window.size)))
    own = np.zeros(len(boxes), bool)
    own[list(window.owned or ())] = True
    meets = share > 0
    scaled, share, crowd_in, own = scaled[meets], share[meets], crowd[meets], own[meets]
    clipped = np.clip(scaled, 0, window.size).astype(np.float32)
    if window.owned is None:
        side = box_side(scaled)
        own = (side > range_px[0]) & (side <= range_px[1]) & (share >= min_visible)
    valid = own & (box_side(clipped) >= MIN_SIDE) & ~crowd_in
    return ChipBoxes(clipped, scaled, labels[meets].astype(np.int32), valid, ~valid, crowd_in)


def cut_window(image: NDArray[np.uint8], window: ChipWindow) -> NDArray[np.uint8]:
    """The window's pixels [size, size, 3], grey where it leaves the image."""
    height, width = image.shape[:2]
    span = window.span
    x0, y0 = max(0, window.x0), max(0, window.y0)
    x1, y1 = min(width, window.x0 + span), min(height, window.y0 + span)
    if (x0, y0, x1, y1) == (window.x0, window.y0, window.x0 + span, window.y0 + span):
        return resize(image[y0:y1, x0:x1], window.size, window.size)
    canvas = np.full((span, span, 3), PAD_VALUE, np.uint8)
    if x1 > x0 and y1 > y0:
        top, left = y0 - window.y0, x0 - window.x0
        canvas[top : top + y1 - y0, left : left + x1 - x0] = image[y0:y1, x0:x1]
    return resize(canvas, window.size, window.size)


def _turn(
    rng: np.random.Generator, image: NDArray[np.uint8], boxes: ChipBoxes, flips: str
) -> tuple[NDArray[np.uint8], ChipBoxes]:
    size = image.shape[0]
    mirror, upside_down, transpose = rng.random(3) < 0.5
    if mirror and flips != "none":
        image = image[:, ::-1]
        boxes = _map_boxes(boxes, lambda b: np.stack([size - b[2], b[1], size - b[0], b[3]]))
    if upside_down and flips == "all":
        image = image[::-1]
        boxes = _map_boxes(boxes, lambda b: np.stack([b[0], size - b[3], b[2], size - b[1]]))
    if transpose and flips == "all":
        image = image.transpose(1, 0, 2)
        boxes = _map_boxes(boxes, lambda b: np.stack([b[1], b[0], b[3], b[2]]))
    return np.ascontiguousarray(image), boxes


def _map_boxes(boxes: ChipBoxes, change) -> ChipBoxes:  # type: ignore[no-untyped-def]
    """Apply ``change`` (columns [4, N] -> [4, N]) to both box arrays."""
    return replace(
        boxes,
        boxes=change(boxes.boxes.T).T.astype(np.float32),
        unclipped=change(boxes.unclipped.T).T.astype(np.float32),
    )


def recolour(
    rng: np.random.Generator, image: NDArray[np.uint8], strength: float
) -> NDArray[np.uint8]:
    """Random brightness, contrast, white balance, saturation; at times grey, blurred or noisy."""
    if strength <= 0:
        return image
    saturation = 0.0 if rng.random() < 0.1 else 1 + strength * rng.uniform(-1, 1)
    balance = 1 + 0.16 * strength * rng.uniform(-1, 1, 3)
    contrast = 1 + strength * rng.uniform(-0.8, 0.8)
    brightness = 80 * strength * rng.uniform(-1, 1)
    # Mixing with grey, scaling about the mean and shifting are one affine map of the colours.
    mean = float(np.dot(GREY, cv2.mean(image)[:3]))
    mix = (1 - saturation) * np.tile(GREY, (3, 1)) + saturation * np.eye(3)
    gain = contrast * balance
    shift = mean * (1 - gain) + brightness
    out = cv2.transform(image, np.column_stack([gain[:, None] * mix, shift]))
    if rng.random() < 0.2:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.4, 1.5)))
    if rng.random() < 0.2:
        noise = rng.uniform(2, 10) * rng.standard_normal(out.shape, np.float32)
        out = np.clip(out + noise, 0, 255)
    return out.astype(np.uint8, copy=False)
