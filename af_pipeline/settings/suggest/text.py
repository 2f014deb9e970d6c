"""The dataset report for the terminal: what the boxes are like and a recipe to start from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import fill

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.boxes import box_side
from af_pipeline.core.text_table import align
from af_pipeline.data.annotations.dataset import AnnotatedDataset
from af_pipeline.settings.suggest.anchors import Anchors
from af_pipeline.settings.suggest.areas import CHIP_RULE
from af_pipeline.settings.suggest.statistics import QUANTILES, DatasetStatistics, dataset_statistics
from af_pipeline.settings.suggest.suggest import ScaleUse, Suggestion, suggest
from af_pipeline.settings.train import ModelConfig

OCTAVES = tuple(2**k for k in range(1, 11))  # px: below 4, 4 to 8, ..., 1024 and more
_BAR = 40
_CLASSES_SHOWN = 20
FIRST_THRESHOLD = 0.2  # of focus maps that are not faultless, until jobs/tune.py finds better


def suggest_for(dataset: AnnotatedDataset, chip_size: int) -> str:
    """The report on a data set; its last parts are YAML for `TrainConfig` and `IndexConfig`.

    Args:
        chip_size: side of a training chip, network px.

    Raises:
        ValueError: no images or no boxes that are not crowd.
    """
    statistics = dataset_statistics(dataset)
    model = ModelConfig()
    defaults = Anchors(model.anchor_sizes, model.anchor_ratios)
    return report_text(statistics, suggest(statistics, chip_size, other=defaults))


def report_text(statistics: DatasetStatistics, suggestion: Suggestion) -> str:
    """Tables, warnings and, each after a line of dashes, two YAML blocks; ASCII."""
    parts = [
        _counts(statistics),
        _quantile_table(statistics),
        _histogram(statistics),
        _class_table(statistics),
        _scale_table(suggestion),
        _pixels(suggestion),
        _other_pyramids(suggestion),
        _anchor_lines(suggestion),
        _warning_lines(suggestion.warnings),
        ["-" * 80, yaml_block(suggestion).rstrip()],
        ["-" * 80, index_block(suggestion).rstrip()],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def yaml_block(suggestion: Suggestion) -> str:
    """The suggestion as YAML: ``pyramid``, ``focus_labels`` and the anchors of ``model``."""
    focus, anchors = suggestion.focus, suggestion.anchors
    lines = [
        f"# Suggested from the boxes alone, for chips of {suggestion.chip_size} px; not trained.",
    ]
    lines += _pyramid(suggestion)
    limits = (
        f"ignore_below: {focus.ignore_below:g}, focus_below: {focus.focus_below:g}, "
        f"ignore_until: {focus.ignore_until:g}"
    )
    lines += [
        f"focus_labels: {{{limits}}}",
        "model:                # anchors: kind faster_rcnn only",
        f"  anchor_sizes: {_yaml_list(anchors.sizes)}",
        f"  anchor_ratios: {_yaml_list(anchors.ratios)}",
    ]
    return "\n".join(lines) + "\n"


def index_block(suggestion: Suggestion) -> str:
    """The suggestion as an index config: what to run the trained detector with."""
    rule = (
        f"{{threshold: {FIRST_THRESHOLD:g}, dilation: {CHIP_RULE.dilation}, "
        f"min_size: {CHIP_RULE.min_size}, chip_cost: {CHIP_RULE.chip_cost:g}}}"
    )
    steps = len(suggestion.scales) - 1
    lines = [
        "# The index config for it (jobs/index.py); jobs/tune.py finds better focus steps.",
        "checkpoint: runs/train/mine/mine.safetensors",
        f"mode: {'autofocus' if steps else 'whole'}",
        *_pyramid(suggestion),
        "stack: {min_score: 0.05}",
    ]
    if steps:
        lines += ["focus:", "  steps:              # one per step to the next finer scale"]
        lines += [f"    - {rule}"] * steps
    return "\n".join(lines) + "\n"


def _pyramid(suggestion: Suggestion) -> list[str]:
    lines = ["pyramid:              # coarse to fine; valid_range is sqrt(area) in original px"]
    for scale in (use.scale for use in suggestion.scales):
        bounds = f"[{scale.valid_low:g}, {scale.valid_high:g}]"
        lines.append(f"  - {{factor: {scale.factor:g}, valid_range: {bounds}}}")
    return lines


def _yaml_list(values: Iterable[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    return [line.rstrip() for line in align(rows)]


def _counts(statistics: DatasetStatistics) -> list[str]:
    boxes = sum(statistics.class_counts)
    return [
        f"images: {len(statistics.sizes)}, without boxes: {statistics.empty_images}; "
        f"classes: {len(statistics.class_names)}; boxes: {boxes}, besides "
        f"{statistics.crowd_boxes} of crowds, which do not count below",
        f"boxes per image: mean {statistics.boxes_mean:.3g}, most {statistics.boxes_max}",
        f"boxes cover {statistics.covered:.1%} of the pixels; "
        f"{statistics.at_border} touch their image's border",
    ]


def _quantile_table(statistics: DatasetStatistics) -> list[str]:
    rows = [["quantile", *(f"{share:.0%}" for share in QUANTILES)]]
    for name, values in (
        ("box sqrt(area), px", statistics.side),
        ("box height / width", statistics.aspect),
        ("shorter image side, px", statistics.short_side),
        ("longer image side, px", statistics.long_side),
    ):
        rows.append([name, *(_short(value) for value in values)])
    return _table(rows)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _octaves(side: NDArray) -> NDArray[np.int64]:
    """Boxes per octave [10]; the first and the last hold all beyond them."""
    place = np.floor(np.log2(np.maximum(side, 1e-9))).astype(np.int64) - 1
    return np.bincount(np.clip(place, 0, len(OCTAVES) - 1), minlength=len(OCTAVES))


def _histogram(statistics: DatasetStatistics) -> list[str]:
    counts = _octaves(box_side(statistics.boxes[~statistics.crowd]))
    most = max(1, int(counts.max()))
    rows = ["boxes by sqrt(area), original px"]
    for low, count in zip(OCTAVES, counts.tolist(), strict=True):
        bar = "#" * -(-count * _BAR // most)
        rows.append(f"{_octave_name(low):>8}  {count:>7}  {bar}".rstrip())
    return rows


def _octave_name(low: int) -> str:
    if low == OCTAVES[0]:
        return f"<{2 * low}"
    return f">={low}" if low == OCTAVES[-1] else f"{low}-{2 * low}"


def _class_table(statistics: DatasetStatistics) -> list[str]:
    """Octave counts of the most frequent classes; the rest in one row."""
    counted = ~statistics.crowd
    side, labels = box_side(statistics.boxes[counted]), statistics.labels[counted]
    order = np.argsort(-np.array(statistics.class_counts, np.int64), kind="stable")
    shown, rest = order[:_CLASSES_SHOWN], order[_CLASSES_SHOWN:]
    rows = [["class", "boxes", *map(_octave_name, OCTAVES)]]
    rows += [_class_row(statistics.class_names[i], side[labels == i]) for i in shown]
    if len(rest):
        rows.append(_class_row(f"({len(rest)} others)", side[np.isin(labels, rest)]))
    return _table(rows)


def _class_row(name: str, side: NDArray) -> list[str]:
    printable = name.encode("ascii", "backslashreplace").decode()
    shown = printable if len(printable) <= 24 else printable[:21] + "..."
    return [shown, str(len(side)), *(str(n) if n else "." for n in _octaves(side).tolist())]


def _scale_table(suggestion: Suggestion) -> list[str]:
    rows = [["factor", "answers for, px", "boxes", "fit no chip", "MP/image", "focus", "chips"]]
    rows += [_scale_row(use) for use in suggestion.scales]
    return [
        "suggested scales, coarse to fine (focus: share of cells that ground truth FocusPixels",
        "cover, dilated; chips: share inside their FocusChips, which the next scale looks at)",
        *_table(rows),
    ]


def _scale_row(use: ScaleUse) -> list[str]:
    low, high = use.scale.valid_low, use.scale.valid_high
    bounds = f"{max(0.0, low):g} to {high:g}" if high > 0 else f"{max(0.0, low):g} and more"
    shares = [f"{use.focus_cells:.1%}", f"{use.focus_chips:.1%}"]
    return [
        f"{use.scale.factor:g}",
        bounds,
        str(use.boxes),
        str(use.too_large),
        f"{use.megapixels:.3g}",
        *(shares if use.focus_cells or use.focus_chips else ["-", "-"]),
    ]


def _pixels(suggestion: Suggestion) -> list[str]:
    if len(suggestion.scales) == 1:
        return [f"pixels per image: {suggestion.pyramid_mp:.3g} MP, no cascade"]
    pyramid, chips, cells = suggestion.pyramid_mp, suggestion.chips_mp, suggestion.cells_mp
    return [
        f"pixels per image: every scale whole {pyramid:.3g} MP; with FocusChips of a faultless",
        f"focus map {chips:.3g} MP ({pyramid / chips:.3g} times fewer); focus cells alone "
        f"{cells:.3g} MP ({pyramid / cells:.3g} times,",
        f"a bound that rectangles do not reach). Measured on {suggestion.images_looked_at} images.",
    ]


def _other_pyramids(suggestion: Suggestion) -> list[str]:
    rows = [["other pyramids", "every scale whole", "with FocusChips"]]
    rows += [
        [", ".join(f"{one:g}" for one in other.factors), f"{other.pyramid_mp:.3g} MP",
         f"{other.chips_mp:.3g} MP" if len(other.factors) > 1 else "-"]
        for other in suggestion.others
    ]  # fmt: skip
    return [
        *_table(rows),
        "A finer scale makes boxes tighter, and finds what is too small at the others; a coarser",
        "one says where to look. jobs/tune.py leaves out scales that bring nothing.",
    ]


def _anchor_lines(suggestion: Suggestion) -> list[str]:
    text = f"anchors, centred shapes at IoU 0.5: recall {suggestion.anchor_recall:.1%}"
    if suggestion.other_recall is not None:
        text += f"; the defaults' {suggestion.other_recall:.1%}"
    return [text]


def _warning_lines(warnings: Iterable[str]) -> list[str]:
    return [fill(f"warning: {text}", 88, subsequent_indent="  ") for text in warnings]
