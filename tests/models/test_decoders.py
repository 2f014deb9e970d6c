"""Decoders of exported detectors against objects written into each layout by hand."""

import numpy as np
import pytest

from af_pipeline.models.adapters.decoders import FAMILIES, LayoutError, family_of

SIZE = (64, 96)  # height, width: at strides 8, 16, 32 there are 8x12 + 4x6 + 2x3 = 126 cells
START = {8: 0, 16: 96, 32: 120, 64: 126}  # first row of each stride's cells
CX, CY, W, H = 70.0, 27.0, 24.0, 12.0
BOX = (58.0, 21.0, 82.0, 33.0)  # of the same object
SIDES = np.array([CX / 96, CY / 64, W / 96, H / 64], np.float32)  # relative to the input
LABEL, CLASSES = 2, 3


def cell_of(stride):
    """Row of the cell that holds the centre, its column and its row in the grid."""
    column, row = int(CX // stride), int(CY // stride)
    return START[stride] + row * (96 // stride) + column, column, row


def row_of(values, count=126):
    """Zeros [count, columns] but for one row {index: values}."""
    (at, filled), *_ = values.items()
    rows = np.zeros((count, len(filled)), np.float32)
    rows[at] = filled
    return rows


def classes(*score):
    """Scores of all classes, those of the object's class given; empty: of none."""
    return [score[0] if i == LABEL and score else 0 for i in range(CLASSES)]


def yolox(stride):
    at, column, row = cell_of(stride)
    place = [CX / stride - column, CY / stride - row, np.log(W / stride), np.log(H / stride)]
    return {"output": row_of({at: [*place, 0.8, *classes(0.9)]})}, 0.72


def yolov5(_):
    return {"output0": row_of({7: [CX, CY, W, H, 0.5, *classes(0.6)]}, 20)}, 0.3


def yolov8(_):
    return {"output0": row_of({7: [CX, CY, W, H, *classes(0.6)]}, 20).T}, 0.6


def detr(_):
    logits = np.full((5, CLASSES), -20, np.float32)
    logits[3, LABEL] = np.log(0.7 / 0.3)
    return {"logits": logits, "pred_boxes": row_of({3: SIDES}, 5)}, 0.7


def nanodet(stride):
    """Distances from the nearest corner of a cell, as logits of 8 bins; with a stride of 64 too."""
    column, row = round(CX / stride), round(CY / stride)
    at, x, y = START[stride] + row * (96 // stride) + column, column * stride, row * stride
    rows = np.zeros((128, CLASSES + 32), np.float32)
    for side, px in enumerate((x - BOX[0], y - BOX[1], BOX[2] - x, BOX[3] - y)):
        low, rest = int(px // stride), px / stride % 1
        bins = np.full(8, -30.0)
        bins[low] = np.log(max(1 - rest, 1e-9))
        bins[low + 1] = np.log(max(rest, 1e-9))
        rows[at, CLASSES + 8 * side : CLASSES + 8 * side + 8] = bins
    rows[at, :CLASSES] = classes(0.55)
    return {"output": rows}, 0.55


def ssd(_):
    corners = np.array(BOX, np.float32) / [96, 64, 96, 64]
    scores = row_of({4: [0.1, *classes(0.85)]}, 9)
    scores[:, 0] += 0.9 * (scores[:, 0] == 0)
    return {"scores": scores, "boxes": row_of({4: corners.astype(np.float32)}, 9)}, 0.85


def fastestdet(_):
    """4x6 cells of 16 px; the offset is a tanh, the sides are sigmoids."""
    raw = np.zeros((5 + CLASSES, 4, 6), np.float32)
    column, row = 4, 1
    offset = [np.arctanh(CX / 16 - column), np.arctanh(CY / 16 - row)]
    sides = [-np.log(96 / W - 1), -np.log(64 / H - 1)]
    raw[:, row, column] = [0.9, *offset, *sides, *classes(0.5)]
    return {"758": raw}, 0.9**0.6 * 0.5**0.4


def yunet(stride):
    at, column, row = cell_of(stride)
    place = [CX / stride - column, CY / stride - row, np.log(W / stride), np.log(H / stride)]
    whole = {
        "cls": row_of({at: [*classes(0.9)]}),
        "obj": row_of({at: [1.2]}),  # more than a probability counts as 1
        "bbox": row_of({at: place}),
    }
    return {
        f"{name}_{s}": rows[START[s] : START[2 * s]] for name, rows in whole.items()
        for s in (8, 16, 32)
    }, 0.9**0.5  # fmt: skip


def six(_):
    return {"output0": row_of({1: [*BOX, 0.6, LABEL]}, 3)}, 0.6


def dets(_):
    labels = np.array([-1, LABEL, 0])  # below 0: no detection, whatever its score
    found = row_of({1: [*BOX, 0.6]}, 3)
    found[0] = [1, 1, 5, 5, 0.99]
    return {"dets": found, "labels": labels}, 0.6


def three(_):
    scores = np.array([0, 0.6, 0], np.float32)
    labels = np.array([0, LABEL, 0])
    return {"labels": labels, "boxes": row_of({1: BOX}, 3), "scores": scores}, 0.6


@pytest.mark.parametrize(
    ("family", "encode", "stride"),
    [
        *[("yolox", yolox, stride) for stride in (8, 16, 32)],
        ("yolov5", yolov5, 0),
        ("yolov8", yolov8, 0),
        ("detr", detr, 0),
        *[("nanodet", nanodet, stride) for stride in (8, 16, 32)],
        ("ssd", ssd, 0),
        ("fastestdet", fastestdet, 0),
        *[("yunet", yunet, stride) for stride in (8, 16, 32)],
        *[("boxes", encode, 0) for encode in (six, dets, three)],
        *[("rtdetr", encode, 0) for encode in (six, three)],
    ],
)
def test_an_object_comes_back_as_it_was_written(family, encode, stride):
    outputs, score = encode(stride)
    boxes, scores = FAMILIES[family].decode(outputs, SIZE)
    assert boxes.shape == (len(scores), 4)
    at, label = np.unravel_index(scores.argmax(), scores.shape)
    assert label == LABEL
    assert scores[at, label] == pytest.approx(score, abs=1e-5)
    assert boxes[at] == pytest.approx(BOX, abs=1e-3)
    assert (scores > 1e-6).sum() == 1


def test_ssd_tells_boxes_from_scores_of_three_classes_by_the_name():
    """Both have four columns, in whatever order."""
    outputs, _ = ssd(0)
    boxes, scores = FAMILIES["ssd"].decode(outputs, SIZE)
    other = FAMILIES["ssd"].decode(dict(reversed(outputs.items())), SIZE)
    assert np.array_equal(boxes, other[0])
    assert np.array_equal(scores, other[1])
    two = {"a": outputs["boxes"], "b": outputs["scores"][:, [0, 3]]}  # named by no name
    assert FAMILIES["ssd"].decode(two, SIZE)[1].max() == pytest.approx(0.85)


def test_text_regions_grow_back():
    """24x12 px grow by 24*12*1.5 / (2*36) = 6 px; specks and what is unlikely are no text."""
    chance = np.zeros((1, *SIZE), np.float32)
    chance[0, 21:33, 58:82] = 0.6
    chance[0, 21:33, 58:70] = 0.8
    chance[0, 2:4, 2:7] = 0.9  # 10 px
    chance[0, 50:60, 10:40] = 0.29
    boxes, scores = FAMILIES["text_map"].decode({"map": chance}, SIZE)
    assert boxes.tolist() == [[52, 15, 88, 39]]
    assert scores == pytest.approx(np.array([[0.7]]))


ROWS = np.zeros((126, 8), np.float32)


@pytest.mark.parametrize(
    ("family", "outputs"),
    [
        ("yolox", {"output": ROWS[:, :5]}),
        ("yolox", {"output": ROWS[:100]}),  # no strides make 100 cells
        ("yolov5", {"output": ROWS[:, :5]}),
        ("yolov8", {"output": ROWS[:4]}),
        ("detr", {"logits": ROWS}),
        ("detr", {"logits": ROWS, "boxes": ROWS}),
        ("detr", {"logits": ROWS, "boxes": ROWS.sum()}),
        ("nanodet", {"output": ROWS}),
        ("nanodet", {"output": np.zeros((50, 40), np.float32)}),
        ("ssd", {"scores": ROWS}),
        ("ssd", {"boxes": ROWS[:, :4]}),
        ("ssd", {"boxes": ROWS[:, :4], "scores": ROWS[:9]}),
        ("fastestdet", {"map": ROWS}),
        ("yunet", {"cls_8": ROWS, "obj_8": ROWS, "bbox_8": ROWS}),
        ("boxes", {"dets": ROWS[:, :5]}),
        ("boxes", {"dets": ROWS}),
        ("rtdetr", {"boxes": ROWS[:, :4], "labels": ROWS[:, 0]}),
        ("text_map", {"map": np.zeros((1, 32, 48), np.float32)}),
        ("text_map", {"map": np.zeros((2, *SIZE), np.float32)}),
    ],
)
def test_another_layout_is_refused_by_what_was_found(family, outputs):
    with pytest.raises(LayoutError) as caught:
        FAMILIES[family].decode(outputs, SIZE)
    assert "64x96" in str(caught.value) or "found" in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "names", "family"),
    [
        ({f"{name}_{s}": [1, 9, 1] for name in ("cls", "obj", "bbox", "kps") for s in (8, 16, 32)},
         0, "yunet"),
        ({"dets": ["b", "n", 5], "labels": ["b", "n"]}, 0, "boxes"),
        ({"labels": [1, 300], "boxes": [1, 300, 4], "scores": [1, 300]}, 0, "rtdetr"),
        ({"logits": [1, 300, 80], "pred_boxes": [1, 300, 4]}, 0, "detr"),
        ({"pred_logits": [1, 300, 80], "pred_boxes": [1, 300, 4]}, 0, "detr"),
        ({"scores": [1, 17640, 2], "boxes": [1, 17640, 4]}, 0, "ssd"),
        ({"output0": [1, 84, 8400]}, 80, "yolov8"),
        ({"output0": ["batch", 84, "anchors"]}, 80, "yolov8"),
        ({"output0": [1, 84, 525]}, 80, "yolov8"),  # of an input of 160x160 px
        ({"output0": [1, 1204, 525]}, 1200, "yolov8"),
        ({"output0": [1, 25200, 85]}, 80, "yolov5"),
        ({"output0": [1, 252, 85]}, 80, "yolov5"),
        ({"output0": [1, 25200, 6]}, 1, "yolov5"),
        ({"output0": [1, 300, 6]}, 1, "rtdetr"),
        ({"output0": [1, 300, 6]}, 80, "rtdetr"),
        ({"output0": ["batch", "boxes", 6]}, 80, "rtdetr"),
        ({"output0": [1, 84, 8400]}, 0, None),  # without names nothing tells it from others
        ({"output0": [1, 116, 8400], "output1": [1, 32, 160, 160]}, 80, None),
        ({"output0": [1, 300, 84]}, 80, None),
        ({"output": [1, 3549, 85]}, 0, None),
        ({"map": [1, 1, "h", "w"]}, 0, None),
    ],
)  # fmt: skip
def test_family_by_names_and_shapes(outputs, names, family):
    assert family_of(outputs, names) == family
