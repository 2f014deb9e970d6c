"""Pictures of a run: the FocusChips that were looked at, and the detections that were found."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.dataset as ds

from af_pipeline.data.storage import read_bytes
from af_pipeline.images.decode import MAX_PIXELS, decode_image, encode_jpeg
from af_pipeline.images.depth import DepthConfig
from af_pipeline.output.folder import OutputFolder
from af_pipeline.reporting.canvas import (
    FAINT,
    INK,
    WHITE,
    Color,
    Image,
    caption_strip,
    dashed_outline,
    distinct_color,
    framed,
    letter_px,
    line_px,
    longest_side,
    outline,
    put_tag,
)
from af_pipeline.reporting.gallery import Picture, gallery_page
from af_pipeline.reporting.page import write_page

Boxes = npt.NDArray[np.floating[Any]] | npt.NDArray[np.integer[Any]]

SCALE_COLORS: tuple[Color, ...] = (WHITE, (255, 196, 0), (0, 220, 255), (255, 80, 220))
UNSEEN_BRIGHTNESS = 0.4  # of what no fine scale looked at
MAX_LEGEND = 20
MAX_LISTED_FAILURES = 100
MAX_CANDIDATES = 10_000  # images considered for a sample, so that a huge run stays cheap
MIN_PANEL_SIDE = 1000  # px; smaller photographs are enlarged, or captions would not fit
_IMAGE_COLUMNS = (
    "image_id",
    "uri",
    "width",
    "height",
    "status",
    "error",
    "pixels_processed",
    "pixels_pyramid",
)
_BOX_COLUMNS = ("x0", "y0", "x1", "y1")


def draw_detections(
    image: Image,
    boxes: Boxes,
    labels: Sequence[int] | npt.NDArray[np.integer[Any]],
    scores: Sequence[float] | npt.NDArray[np.floating[Any]],
    class_names: Sequence[str],
    *,
    title: str = "",
    max_score_texts: int = 25,
) -> Image:
    """The image with outlined boxes, one colour a class, and a legend with counts.

    `image` uint8 [H, W, 3] RGB (not changed), `boxes` [N, 4] xyxy half-open in its px, `labels`
    [N] indices into `class_names`, `scores` [N]. Scores are written beside the boxes when there
    are at most `max_score_texts`. Returns [H + caption + legend, W, 3].
    Raises ValueError when lengths differ or a label has no name.
    """
    found = _as_boxes(boxes)
    classes, certainty = np.asarray(labels, np.int64), np.asarray(scores, np.float64)
    if not len(found) == len(classes) == len(certainty):
        raise ValueError(f"{len(found)} boxes, {len(classes)} labels, {len(certainty)} scores")
    if len(classes) and (classes.min() < 0 or classes.max() >= len(class_names)):
        raise ValueError(f"labels must index the {len(class_names)} class names")
    canvas, width = image.copy(), line_px(image)
    colors = [distinct_color(int(label)) for label in classes]
    order = np.argsort(certainty, kind="stable")  # the surest is drawn last, on top
    for i in order:
        outline(canvas, found[i], colors[i], width)
    if len(found) <= max_score_texts:
        for i in order:
            _write_score(canvas, found[i], float(certainty[i]), colors[i])
    return framed(canvas, title, _class_legend(classes, class_names))


def draw_chips(
    image: Image,
    chips_xyxy: Boxes,
    scales: Sequence[int] | npt.NDArray[np.integer[Any]],
    num_scales: int,
    *,
    title: str = "",
) -> Image:
    """The image darkened where fewer fine scales looked, FocusChips outlined in scale colours.

    `chips_xyxy` [M, 4] half-open in the px of `image`, `scales` [M] in [0, num_scales): scale 0
    is the coarse look at the whole image and darkens nothing. The legend gives chips and the
    share of the image they cover together. Returns [H + caption + legend, W, 3].
    Raises ValueError when lengths differ or a scale is out of range.
    """
    chips, levels = _as_boxes(chips_xyxy), np.asarray(scales, np.int64)
    if len(chips) != len(levels):
        raise ValueError(f"{len(chips)} chips but {len(levels)} scales")
    if len(levels) and (levels.min() < 0 or levels.max() >= num_scales):
        raise ValueError(f"chip scales must lie in [0, {num_scales})")
    by_scale = [chips[levels == scale] for scale in range(num_scales)]
    masks = [_covered(image, some) for some in by_scale]
    canvas, width = _darkened(image, masks[1:]), line_px(image)
    for scale, some in enumerate(by_scale):
        for chip in some:
            outline(canvas, chip, _scale_color(scale), width + (scale > 0))
    entries = enumerate(zip(by_scale, masks, strict=True))
    legend = [(_scale_color(s), _scale_text(s, len(some), mask)) for s, (some, mask) in entries]
    return framed(canvas, title, legend)


def draw_ground_truth(image: Image, boxes: Boxes) -> Image:
    """The image [H, W, 3] with thin dashed white boxes [N, 4] xyxy; detections go over it."""
    canvas, width = image.copy(), max(1, line_px(image) // 2)
    for box in _as_boxes(boxes):
        dashed_outline(canvas, box, WHITE, width)
    return canvas


def picture_of_image(
    out_dir: str | Path, image_id: str, image: Image, min_score: float = 0.3
) -> Image:
    """What the run saw and found in one image: FocusChips left (or on top), detections beside.

    `image` uint8 [H, W, 3] RGB is the photograph or a resized copy: boxes are scaled to it.
    Detections below `min_score` are left out. Without a chips table only detections are shown.
    Raises ValueError for an image that the run does not list, or that failed in it.
    """
    run = OutputFolder.of_run(out_dir)
    row = _image_row(run, image_id)
    if row["status"] != "ok":
        raise ValueError(f"{image_id} failed in the run: {row['error']}")
    return _compose(run, row, image, min_score)


def write_pictures(
    out_dir: str | Path,
    target: Path,
    image_ids: Sequence[str] | None = None,
    limit: int = 6,
    max_side: int = 2000,
) -> list[Path]:
    """Write a JPEG per image and a gallery `index.html` into `target`; return the JPEG paths.

    Without `image_ids`, up to `limit` images with detections are taken, evenly spaced in the
    order of their ids. `max_side` bounds the photographs' longest side together, in px. Images
    that failed in the run, or cannot be read now, are listed on the page with their error.
    Raises ValueError for an image_id that the run does not list.
    """
    run = OutputFolder.of_run(out_dir)
    chosen = _sample_ids(run, limit) if image_ids is None else list(image_ids)
    target.mkdir(parents=True, exist_ok=True)
    pictures, failures = [], []
    for number, image_id in enumerate(chosen, start=1):
        row = _image_row(run, image_id)
        try:
            picture = _picture_of_row(run, row, max_side)
        except (OSError, ValueError) as error:  # an unreadable image must not cost the others
            failures.append((image_id, str(error)))
            continue
        name = _file_name(number, image_id)
        (target / name).write_bytes(encode_jpeg(picture))
        pictures.append(Picture(name, image_id))
    _write_page(run, target, pictures, failures)
    return [target / picture.file_name for picture in pictures]


def _file_name(number: int, image_id: str) -> str:
    """A name for any file system; the number makes it unique."""
    stem = image_id.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return f"{number:03d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', stem)[-80:]}.jpg"


def _as_boxes(boxes: Boxes) -> npt.NDArray[np.float64]:
    return np.asarray(boxes, np.float64).reshape(-1, 4)


def _write_score(canvas: Image, box: npt.NDArray[np.float64], score: float, color: Color) -> None:
    height = max(8, round(0.75 * letter_px(canvas)))
    base = int(box[1]) - round(0.7 * height)
    base = base if base > 2 * height else int(box[3]) + round(1.8 * height)
    put_tag(canvas, f"{score:.2f}", max(0, int(box[0])), base, height, color)


def _class_legend(
    labels: npt.NDArray[np.int64], class_names: Sequence[str]
) -> list[tuple[Color, str]]:
    """Classes by falling count; the rare rest of a long list is summed up."""
    counts = np.bincount(labels, minlength=len(class_names))
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    entries = [(distinct_color(i), f"{class_names[i]}: {counts[i]}") for i in order[:MAX_LEGEND]]
    rest = order[MAX_LEGEND:]
    if rest:
        entries.append((FAINT, f"{len(rest)} more classes: {counts[rest].sum()}"))
    return entries or [(FAINT, "no detections")]


def _scale_color(scale: int) -> Color:
    return SCALE_COLORS[scale] if scale < len(SCALE_COLORS) else distinct_color(scale)


def _scale_text(scale: int, count: int, mask: npt.NDArray[np.bool_]) -> str:
    if scale == 0 and not count:
        return "scale 0: whole image"
    noun = "chip" if count == 1 else "chips"
    return f"scale {scale}: {count} {noun}, {mask.mean():.1%} of the area"


def _covered(image: Image, chips: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """bool [H, W]: the pixels inside any chip; overlaps count once."""
    mask = np.zeros(image.shape[:2], bool)
    for x0, y0, x1, y1 in np.maximum(np.round(chips), 0).astype(int):
        mask[y0:y1, x0:x1] = True
    return mask


def _darkened(image: Image, masks: Sequence[npt.NDArray[np.bool_]]) -> Image:
    """Brightness grows with the number of fine scales that looked; all of them: unchanged."""
    if not masks:
        return image.copy()
    seen = np.sum(masks, axis=0) / len(masks)  # [H, W] in [0, 1]
    brightness = UNSEEN_BRIGHTNESS + (1 - UNSEEN_BRIGHTNESS) * seen
    return np.asarray(np.round(image * brightness[..., None]), np.uint8)


def _image_row(run: OutputFolder, image_id: str) -> dict[str, Any]:
    rows = run.table("images", _IMAGE_COLUMNS, where=ds.field("image_id") == image_id)
    if not rows.num_rows:
        raise ValueError(f"{run.uri} has no image '{image_id}': give an image_id of its images")
    row: dict[str, Any] = rows.to_pylist()[0]
    return row


def _picture_of_row(run: OutputFolder, row: Mapping[str, Any], max_side: int) -> Image:
    if row["status"] != "ok":
        raise ValueError(str(row["error"]))
    source = (run.run_record() or {}).get("config", {}).get("source", {})
    depth = DepthConfig(**source.get("depth", {}))
    limit = source.get("max_pixels", MAX_PIXELS)
    image = decode_image(read_bytes(row["uri"]), limit, depth)
    return _compose(run, row, _fitted(image, max_side), 0.3)


def _compose(run: OutputFolder, row: Mapping[str, Any], image: Image, min_score: float) -> Image:
    manifest = run.run_record() or {}
    zoom = np.tile([image.shape[1] / row["width"], image.shape[0] / row["height"]], 2)
    found = _found(run, row["image_id"], min_score, manifest)
    names = found.class_names
    detections = draw_detections(
        image,
        found.boxes * zoom,
        found.labels,
        found.scores,
        names,
        title=f"{len(found.boxes)} detections with score >= {min_score:g}",
    )
    panels = [detections]
    chips, scales = _looked_at(run, row["image_id"])
    if len(chips) or (run.has_table("chips") and _config(manifest).get("mode") == "autofocus"):
        count = max([_num_scales(manifest), *(scales + 1)])
        title = "FocusChips: what was looked at, by scale"
        panels.insert(0, draw_chips(image, chips * zoom, scales, count, title=title))
    picture = _joined(panels, stacked=_is_landscape(image))
    caption = _caption(row, manifest, len(found.boxes))
    height = round(1.2 * letter_px(image))
    return np.concatenate([caption_strip(picture.shape[1], caption, height), picture])


@dataclass(frozen=True)
class _Found:
    """Detections of one image: boxes [N, 4] float64 original px, labels [N], scores [N]."""

    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    class_names: list[str]


def _found(run: OutputFolder, image_id: str, min_score: float, record: Mapping[str, Any]) -> _Found:
    where = (ds.field("image_id") == image_id) & (ds.field("score") >= min_score)
    table = run.table("detections", ("label", "score", *_BOX_COLUMNS), where=where)
    listed = [str(name) for name in record.get("class_names") or []]
    labels = table["label"].to_pylist()
    names = list(dict.fromkeys([*listed, *sorted(set(labels))]))  # colours by place in the run
    return _Found(
        boxes=_box_array(table),
        labels=np.array([names.index(label) for label in labels], np.int64),
        scores=np.asarray(table["score"].to_numpy(), np.float64),
        class_names=names,
    )


def _looked_at(
    run: OutputFolder, image_id: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """FocusChips [M, 4] in original px and their scales [M]; none where they were turned off."""
    if not run.has_table("chips"):
        return np.zeros((0, 4)), np.zeros(0, np.int64)
    where = ds.field("image_id") == image_id
    table = run.table("chips", ("scale", *_BOX_COLUMNS), where=where)
    return _box_array(table), np.asarray(table["scale"].to_numpy(), np.int64)


def _box_array(table: Any) -> npt.NDArray[np.float64]:
    return np.stack([np.asarray(table[c].to_numpy(), np.float64) for c in _BOX_COLUMNS], axis=1)


def _config(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    config = manifest.get("config")
    return config if isinstance(config, Mapping) else {}


def _num_scales(manifest: Mapping[str, Any]) -> int:
    """Scales the run looked at; 1 where run.json does not say, and the chips tell more."""
    config = _config(manifest)
    return 1 if config.get("mode") == "whole" else max(1, len(config.get("pyramid") or ()))


def _caption(row: Mapping[str, Any], manifest: Mapping[str, Any], count: int) -> str:
    mode = shorten(str(_config(manifest).get("mode") or ""), 40, placeholder="...")
    processed, pyramid = row["pixels_processed"], row["pixels_pyramid"]
    share = f" ({processed / pyramid:.1%})" if pyramid else ""
    size = f"{shorten(row['image_id'], 200, placeholder='...')} ({row['width']} x {row['height']})"
    pixels = f"{processed / 1e6:.2f} of {pyramid / 1e6:.2f} Mpx of the pyramid processed{share}"
    found = f"{count} detection{'' if count == 1 else 's'}"
    return " | ".join([*([f"mode {mode}"] if mode else []), size, found, pixels])


def _is_landscape(image: Image) -> bool:
    return bool(image.shape[1] > image.shape[0])


def _joined(panels: Sequence[Image], stacked: bool) -> Image:
    """Panels below each other or side by side, with a gap; short ones are filled up below."""
    gap = max(4, longest_side(panels[0]) // 150)
    if stacked:
        bar = np.full((gap, panels[0].shape[1], 3), INK, np.uint8)
        return np.concatenate([part for panel in panels for part in (bar, panel)][1:])
    height = max(panel.shape[0] for panel in panels)
    bar = np.full((height, gap, 3), INK, np.uint8)
    even = [
        np.concatenate([p, np.full((height - p.shape[0], p.shape[1], 3), INK, np.uint8)])
        for p in panels
    ]
    return np.concatenate([part for panel in even for part in (bar, panel)][1:], axis=1)


def _fitted(image: Image, max_side: int) -> Image:
    """Resized so that two panels fit `max_side`, and captions fit a panel."""
    height, width = image.shape[:2]
    together = max(width, 2 * height) if _is_landscape(image) else max(2 * width, height)
    zoom = min(max_side / together, max(1.0, MIN_PANEL_SIDE / max(height, width)))
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)


def _sample_ids(run: OutputFolder, limit: int) -> list[str]:
    """Evenly spaced ids of ok images, of those with detections where there are any."""
    is_ok = ds.field("status") == "ok"
    for where in (is_ok & (ds.field("num_detections") > 0), is_ok):
        table = run.table("images", ("image_id",), where=where, limit=MAX_CANDIDATES)
        ids = sorted(table["image_id"].to_pylist())
        if ids:
            places = np.linspace(0, len(ids) - 1, min(limit, len(ids))).round().astype(int)
            return [ids[i] for i in places]
    return []


def _write_page(
    run: OutputFolder, target: Path, pictures: list[Picture], failures: list[tuple[str, str]]
) -> None:
    failed = ds.field("status") == "error"
    rows = run.table("images", ("image_id", "error"), where=failed, limit=MAX_LISTED_FAILURES)
    seen = {image_id for image_id, _ in failures}
    listed = [
        *failures,
        *((r["image_id"], r["error"]) for r in rows.to_pylist() if r["image_id"] not in seen),
    ]
    unread = sum(i not in set(rows["image_id"].to_pylist()) for i, _ in failures)
    page = gallery_page(
        f"Pictures of {run.uri}",
        run.run_record(),
        pictures,
        listed,
        num_failed=run.count("images", failed) + unread,
    )
    write_page(page, target / "index.html")
