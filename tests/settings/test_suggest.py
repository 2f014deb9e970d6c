"""suggest: pyramids cover every size, follow from the boxes, and match recipes made by hand."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage
from af_pipeline.settings.suggest.anchors import Anchors, anchor_recall, make_anchors
from af_pipeline.settings.suggest.statistics import DatasetStatistics, dataset_statistics
from af_pipeline.settings.suggest.suggest import Suggestion, suggest
from tests.helpers.realdata import real_data
from tests.helpers.truth import load


def measure(
    boxes: list[NDArray], sizes: list[tuple[int, int]], crowd: NDArray | None = None
) -> DatasetStatistics:
    """Of boxes an image, all of one class; ``sizes``: height and width."""
    images = []
    for own, (height, width) in zip(boxes, sizes, strict=True):
        flags = np.zeros(len(own), bool) if crowd is None else crowd
        kept = own.astype(np.float32), np.zeros(len(own), np.int32), flags
        images.append(AnnotatedImage("a", "a", width, height, *kept))
    return dataset_statistics(AnnotatedDataset.of(images, ("thing",), (1,)))


def squares(side: float, count: int, image: int, step: int) -> NDArray[np.float32]:
    """``count`` boxes of ``side`` px in rows, ``step`` px apart."""
    place = np.arange(count) * step
    x, y = place % (image - step), place // (image - step) * step
    return np.stack([x, y, x + side, y + side], 1).astype(np.float32)


def measured(name: str, split: str) -> DatasetStatistics:
    folder = real_data(name)
    return dataset_statistics(load(folder / f"{split}.json", str(folder / "images")))


def factors(suggestion: Suggestion) -> list[float]:
    return [use.scale.factor or 0.0 for use in suggestion.scales]


@st.composite
def statistics_of(draw: st.DrawFn) -> DatasetStatistics:
    sizes, boxes = [], []
    for _ in range(draw(st.integers(1, 3))):
        height, width = draw(st.integers(40, 3000)), draw(st.integers(40, 3000))
        seed, count = draw(st.integers(0, 1000)), draw(st.integers(0, 12))
        rng = np.random.default_rng(seed)
        side = np.exp(rng.uniform(np.log(2), np.log(min(height, width)), (count, 2)))
        corner = rng.uniform(0, np.array([width, height]) - side)
        boxes.append(np.concatenate([corner, corner + side], 1).astype(np.float32))
        sizes.append((height, width))
    boxes.append(squares(draw(st.floats(1, 30)), 3, 90, 31))
    sizes.append((90, 90))
    return measure(boxes, sizes)


@settings(max_examples=30, deadline=None)
@given(statistics_of(), st.sampled_from([64, 320, 512]))
def test_every_size_has_a_scale(statistics: DatasetStatistics, chip_size: int) -> None:
    found = suggest(statistics, chip_size)
    scales = [use.scale for use in found.scales]
    assert 1 <= len(scales) <= 4
    assert scales[0].valid_high == -1
    assert scales[-1].valid_low == -1
    for coarse, fine in pairwise(scales):
        assert coarse.factor is not None
        assert fine.factor is not None
        assert coarse.factor < fine.factor <= 4
        assert 0 < coarse.valid_low < fine.valid_high  # they overlap
    side = np.concatenate([np.geomspace(0.1, 1e5, 500), [abs(s.valid_high) for s in scales]])
    boxes = np.stack([0 * side, 0 * side, side, side], 1)
    assert np.any([scale.valid(boxes) for scale in scales], axis=0).all()
    assert np.any([scale.valid(statistics.boxes) for scale in scales], axis=0).all()
    assert sum(use.boxes for use in found.scales) >= len(statistics.boxes)


@settings(max_examples=15, deadline=None)
@given(statistics_of())
def test_what_a_finer_scale_answers_for_is_focus(statistics: DatasetStatistics) -> None:
    found = suggest(statistics)
    assert found.focus.ignore_below < found.focus.focus_below <= found.focus.ignore_until
    for coarse, fine in pairwise(use.scale for use in found.scales):
        assert coarse.factor is not None
        assert fine.valid_high * coarse.factor < found.focus.focus_below


@settings(max_examples=15, deadline=None)
@given(statistics_of(), st.integers(1, 9))
def test_anchors_rise(statistics: DatasetStatistics, count: int) -> None:
    anchors = suggest(statistics, anchor_count=count).anchors
    assert 1 <= len(anchors.sizes) <= count
    for values in (anchors.sizes, anchors.ratios):
        assert min(values) > 0
        assert list(values) == sorted(set(values))


@settings(max_examples=15, deadline=None)
@given(statistics_of())
def test_a_cascade_costs_no_more_than_its_pyramid(statistics: DatasetStatistics) -> None:
    found = suggest(statistics)
    assert found.chips_mp <= found.pyramid_mp + 1e-9
    assert found.scales[0].megapixels <= found.cells_mp + 1e-9
    assert all(0 <= use.focus_cells <= 1 and 0 <= use.focus_chips <= 1 for use in found.scales)


@settings(max_examples=15, deadline=None)
@given(statistics_of())
def test_other_pyramids_are_one_scale_away(statistics: DatasetStatistics) -> None:
    suggestion = suggest(statistics)
    own, chips = factors(suggestion), suggestion.chips_mp
    for other in suggestion.others:
        assert abs(len(other.factors) - len(own)) == 1
        assert set(other.factors) < set(own) or set(own) < set(other.factors)
        assert all(fine == 2 * coarse for coarse, fine in pairwise(other.factors))
        megapixels = sum(
            float(np.maximum(1, np.round(statistics.sizes * factor)).prod(1).mean()) / 1e6
            for factor in other.factors
        )
        assert other.pyramid_mp == pytest.approx(megapixels)
        assert other.chips_mp <= other.pyramid_mp + 1e-9
        if other.factors[:-1] == tuple(own):
            assert other.chips_mp >= chips  # one finer costs more than none


def test_one_size_takes_one_scale_and_says_so() -> None:
    found = suggest(measure([squares(50, 100, 600, 55)], [(600, 600)]))
    assert factors(found) == [1.0]
    assert (found.scales[0].scale.valid_low, found.scales[0].scale.valid_high) == (-1, -1)
    assert any("a single scale is enough (all boxes" in text for text in found.warnings)
    assert not any("sparse" in text for text in found.warnings)
    assert found.chips_mp == found.pyramid_mp == pytest.approx(0.36)


def test_one_sparse_size_is_told_what_a_first_look_would_save() -> None:
    found = suggest(measure([squares(50, 4, 4000, 55)], [(4000, 4000)]))
    assert len(found.scales) == 1
    assert any("objects are sparse" in text for text in found.warnings)


def test_dense_boxes_are_warned_about() -> None:
    found = suggest(measure([squares(99, 30, 600, 100), squares(20, 5, 100, 25)], [(600, 600)] * 2))
    assert not any("cover" in text for text in found.warnings)
    dense = np.array([[0, 0, 500, 600], [500, 0, 600, 600], [510, 10, 520, 20]], np.float32)
    (text,) = [t for t in suggest(measure([dense], [(600, 600)])).warnings if "cover" in t]
    assert "cover 100%" in text


def test_sizes_that_do_not_work_are_counted() -> None:
    boxes = np.concatenate([squares(10, 90, 4000, 30), squares(60, 9, 900, 70)])
    boxes = np.concatenate([boxes, squares(0.8, 1, 50, 5)])
    wide = np.array([[0, 0, 3000, 40]], np.float32)
    found = suggest(measure([boxes, wide], [(4000, 4000)] * 2))
    assert factors(found)[-1] == 3.0
    text = "\n".join(found.warnings)
    assert "boxes below 4 px at the finest scale, hardly findable: 1" in text
    assert "boxes that fit no training chip: 1;" in text


def test_a_chip_as_large_as_the_image_holds_every_box() -> None:
    whole = np.array([[0, 0, 300, 300], [10, 10, 40, 40]], np.float32)
    found = suggest(measure([whole], [(300, 300)]), chip_size=320)
    assert found.scales[0].too_large == 0


def test_crowd_boxes_count_for_nothing() -> None:
    boxes = np.concatenate([squares(50, 4, 600, 55), [[0, 0, 600, 600]]])
    crowd = np.array([False] * 4 + [True])
    found = measure([boxes], [(600, 600)], crowd)
    assert (found.crowd_boxes, found.class_counts, found.boxes_max) == (1, (4,), 4)
    assert found.covered == pytest.approx(4 * 2500 / 360_000)
    assert suggest(found).scales[0].boxes == 4


def test_statistics_of_known_boxes() -> None:
    boxes = np.array([[0, 10, 20, 50], [10, 20, 30, 60], [50, 50, 60, 60]], np.float32)
    found = measure([boxes, boxes[:0]], [(80, 100), (40, 40)])
    assert found.empty_images == 1
    assert (found.boxes_mean, found.boxes_max, found.at_border) == (1.5, 3, 1)
    # 20 x 40 twice with 10 x 30 px in common, and 10 x 10.
    assert found.covered == pytest.approx((2 * 800 - 300 + 100) / (8000 + 1600))
    assert found.aspect[3] == 2.0
    assert found.side[0] == pytest.approx(np.quantile([800**0.5, 800**0.5, 10], 0.01))
    assert found.short_side[3] == 60


def test_wrong_settings_are_refused() -> None:
    statistics = measure([squares(50, 4, 600, 55)], [(600, 600)])
    with pytest.raises(ValueError, match="comfort must span"):
        suggest(statistics, comfort=(24, 48))
    with pytest.raises(ValueError, match="chip_size"):
        suggest(statistics, chip_size=0)
    with pytest.raises(ValueError, match="no boxes"):
        suggest(measure([np.zeros((0, 4))], [(10, 10)]))


def test_anchor_recall_by_hand() -> None:
    anchors = Anchors((10.0,), (1.0,))
    shapes = np.array([[10, 10], [14.2, 14.2], [14.1, 14.1], [10, 5], [10, 4.9]])
    assert anchor_recall(shapes, anchors) == pytest.approx(3 / 5)
    tall = Anchors((10.0,), (4.0,))  # 5 wide, 20 high
    assert anchor_recall(np.array([[5.0, 20], [20, 5]]), tall) == 0.5


def test_anchors_reach_the_rare_large_boxes() -> None:
    side = np.concatenate([np.linspace(20, 40, 95), [300] * 5])
    anchors = make_anchors(np.stack([side, side], 1), 4)
    assert anchors.sizes[-1] == 300
    assert anchors.ratios == (1.0,)


@pytest.mark.parametrize(
    ("name", "split", "by_hand"),
    [("aerial-cars", "train", (0.5, 1, 2)), ("coco128", "val", (0.8, 1.67, 2.9))],
)
def test_real_data_gets_about_the_recipe_made_by_hand(
    name: str, split: str, by_hand: tuple[float, ...]
) -> None:
    found = suggest(measured(name, split), other=Anchors((32, 64, 128, 256), (0.5, 1, 2)))
    assert len(found.scales) == 3
    for factor, hand in zip(factors(found), by_hand, strict=True):
        assert hand / 2 <= factor <= hand * 2
    assert found.other_recall is not None
    assert found.anchor_recall >= found.other_recall
