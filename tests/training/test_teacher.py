"""Labels of the focus network: what the pyramid finds, and which scale finds it."""

import numpy as np
import pytest

from af_pipeline.core.schema import Detections, ImageRow
from af_pipeline.core.stacking import StackRule
from af_pipeline.settings.index import IndexConfig
from af_pipeline.training.teacher import CONFIDENT, UNSURE, labels_of, pyramid_config, taught

BOX = (64, 32, 96, 64)  # cells (2..3, 4..5) at full size
RULE = StackRule(method="hard", iou=0.5)


def row(*found: tuple[int, float, int, tuple[int, int, int, int]]) -> ImageRow:
    """Of (scale, score, label, box)."""
    scales, scores, labels, boxes = zip(*found, strict=True)
    made = ImageRow("a", "a.jpg", 256, 128)
    made.detections = Detections(
        np.array(boxes, np.float32),
        np.array(scores, np.float32),
        np.array(labels, np.int32),
        np.array(scales, np.int8),
    )
    return made


def cells(image, scale, channel, value, size=(128, 256)):
    return np.argwhere(labels_of(image, scale, size)[channel] == value).tolist()


WHOLE = [[2, 4], [2, 5], [3, 4], [3, 5]]


@pytest.mark.parametrize(
    ("found", "scale", "focus", "present"),
    [
        ([(1, 0.9, 0, BOX)], 0, WHOLE, []),  # only the finer scale finds it
        ([(1, 0.9, 0, BOX)], 1, [], WHOLE),
        ([(0, 0.9, 0, BOX)], 0, [], WHOLE),  # the coarse scale does: nothing is left to find
        ([(0, 0.3, 0, BOX), (1, 0.9, 0, BOX)], 0, [], WHOLE),  # poorly, but it does
        ([(0, 0.2, 0, BOX), (1, 0.9, 0, BOX)], 0, WHOLE, []),  # too poorly
        ([(0, 0.9, 1, BOX), (1, 0.9, 0, BOX)], 0, WHOLE, WHOLE),  # that is another class
        ([(2, 0.9, 0, BOX)], 1, WHOLE, []),
        ([(0, 0.9, 0, BOX), (2, 0.9, 0, BOX)], 1, [], []),  # found before, nothing for scale 1
    ],
)
def test_which_scale_is_asked_for_an_object(found, scale, focus, present):
    image = taught(row(*found), RULE)
    assert cells(image, scale, 0, 1) == focus
    assert cells(image, scale, 1, 1) == present


def test_what_the_pyramid_is_unsure_of_is_no_label():
    image = taught(row((1, CONFIDENT - 0.01, 0, BOX)), RULE)
    assert cells(image, 0, 0, -1) == WHOLE
    assert cells(image, 0, 0, 1) == []
    nothing = taught(row((1, UNSURE - 0.01, 0, BOX)), RULE)
    assert (labels_of(nothing, 0, (128, 256)) == 0).all()


def test_a_sure_object_wins_its_cells():
    image = taught(row((1, 0.9, 0, BOX), (1, 0.3, 1, BOX)), RULE)
    assert cells(image, 0, 0, 1) == WHOLE


def test_labels_are_those_of_the_size_that_is_seen():
    image = taught(row((1, 0.9, 0, BOX)), RULE)
    assert labels_of(image, 0, (64, 128)).shape == (2, 4, 8)
    assert cells(image, 0, 0, 1, (64, 128)) == [[1, 2]]
    assert labels_of(image, 0, (70, 140)).shape == (2, 5, 9)


def test_the_finest_scale_asks_for_no_finer_one():
    cells = labels_of(taught(row((1, 0.9, 0, BOX)), RULE), 1, (128, 256), finest=True)
    assert (cells[0] == -1).all()
    assert np.argwhere(cells[1] == 1).tolist() == WHOLE


def test_detections_are_stacked_into_objects_and_kept_raw():
    image = taught(row((0, 0.6, 0, BOX), (1, 0.9, 0, BOX), (1, 0.05, 0, BOX)), RULE)
    assert image.objects.scores.tolist() == pytest.approx([0.9])
    assert len(image.raw) == 3


def test_the_teacher_keeps_what_each_scale_finds():
    config = IndexConfig(
        pyramid=[{"factor": 0.5}, {"factor": 1.0}],
        focus={"steps": [{}], "budget": 1e6, "network": {"path": "x"}},
        stack={"min_score": 0.4, "border": 9},
        output={"uri": "elsewhere"},
    )
    made = pyramid_config(config, "out")
    assert made.mode == "pyramid"
    assert made.focus.network is None
    assert made.focus.budget is None
    assert made.output.uri == "out"
    assert (made.stack.method, made.stack.iou, made.stack.border) == ("hard", 1.0, 9)
    assert made.stack.min_score == UNSURE
