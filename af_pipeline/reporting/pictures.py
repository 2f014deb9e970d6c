"""Pictures of a run: the FocusChips that were looked at, and the detections that were found.

Frames: x right, y down, px of the array given. Line widths and letters are derived from a
picture's longest side, so that a photograph of any size is legible when it is looked at whole.
What can be said in words, captions and legends, stands on the page and not in the pixels.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import cv2
import numpy as np
import pyarrow.dataset as ds
from numpy.typing import ArrayLike, NDArray

from af_pipeline.data.storage import read_bytes
from af_pipeline.images.decode import MAX_PIXELS, decode_image, encode_jpeg
from af_pipeline.images.depth import DepthConfig
from af_pipeline.output.read import RunDir
from af_pipeline.reporting.page import Table, write_page

Image = NDArray[np.uint8]  # [H, W, 3] RGB
Color = tuple[int, int, int]

SCALE_COLORS: tuple[Color, ...] = (
    (255, 255, 255),
    (255, 196, 0),
    (0, 220, 255),
    (255, 80, 220),
)
FAINT: Color = (150, 155, 165)
UNSEEN_BRIGHTNESS = 0.4  # of what no fine scale looked at
MIN_SCORE = 0.3  # of the detections that are shown
MAX_SCORE_TEXTS = 25  # in a picture; more would cover each other
MAX_LEGEND = 20
MAX_LISTED_FAILURES = 100
MAX_CANDIDATES = 10_000  # images considered for a sample, so that a huge run stays cheap
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_IMAGE_COLUMNS = ("image_id", "uri", "width", "height", "status", "error", "pixels_processed",
                  "pixels_pyramid")  # fmt: skip
_BOX_COLUMNS = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True)
class Drawing:
    """A picture with what is said of it: its caption and the meaning of its colours."""

    image: Image
    caption: str
    legend: tuple[tuple[Color, str], ...]


def draw_detections(
    image: Image, boxes: ArrayLike, labels: ArrayLike, scores: ArrayLike, names: Sequence[str]
) -> Drawing:
    """The image with outlined boxes, one colour a class, and the counts as legend.

    ``image`` uint8 [H, W, 3] RGB (not changed), ``boxes`` [N, 4] xyxy half-open in its px,
    ``labels`` [N] indices into ``names``, ``scores`` [N]. Few boxes have their scores beside them.
    """
    found, classes = np.reshape(boxes, (-1, 4)), np.asarray(labels, np.int64)
    certainty = np.asarray(scores, np.float64)
    canvas = image.copy()
    order = np.argsort(certainty, kind="stable").tolist()  # the surest is drawn last, on top
    for i in order:
        _outline(canvas, found[i], distinct_color(classes[i]), _line_px(image))
    for i in order if len(found) <= MAX_SCORE_TEXTS else ():
        _write_score(canvas, found[i], f"{certainty[i]:.2f}", distinct_color(classes[i]))
    counts = np.bincount(classes, minlength=len(names))
    falling = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    legend = [(distinct_color(i), f"{names[i]}: {counts[i]}") for i in falling[:MAX_LEGEND]]
    if rest := falling[MAX_LEGEND:]:
        legend.append((FAINT, f"{len(rest)} more classes: {counts[rest].sum()}"))
    noun = "detection" if len(found) == 1 else "detections"
    return Drawing(canvas, f"{len(found)} {noun} with score >= {MIN_SCORE:g}", tuple(legend))


def draw_chips(image: Image, chips: ArrayLike, scales: ArrayLike, num_scales: int) -> Drawing:
    """The image darkened where fewer fine scales looked, FocusChips outlined in scale colours.

    ``chips`` [M, 4] half-open in the px of ``image``, ``scales`` [M] in [0, num_scales): scale 0
    is the coarse look at the whole image and darkens nothing. The legend gives chips and the
    share of the image they cover together.
    """
    boxes, levels = np.reshape(chips, (-1, 4)), np.asarray(scales, np.int64)
    by_scale = [boxes[levels == scale] for scale in range(num_scales)]
    masks = [_covered(image, some) for some in by_scale]  # bool [H, W] each
    canvas = image.copy()
    if num_scales > 1:
        seen = np.mean(masks[1:], axis=0)
        brightness = UNSEEN_BRIGHTNESS + (1 - UNSEEN_BRIGHTNESS) * seen
        canvas = np.asarray(np.round(image * brightness[..., None]), np.uint8)
    legend = []
    for scale, (some, mask) in enumerate(zip(by_scale, masks, strict=True)):
        color = SCALE_COLORS[scale] if scale < len(SCALE_COLORS) else distinct_color(scale)
        for chip in some:
            _outline(canvas, chip, color, _line_px(image) + (scale > 0))
        noun = "chip" if len(some) == 1 else "chips"
        text = f"scale {scale}: {len(some)} {noun}, {mask.mean():.1%} of the area"
        legend.append((color, text if scale or len(some) else "scale 0: whole image"))
    return Drawing(canvas, "FocusChips: what was looked at, by scale", tuple(legend))


def write_pictures(
    out_dir: str | Path,
    target: Path,
    image_ids: Sequence[str] | None = None,
    limit: int = 6,
    max_side: int = 1600,
) -> list[Path]:
    """Write the JPEGs of some images of a run and `index.html` into ``target``; return the JPEGs.

    Without ``image_ids``, up to ``limit`` images with detections are taken, evenly spaced in the
    order of their ids. ``max_side`` bounds the longest side of a picture, px. Images that failed in
    the run, or cannot be read now, are listed on the page with their error. Raises ValueError for
    an image_id that the run does not list.
    """
    run = RunDir.open(out_dir)
    record = run.manifest()
    known = record or {}
    chosen = _sample_ids(run, limit) if image_ids is None else list(image_ids)
    target.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    shown, failures = [], {}
    for number, image_id in enumerate(chosen, start=1):
        row = _image_row(run, image_id)
        try:
            drawings = _drawings(run, known, row, max_side)
        except (OSError, ValueError) as error:  # an unreadable image must not cost the others
            failures[image_id] = str(error)
            continue
        pictures = []
        for kind, drawing in drawings.items():
            paths.append(target / f"{number:03d}-{_safe_stem(image_id)}-{kind}.jpg")
            paths[-1].write_bytes(encode_jpeg(drawing.image))
            pictures.append((paths[-1].name, drawing))
        shown.append((image_id, _caption(row, known), pictures))
    failed = ds.field("status") == "error"
    table = run.table("images", ("image_id", "error"), where=failed, limit=MAX_LISTED_FAILURES)
    in_run = {row["image_id"]: row["error"] for row in table.to_pylist()}
    totals = known.get("totals")
    rows = totals.items() if isinstance(totals, Mapping) else ()
    write_page(
        target / "index.html",
        "pictures.html",
        f"Pictures of {run.uri}",
        complete=record is not None,
        totals=Table((), [[str(key), _value(value)] for key, value in rows]),
        images=shown,
        failures=Table(("image", "error"), list((failures | in_run).items())),
        more_failures=run.count("images", failed) - len(in_run),
    )
    return paths


def distinct_color(index: int) -> Color:
    """A bright colour for a class; golden-ratio hues keep neighbours in the list apart."""
    hue = (0.97 + index * 0.61803398875) % 1.0
    saturation = (0.85, 0.55)[index // 9 % 2]
    value = (1.0, 0.75)[index // 18 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _line_px(image: Image) -> int:
    return max(2, round(max(image.shape[:2]) / 900))


def _outline(canvas: Image, box: NDArray, color: Color, width: int) -> None:
    """Draw a half-open xyxy box [4] in place; large boxes get a dark edge to stand out."""
    x0, y0, x1, y1 = (int(v) for v in np.round(box))
    # Upright lines on whole px: anti-aliasing would only dull and widen them.
    corners = (x0, y0), (max(x0, x1 - 1), max(y0, y1 - 1))
    if min(x1 - x0, y1 - y0) > 8 * width:
        cv2.rectangle(canvas, *corners, (0, 0, 0), width + 2, cv2.LINE_8)
    cv2.rectangle(canvas, *corners, color, width, cv2.LINE_8)


def _write_score(canvas: Image, box: NDArray, text: str, color: Color) -> None:
    """Write a score in place on a plate of the colour, above the box where there is room."""
    letter = int(np.clip(round(max(canvas.shape[:2]) / 125), 8, 60))  # height of a digit, px
    weight, pad = max(1, round(letter / 11)), max(2, letter // 3)
    scale = cv2.getFontScaleFromHeight(_FONT, letter, weight)
    (length, _), _ = cv2.getTextSize(text, _FONT, scale, weight)
    left, base = max(0, int(box[0])), int(box[1]) - 2 * pad
    base = base if base > 2 * letter else int(box[3]) + letter + 2 * pad
    corners = (left, base - letter - pad), (left + length + 2 * pad, base + pad)
    cv2.rectangle(canvas, *corners, color, cv2.FILLED)
    luma = float(np.dot(color, (0.299, 0.587, 0.114)))  # Rec. 601
    ink = (0, 0, 0) if luma > 110 else (255, 255, 255)
    cv2.putText(canvas, text, (left + pad, base), _FONT, scale, ink, weight, cv2.LINE_AA)


def _covered(image: Image, chips: NDArray) -> NDArray[np.bool_]:
    """bool [H, W]: the pixels inside any chip; overlaps count once."""
    mask = np.zeros(image.shape[:2], bool)
    for x0, y0, x1, y1 in np.maximum(np.round(chips), 0).astype(int):
        mask[y0:y1, x0:x1] = True
    return mask


def _drawings(
    run: RunDir, record: Mapping[str, Any], row: Mapping[str, Any], max_side: int
) -> dict[str, Drawing]:
    """What the run looked at in one image, where it chose, and what it found."""
    if row["status"] != "ok":
        raise ValueError(str(row["error"]))
    config = _config(record)
    source = config.get("source", {})
    depth = DepthConfig(**source.get("depth", {}))
    data = read_bytes(row["uri"])
    image = _fitted(decode_image(data, source.get("max_pixels", MAX_PIXELS), depth), max_side)
    zoom = np.tile([image.shape[1] / row["width"], image.shape[0] / row["height"]], 2)
    here = ds.field("image_id") == row["image_id"]
    drawings = {}
    if run.has_table("chips"):
        chips = run.table("chips", ("scale", *_BOX_COLUMNS), where=here)
        if chips.num_rows or config.get("mode") == "autofocus":
            scales = np.asarray(chips["scale"].to_numpy(), np.int64)
            listed = 1 if config.get("mode") == "whole" else len(config.get("pyramid") or ())
            count = max([1, listed, *(scales + 1)])
            drawings["chips"] = draw_chips(image, _boxes(chips) * zoom, scales, count)
    where = here & (ds.field("score") >= MIN_SCORE)
    found = run.table("detections", ("label", "score", *_BOX_COLUMNS), where=where)
    labels = found["label"].to_pylist()
    listed_names = [str(name) for name in record.get("class_names") or []]
    names = list(dict.fromkeys([*listed_names, *sorted(set(labels))]))  # colours by place in it
    places = np.array([names.index(label) for label in labels], np.int64)
    scores = found["score"].to_numpy()
    drawings["detections"] = draw_detections(image, _boxes(found) * zoom, places, scores, names)
    return drawings


def _boxes(table: Any) -> NDArray[np.float64]:
    """The boxes [N, 4] of a table, px of the original image."""
    return np.stack([np.asarray(table[c].to_numpy(), np.float64) for c in _BOX_COLUMNS], axis=1)


def _config(record: Mapping[str, Any]) -> Mapping[str, Any]:
    config = record.get("config")
    return config if isinstance(config, Mapping) else {}


def _fitted(image: Image, max_side: int) -> Image:
    """The image with a longest side of at most ``max_side`` px."""
    height, width = image.shape[:2]
    zoom = max_side / max(height, width)
    if zoom >= 1:
        return image
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _caption(row: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    mode = shorten(str(_config(record).get("mode") or ""), 40, placeholder="...")
    processed, pyramid = row["pixels_processed"], row["pixels_pyramid"]
    share = f" ({processed / pyramid:.1%})" if pyramid else ""
    pixels = f"{processed / 1e6:.2f} of {pyramid / 1e6:.2f} Mpx of the pyramid processed{share}"
    size = f"{row['width']} × {row['height']} px"
    return ", ".join([*([f"mode {mode}"] if mode else []), size, pixels])


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _safe_stem(image_id: str) -> str:
    """The end of a name as any file system takes it."""
    stem = image_id.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[-80:]


def _image_row(run: RunDir, image_id: str) -> dict[str, Any]:
    rows = run.table("images", _IMAGE_COLUMNS, where=ds.field("image_id") == image_id)
    if not rows.num_rows:
        raise ValueError(f"{run.uri} has no image '{image_id}': give an image_id of its images")
    row: dict[str, Any] = rows.to_pylist()[0]
    return row


def _sample_ids(run: RunDir, limit: int) -> list[str]:
    """Evenly spaced ids of ok images, of those with detections where there are any."""
    is_ok = ds.field("status") == "ok"
    for where in (is_ok & (ds.field("num_detections") > 0), is_ok):
        table = run.table("images", ("image_id",), where=where, limit=MAX_CANDIDATES)
        ids = sorted(table["image_id"].to_pylist())
        if ids:
            places = np.linspace(0, len(ids) - 1, min(limit, len(ids))).round().astype(int)
            return [ids[i] for i in places]
    return []
