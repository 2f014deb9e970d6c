"""COCO average precision of Parquet detections, and what the pixels of a run cost.

The matching is pycocotools' own `COCOeval`; only the summary is computed here, because
`COCOeval.summarize` fixes 100 detections an image, which large aerial images exceed.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from af_pipeline.core.text_table import text_table
from af_pipeline.data.annotations.dataset import AnnotatedDataset

Scores = dict[str, float | None]
Counts = dict[str, int]
FloatArray = npt.NDArray[np.float64]

SCORE_NAMES = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR")
DETECTION_COLUMNS = ("image_id", "label", "score", "x0", "y0", "x1", "y1")
_AREA_AXIS = {"all": 0, "small": 1, "medium": 2, "large": 3}  # order of COCOeval's areaRng
_SHOWN = 5  # names quoted in a message


@dataclass(frozen=True, eq=False)
class Inputs:
    """Ground truth and its D detections, checked: what every score is made from.

    Attributes:
        truth: ground truth.
        detections: DETECTION_COLUMNS as strings and float64; only classes of the ground truth.
        image: int64 [D], place of each detection's image in the ground truth.
        label: int64 [D], that of its class.
        boxes: float64 [D, 4], x0, y0, x1, y1 in original px.
        unmatched_labels: label -> detections left out, which no class is called.
    """

    truth: AnnotatedDataset
    detections: pa.Table
    image: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    boxes: FloatArray
    unmatched_labels: Counts


@dataclass(frozen=True)
class Evaluation:
    """COCO scores of one set of detections.

    Scores are fractions in [0, 1]; None where there is no ground truth (of that size) or where
    the IoU threshold was not asked for. `overall` is the mean over the classes that have a value.
    `num_ground_truth` leaves crowd regions out; `num_detections` counts every detection given,
    also those beyond `max_dets`, but not those in `unmatched_labels`.
    """

    overall: Scores
    per_class: dict[str, Scores]
    num_ground_truth: Counts
    num_detections: Counts
    unmatched_labels: Counts  # label -> detections that no ground-truth category is called
    num_images: int
    max_dets: int  # per image and class, as COCO counts
    iou_thresholds: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain dicts, lists and numbers, ready for `json.dump`."""
        plain = asdict(self)
        plain["iou_thresholds"] = list(self.iou_thresholds)
        return plain

    def table(self) -> str:
        """One aligned text row a class, then the mean over classes; '-' is 'no ground truth'."""
        header = ["class", *SCORE_NAMES, "objects", "detections"]
        rows = [self._row(name, scores, name) for name, scores in self.per_class.items()]
        totals = [str(sum(c.values())) for c in (self.num_ground_truth, self.num_detections)]
        rows.append(["all", *map(score_cell, self.overall.values()), *totals])
        return text_table([header, *rows])

    def _row(self, title: str, scores: Scores, name: str) -> list[str]:
        counts = (self.num_ground_truth[name], self.num_detections[name])
        return [title, *map(score_cell, scores.values()), *map(str, counts)]


def evaluate_detections(
    truth: AnnotatedDataset,
    detections: pa.Table | Mapping[str, Any],
    max_dets: int = 300,
    iou_thresholds: Sequence[float] | None = None,
) -> Evaluation:
    """Score detections against ground truth.

    `detections` has the columns `image_id`, `label` (the class name), `score` and
    `x0, y0, x1, y1` (original image px, half-open), as an Arrow table or as a mapping of equally
    long arrays. COCO's `[x, y, w, h]` is the same frame: no +1 anywhere. `iou_thresholds` defaults
    to COCO's 0.50:0.05:0.95. Official figures need ground truth that was read for scoring.

    Raises ValueError for ground truth without a box, for detections of images that are not in it,
    and for boxes or scores that are not finite.
    """
    inputs = check_inputs(truth, detections)
    return summarise(inputs, run_coco(inputs, max_dets, iou_thresholds))


