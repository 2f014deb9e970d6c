"""What the outputs of exported detectors mean: from arrays of a file to boxes and scores.

Every decoder takes the outputs of one image by their names, without the batch axis, and the
(height, width) of the network input; it returns boxes float [A, 4] (x0, y0, x1, y1 network px) and
scores float [A, C]. Layouts are those of the families' own exports, named at each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from af_pipeline.models.detector import PIXEL_MEAN, PIXEL_STD

Array = NDArray[np.float32]
Outputs = Mapping[str, NDArray[Any]]
Decoded = tuple[Array, Array]
Size = tuple[int, int]

_STRIDES = (8, 16, 32, 64)
TEXT_THRESHOLD = 0.3  # probability from which a pixel is text (DBNet)
TEXT_LEAST = 12  # px of the smallest component that counts
TEXT_GROWTH = 1.5  # area over perimeter by which a shrunk text region grows back


@dataclass(frozen=True)
class Family:
    """What detectors of one family have in common.

    ``decode``; the input they were trained with: ``colours``, ``mean`` and ``std`` in that order,
    of values 0 to 255; ``suppresses``: their outputs went through an NMS, or need none; ``lists``:
    each box has a label, so that their outputs do not show how many classes there are.
    """

    decode: Callable[[Outputs, Size], Decoded]
    colours: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, float, float] = (0, 0, 0)
    std: tuple[float, float, float] = (1, 1, 1)
    suppresses: bool = False
    lists: bool = False


class LayoutError(ValueError):
    """The outputs are not those of the family; the message says what was expected."""


def _only(outputs: Outputs, what: str, columns: Callable[[int], bool]) -> NDArray[Any]:
    """The one output [A, columns] of a family that has one."""
    for value in outputs.values():
        if value.ndim == 2 and columns(value.shape[1]):
            return value
    raise LayoutError(f"expected one output {what}, found {shapes(outputs)}")


def shapes(outputs: Outputs) -> str:
    """Names and shapes for a message."""
    return ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())


def _grid(size: Size, strides: Sequence[int]) -> tuple[Array, Array]:
    """Cells of all strides, row by row: (column, row) [A, 2] and stride [A, 1]."""
    cells, steps = [], []
    for stride in strides:
        rows, columns = -(-size[0] // stride), -(-size[1] // stride)
        y, x = np.mgrid[:rows, :columns]
        cells.append(np.stack([x.ravel(), y.ravel()], 1))
        steps.append(np.full((rows * columns, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(steps).astype(np.float32)


def _strides(size: Size, cells: int, what: str) -> Sequence[int]:
    """Which of the usual strides make so many cells."""
    for count in (3, 4):
        if len(_grid(size, _STRIDES[:count])[0]) == cells:
            return _STRIDES[:count]
    raise LayoutError(f"{cells} cells of {what} do not fit an input of {size[0]}x{size[1]} px")


def corners_of(centres: NDArray[Any], sides: NDArray[Any]) -> Array:
    """Boxes [A, 4] by their corners, of their centres (x, y) and sides (width, height) [A, 2]."""
    return np.concatenate([centres - sides / 2, centres + sides / 2], 1).astype(np.float32)


def sigmoid(values: NDArray[Any]) -> NDArray[Any]:
    """Probabilities of logits."""
    return 1 / (1 + np.exp(-values))


def yolox(outputs: Outputs, size: Size) -> Decoded:
    """YOLOX: [A, 5 + C] of centre and log side in cells, objectness, classes."""
    rows = _only(outputs, "[cells, 5 + classes]", lambda n: n > 5)
    cells, step = _grid(size, _strides(size, len(rows), "YOLOX"))
    boxes = corners_of((rows[:, :2] + cells) * step, np.exp(rows[:, 2:4]) * step)
    return boxes, rows[:, 4:5] * rows[:, 5:]


def yolov5(outputs: Outputs, size: Size) -> Decoded:
    """YOLOv5, v6, v7: [A, 5 + C] of centre and side in px, objectness, classes."""
    rows = _only(outputs, "[boxes, 5 + classes]", lambda n: n > 5)
    return corners_of(rows[:, :2], rows[:, 2:4]), rows[:, 4:5] * rows[:, 5:]


def yolov8(outputs: Outputs, size: Size) -> Decoded:
    """YOLOv8, v9, v11, v12: [4 + C, A] of centre and side in px, classes."""
    values = [value for value in outputs.values() if value.ndim == 2 and value.shape[0] > 4]
    if not values:
        raise LayoutError(f"expected one output [4 + classes, boxes], found {shapes(outputs)}")
    rows = values[0].T
    return corners_of(rows[:, :2], rows[:, 2:4]), rows[:, 4:]


def detr(outputs: Outputs, size: Size) -> Decoded:
    """DETR's relatives with a sigmoid (Deformable DETR, RT-DETR, D-FINE) as their networks answer:
    logits [Q, C] and relative centre and side [Q, 4]."""
    named = [value for name, value in outputs.items() if "box" in name and value.shape[-1:] == (4,)]
    logits = [value for name, value in outputs.items() if "logit" in name or "score" in name]
    if not named or not logits:
        raise LayoutError(f"expected logits [Q, C] and boxes [Q, 4], found {shapes(outputs)}")
    scale = np.array([size[1], size[0]], np.float32)
    boxes = corners_of(named[0][:, :2] * scale, named[0][:, 2:] * scale)
    return boxes, sigmoid(logits[0])


def nanodet(outputs: Outputs, size: Size) -> Decoded:
    """NanoDet-Plus: [A, C + 32] of classes and, for each side, 8 logits of its distance."""
    rows = _only(outputs, "[cells, classes + 32]", lambda n: n > 32)
    cells, step = _grid(size, _strides(size, len(rows), "NanoDet"))
    bins = np.exp(rows[:, -32:] - rows[:, -32:].max(1, keepdims=True)).reshape(-1, 4, 8)
    distance = (bins / bins.sum(2, keepdims=True)) @ np.arange(8, dtype=np.float32) * step
    corner = cells * step
    boxes = np.concatenate([corner - distance[:, :2], corner + distance[:, 2:]], 1)
    return boxes.astype(np.float32), rows[:, :-32]


def ssd(outputs: Outputs, size: Size) -> Decoded:
    """SSD and UltraFace: scores [A, 1 + C], background first, and relative corners [A, 4]."""
    flat = {name: value for name, value in outputs.items() if value.ndim == 2}
    # By its name first: three classes and the background have four columns too.
    boxes = sorted((n for n in flat if flat[n].shape[1] == 4), key=lambda name: "box" not in name)
    scores = [value for name, value in flat.items() if name != boxes[0]] if boxes else []
    if not scores or len(scores[0]) != len(flat[boxes[0]]) or scores[0].shape[1] < 2:
        raise LayoutError(f"expected scores [A, 1 + C] and boxes [A, 4], found {shapes(outputs)}")
    return flat[boxes[0]] * np.tile(np.array([size[1], size[0]], np.float32), 2), scores[0][:, 1:]


def fastestdet(outputs: Outputs, size: Size) -> Decoded:
    """FastestDet: one map [5 + C, H/16, W/16] of objectness, box and classes."""
    maps = [value for value in outputs.values() if value.ndim == 3 and value.shape[0] > 5]
    if not maps:
        raise LayoutError(f"expected a map [5 + classes, h, w], found {shapes(outputs)}")
    rows = maps[0].reshape(len(maps[0]), -1).T
    grid = maps[0].shape[1:]
    y, x = np.mgrid[: grid[0], : grid[1]]
    cells = np.stack([x.ravel(), y.ravel()], 1)
    scale = np.array([size[1], size[0]], np.float32)
    centres = (cells + np.tanh(rows[:, 1:3])) / np.array(grid[::-1]) * scale
    scores = rows[:, :1].clip(0) ** 0.6 * rows[:, 5:].clip(0) ** 0.4
    return corners_of(centres, sigmoid(rows[:, 3:5]) * scale), scores.astype(np.float32)


def yunet(outputs: Outputs, size: Size) -> Decoded:
    """YuNet: for each stride s cls_s and obj_s [A, 1] and bbox_s [A, 4] in cells."""
    try:
        parts = [
            [outputs[f"{name}_{stride}"] for stride in (8, 16, 32)]
            for name in ("cls", "obj", "bbox")
        ]
    except KeyError:
        wanted = "cls_8, obj_8, bbox_8 and those of 16 and 32"
        raise LayoutError(f"expected {wanted}, found {shapes(outputs)}") from None
    classes, objects, box = (np.concatenate(one) for one in parts)
    cells, step = _grid(size, (8, 16, 32))
    boxes = corners_of((cells + box[:, :2]) * step, np.exp(box[:, 2:]) * step)
    return boxes, np.sqrt(classes.clip(0, 1) * objects.clip(0, 1))


def listed(outputs: Outputs, size: Size) -> Decoded:
    """Graphs with their selection inside: corners in px with a score and a label each.

    [n, 6] of corners, score, label; dets [n, 5] and labels [n]; or boxes [n, 4], scores [n] and
    labels [n], as torchvision, MMDeploy, RT-DETR's and YOLOv10's exports have them.
    """
    flat = {name: value for name, value in outputs.items() if value.ndim <= 2}
    six = [value for value in flat.values() if value.ndim == 2 and value.shape[1] == 6]
    five = [value for value in flat.values() if value.ndim == 2 and value.shape[1] == 5]
    four = [value for value in flat.values() if value.ndim == 2 and value.shape[1] == 4]
    labels = [v for name, v in flat.items() if v.ndim == 1 and ("label" in name or "class" in name)]
    scores = [v for name, v in flat.items() if v.ndim == 1 and "score" in name]
    if six:
        return one_hot(six[0][:, :4], six[0][:, 4], six[0][:, 5])
    if five and labels:
        return one_hot(five[0][:, :4], five[0][:, 4], labels[0])
    if four and labels and scores:
        return one_hot(four[0], scores[0], labels[0])
    raise LayoutError(f"expected boxes, scores and labels, found {shapes(outputs)}")


def one_hot(boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]) -> Decoded:
    """Boxes [n, 4] with a score and a label each as a table of scores; labels below 0 are none."""
    label = labels.astype(np.int64)
    table = np.zeros((len(boxes), int(label.max(initial=0)) + 1), np.float32)
    own = label >= 0
    table[np.flatnonzero(own), label[own]] = scores[own]
    return boxes.astype(np.float32), table


def text_map(outputs: Outputs, size: Size) -> Decoded:
    """DBNet, PP-OCR: a probability map [1, H, W] of shrunk text regions; one class."""
    maps = [
        value
        for value in outputs.values()
        if value.shape[-2:] == size and value.size == size[0] * size[1]
    ]
    if not maps:
        raise LayoutError(f"expected a map of {size[0]}x{size[1]} px, found {shapes(outputs)}")
    probability = maps[0].reshape(size)
    text = (probability >= TEXT_THRESHOLD).astype(np.uint8)
    count, marks, stats, _ = cv2.connectedComponentsWithStats(text, connectivity=8)
    kept = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] >= TEXT_LEAST)
    kept = kept[kept > 0]  # 0 is the background
    sums = np.bincount(marks.ravel(), probability.ravel(), count)
    scores = (sums / np.maximum(stats[:, cv2.CC_STAT_AREA], 1))[kept, None]
    left, top, width, height = stats[kept, :4].astype(np.float32).T
    grow = width * height * TEXT_GROWTH / np.maximum(2 * (width + height), 1)
    boxes = np.stack([left - grow, top - grow, left + width + grow, top + height + grow], 1)
    return boxes, scores.astype(np.float32)


FAMILIES: dict[str, Family] = {
    "yolox": Family(yolox, "bgr"),
    "yolov5": Family(yolov5, std=(255, 255, 255)),
    "yolov8": Family(yolov8, std=(255, 255, 255)),
    "detr": Family(detr, std=(255, 255, 255), suppresses=True),
    "rtdetr": Family(listed, std=(255, 255, 255), suppresses=True, lists=True),
    "nanodet": Family(nanodet, "bgr", PIXEL_MEAN[::-1], PIXEL_STD[::-1]),
    "ssd": Family(ssd, "rgb", (127, 127, 127), (128, 128, 128)),
    "fastestdet": Family(fastestdet, "bgr", std=(255, 255, 255)),
    "yunet": Family(yunet, "bgr"),
    "boxes": Family(listed, "bgr", PIXEL_MEAN[::-1], PIXEL_STD[::-1], suppresses=True, lists=True),
    "text_map": Family(text_map, "bgr", PIXEL_MEAN[::-1], PIXEL_STD[::-1]),
}


def family_of(outputs: Mapping[str, Sequence[Any]], classes: int) -> str | None:
    """The family that names and declared shapes of outputs (batch axis included) fit; None: none.

    ``classes``: how many the file names in its metadata, as Ultralytics' exports do; 0: none.
    """
    names = set(outputs)
    if {"cls_8", "obj_8", "bbox_8"} <= names:
        return "yunet"
    if "labels" in names and names & {"dets", "boxes"}:
        return "rtdetr" if "scores" in names else "boxes"
    if {"logits", "pred_boxes"} <= names or {"pred_logits", "pred_boxes"} <= names:
        return "detr"
    if {"scores", "boxes"} == names:
        return "ssd"
    if len(outputs) != 1:
        return None
    (shape,) = outputs.values()
    if len(shape) != 3 or not classes:
        return None
    if shape[1] == 4 + classes:
        return "yolov8"
    if shape[2] == 6 and (classes > 1 or _few(shape[1])):  # of one class YOLOv5's has 6 as well
        return "rtdetr"
    return "yolov5" if shape[2] == 5 + classes else None


def _few(rows: Any) -> bool:
    """Whether so many are what a selection left: a YOLOv5 answers with thousands."""
    return isinstance(rows, int) and rows <= 1000