def check_inputs(truth: AnnotatedDataset, detections: pa.Table | Mapping[str, Any]) -> Inputs:
    """Check both, as described at `evaluate_detections`, and raise ValueError as it does."""
    if not len(truth.image):
        raise ValueError(
            "the ground truth has no annotations to score against: give others, or write the "
            "detections for a server by jobs/export.py"
        )
    columns = detection_columns(detections)
    label = _places(columns["label"], truth.class_names)
    strays = _sorted_counts(columns["label"].filter(pa.array(label < 0)).to_pylist())
    image = _places(columns["image_id"], truth.image_ids)
    if (image < 0).any():
        unknown = pc.unique(columns["image_id"].filter(pa.array(image < 0))).to_pylist()
        quoted = ", ".join(map(str, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
        raise ValueError(
            f"{len(unknown)} images with detections are not in the ground truth: {quoted}; give "
            "the ground truth of the images that were indexed (image_id must equal COCO's "
            "'file_name'), or drop the detections of other images"
        )
    known = label >= 0
    kept = columns.filter(pa.array(known))
    boxes = np.stack([kept[name].to_numpy() for name in DETECTION_COLUMNS[3:]], axis=1)
    return Inputs(truth, kept, image[known], label[known], boxes, strays)


def _places(names: pa.ChunkedArray, known: Sequence[str]) -> npt.NDArray[np.int64]:
    """Place of each name among the known ones; -1: unknown."""
    found = pc.index_in(names, value_set=pa.array(known, pa.string()))
    return np.asarray(pc.fill_null(found, -1).to_numpy(), np.int64)


def summarise(inputs: Inputs, coco_eval: Any) -> Evaluation:
    """The scores of an accumulated COCOeval, which `run_coco` made from these inputs."""
    truth, names = inputs.truth, inputs.truth.class_names
    objects = np.bincount(truth.labels[~truth.crowd], minlength=len(names)).tolist()
    detected = np.bincount(inputs.label, minlength=len(names)).tolist()
    scores = _scores_by_class(coco_eval)
    return Evaluation(
        overall={name: known_mean(one[name] for one in scores) for name in SCORE_NAMES},
        per_class=dict(zip(names, scores, strict=True)),
        num_ground_truth=dict(zip(names, objects, strict=True)),
        num_detections=dict(zip(names, detected, strict=True)),
        unmatched_labels=inputs.unmatched_labels,
        num_images=len(truth.image_ids),
        max_dets=coco_eval.params.maxDets[0],
        iou_thresholds=tuple(float(t) for t in coco_eval.params.iouThrs),
    )


def pixel_summary(images: pa.Table) -> dict[str, float | int | None]:
    """What a run's images cost, from the `images` table of its output.

    Pixels are network-input pixels an image, over all scales; means and shares are over the
    images with status 'ok' (None when there is none). `paper_unit_px` is the square root of the
    mean, the side of the square image that would cost as much (the AutoFocus paper's unit).
    """
    ok = images.filter(pc.equal(images["status"], "ok"))
    processed = ok["pixels_processed"].to_numpy().astype(np.float64)
    pyramid = ok["pixels_pyramid"].to_numpy().astype(np.float64)
    total, full = float(processed.sum()), float(pyramid.sum())
    mean = total / len(processed) if len(processed) else None
    return {
        "images": images.num_rows,
        "errors": images.num_rows - ok.num_rows,
        "mean_pixels_processed": mean,
        "mean_pixels_pyramid": full / len(pyramid) if len(pyramid) else None,
        "pyramid_over_processed": full / total if total else None,
        "share_processed": total / full if full else None,
        "paper_unit_px": None if mean is None else float(np.sqrt(mean)),
    }


def detection_columns(detections: pa.Table | Mapping[str, Any]) -> pa.Table:
    """DETECTION_COLUMNS as a table of strings and float64.

    Raises ValueError where one is missing or a number is not finite.
    """
    names = detections.column_names if isinstance(detections, pa.Table) else list(detections)
    missing = [name for name in DETECTION_COLUMNS if name not in names]
    if missing:
        raise ValueError(f"the detections lack the columns {', '.join(missing)}")
    types = [pa.string()] * 2 + [pa.float64()] * 5
    fields = list(zip(DETECTION_COLUMNS, types, strict=True))
    if isinstance(detections, pa.Table):
        table = detections.select(list(DETECTION_COLUMNS)).cast(pa.schema(fields))
    else:
        table = pa.table({name: pa.array(detections[name]).cast(kind) for name, kind in fields})
    for name in DETECTION_COLUMNS[2:]:
        if not np.isfinite(table[name].to_numpy()).all():
            raise ValueError(f"the detections have values in '{name}' that are not finite")
    return table


def run_coco(
    inputs: Inputs, max_dets: int = 300, iou_thresholds: Sequence[float] | None = None
) -> Any:
    """An accumulated COCOeval; arguments as for `evaluate_detections`.

    Its ids count annotations and detections in their order, from 1.
    """
    if max_dets < 1:
        raise ValueError(f"max_dets is {max_dets}: it must be at least 1")
    truth = inputs.truth
    # COCOeval goes by ascending ids: images get their rank, which also decides between equal
    # scores. Boxes are counted from 1, for a match with annotation 0 is no match to it.
    ids = truth.numbers
    order = sorted(range(len(ids)), key=lambda place: (isinstance(ids[place], str), ids[place]))
    rank = np.argsort(np.array(order, np.int64))
    stated = np.concatenate([truth.boxes[:, :2], truth.sides], axis=1)
    corners = inputs.boxes
    found = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    shared = {
        "images": [{"id": place} for place in range(len(order))],
        "categories": [{"id": label} for label in range(len(truth.class_names))],
    }
    objects = _entries(rank[truth.image], truth.labels, stated, truth.area, iscrowd=truth.crowd)
    detected = _entries(
        rank[inputs.image], inputs.label, found, found[:, 2] * found[:, 3],
        iscrowd=np.zeros(len(found), np.int64), score=inputs.detections["score"].to_numpy(),
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports by print
        coco_eval = COCOeval(
            *(_coco({**shared, "annotations": own}) for own in (objects, detected)), "bbox"
        )
        coco_eval.params.maxDets = [max_dets]
        if iou_thresholds is not None:
            coco_eval.params.iouThrs = np.asarray(iou_thresholds, np.float64)
        coco_eval.evaluate()
        coco_eval.accumulate()
    return coco_eval


def _entries(
    image: npt.NDArray, label: npt.NDArray, boxes: FloatArray, area: FloatArray, **more: npt.NDArray
) -> list[dict[str, Any]]:
    """Annotations as COCOeval takes them; it writes into them. ``boxes``: x, y, width, height."""
    columns = {"image_id": image, "category_id": label, "bbox": boxes, "area": area, **more}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"id": n, **dict(zip(columns, row, strict=True))} for n, row in enumerate(rows, 1)]


def _coco(dataset: dict[str, Any]) -> Any:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _scores_by_class(coco_eval: Any) -> list[Scores]:
    precision = coco_eval.eval["precision"][..., 0]  # [T, R, K, A], -1 = no ground truth
    recall = coco_eval.eval["recall"][..., 0]  # [T, K, A]
    thresholds = np.asarray(coco_eval.params.iouThrs)
    classes = range(precision.shape[2])
    return [_class_scores(precision[:, :, k], recall[:, k], thresholds) for k in classes]


def _class_scores(precision: FloatArray, recall: FloatArray, thresholds: FloatArray) -> Scores:
    """Scores of one class from precision [T, R, A] and recall [T, A]."""
    at = {t: np.isclose(thresholds, t) for t in (0.5, 0.75)}
    everything = precision[..., _AREA_AXIS["all"]]
    return {
        "AP": _valid_mean(everything),
        "AP50": _valid_mean(everything[at[0.5]]),
        "AP75": _valid_mean(everything[at[0.75]]),
        "APS": _valid_mean(precision[..., _AREA_AXIS["small"]]),
        "APM": _valid_mean(precision[..., _AREA_AXIS["medium"]]),
        "APL": _valid_mean(precision[..., _AREA_AXIS["large"]]),
        "AR": _valid_mean(recall[..., _AREA_AXIS["all"]]),
    }


def _valid_mean(values: FloatArray) -> float | None:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None


def known_mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _sorted_counts(names: list[str]) -> Counts:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], str(item[0]))))


def score_cell(score: float | None) -> str:
    """A score as a cell of a printed table."""
    return "-" if score is None else f"{score:.3f}"
