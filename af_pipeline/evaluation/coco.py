"""COCO average precision of Parquet detections, and what the pixels of a run cost.

The matching is pycocotools' own `COCOeval`; only the summary is computed here, because
`COCOeval.summarize` fixes 100 detections an image, which large aerial images exceed.
"""

import contextlib
import io
import math
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

Scores = dict[str, float | None]
Counts = dict[str, int]
FloatArray = npt.NDArray[np.float64]

SCORE_NAMES = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR")
DETECTION_COLUMNS = ("image_id", "label", "score", "x0", "y0", "x1", "y1")
_AREA_AXIS = {"all": 0, "small": 1, "medium": 2, "large": 3}  # order of COCOeval's areaRng
_SHOWN = 5  # names quoted in a message


@dataclass(frozen=True, eq=False)
class Inputs:
    """Ground truth and detections, checked: what every score is made from.

    Attributes:
        ground_truth: content of a COCO json.
        detections: DETECTION_COLUMNS as strings and float64; only classes of the ground truth.
        image_ids: file_name -> COCO image id, in the order of the ground truth.
        category_ids: category name -> COCO category id, in the order of the ground truth.
        unmatched_labels: label -> detections left out, which no category is called.
    """

    ground_truth: Mapping[str, Any]
    detections: pa.Table
    image_ids: dict[str, Any]
    category_ids: dict[str, Any]
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
        return aligned_table([header, *rows])

    def _row(self, title: str, scores: Scores, name: str) -> list[str]:
        counts = (self.num_ground_truth[name], self.num_detections[name])
        return [title, *map(score_cell, scores.values()), *map(str, counts)]


def evaluate_detections(
    ground_truth: Mapping[str, Any],
    detections: pa.Table | Mapping[str, Any],
    max_dets: int = 300,
    iou_thresholds: Sequence[float] | None = None,
) -> Evaluation:
    """Score detections against the content of a COCO json.

    `detections` has the columns `image_id` (the COCO `file_name`), `label` (the category name),
    `score` and `x0, y0, x1, y1` (original image px, half-open), as an Arrow table or as a mapping
    of equally long arrays. COCO's `[x, y, w, h]` is the same frame: no +1 anywhere. Neither
    input is changed. `iou_thresholds` defaults to COCO's 0.50:0.05:0.95.

    Raises ValueError for malformed ground truth, for detections of images that are not in it,
    and for boxes or scores that are not finite.
    """
    inputs = check_inputs(ground_truth, detections)
    return summarise(inputs, run_coco(inputs, max_dets, iou_thresholds))


def check_inputs(
    ground_truth: Mapping[str, Any], detections: pa.Table | Mapping[str, Any]
) -> Inputs:
    """Check both, as described at `evaluate_detections`, and raise ValueError as it does."""
    check_ground_truth(ground_truth)
    columns = detection_columns(detections)
    image_ids = coco_image_ids(ground_truth, columns)
    category_ids = {c["name"]: c["id"] for c in ground_truth["categories"]}
    known = pc.is_in(columns["label"], value_set=pa.array(list(category_ids), pa.string()))
    strays = _sorted_counts(columns.filter(pc.invert(known))["label"].to_pylist())
    return Inputs(ground_truth, columns.filter(known), image_ids, category_ids, strays)


def summarise(inputs: Inputs, coco_eval: Any) -> Evaluation:
    """The scores of an accumulated COCOeval, which `run_coco` made from these inputs."""
    category_ids, truth = inputs.category_ids, inputs.ground_truth
    labels = Counter(inputs.detections["label"].to_pylist())
    objects = Counter(a["category_id"] for a in truth["annotations"] if not is_crowd(a))
    scores = _scores_by_class(coco_eval)
    return Evaluation(
        overall={name: known_mean(s[name] for s in scores.values()) for name in SCORE_NAMES},
        per_class={name: scores[i] for name, i in category_ids.items()},
        num_ground_truth={name: objects[i] for name, i in category_ids.items()},
        num_detections={name: labels[name] for name in category_ids},
        unmatched_labels=inputs.unmatched_labels,
        num_images=len(truth["images"]),
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


def check_ground_truth(ground_truth: Mapping[str, Any], objects: bool = True) -> None:
    """Raise ValueError, naming the fault, unless this is COCO json content, with ``objects``."""
    for key in ("images", "annotations", "categories"):
        there = ground_truth.get(key) if isinstance(ground_truth, Mapping) else None
        if not isinstance(there, list) or not (there or (key == "annotations" and not objects)):
            raise ValueError(
                f"the ground truth has no '{key}': give a COCO instances json with 'images', "
                "'annotations' and 'categories', or --export-coco where there are no annotations"
            )
    for kind, name_key in (("images", "file_name"), ("categories", "name")):
        for key, types in ((name_key, str), ("id", int | str)):
            names = [_name(record, key, kind, types) for record in ground_truth[kind]]
            _require_unique(f"{kind} by '{key}'", names)
    images = {image["id"] for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    for annotation in ground_truth["annotations"]:
        _check_annotation(annotation, images, categories)


def _check_annotation(annotation: Any, images: set[Any], categories: set[Any]) -> None:
    box = _field(annotation, "bbox", "annotations")
    if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"the ground truth has the bbox {box!r:.80}: it must be [x, y, w, h]")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(f"the ground truth has the bbox {box!r:.80}: a side is below 0")
    area = annotation.get("area")
    if area is not None and not _is_number(area):
        raise ValueError(f"the ground truth has the area {area!r:.80}: it must be a number")
    for key, known in (("image_id", images), ("category_id", categories)):
        if _name(annotation, key, "annotations") not in known:
            raise ValueError(
                f"a ground-truth annotation has {key} {annotation[key]!r}, which is not defined"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _name(record: Any, key: str, kind: str, kinds: Any = int | str) -> Any:
    """An id or a name: COCO's are numbers and strings."""
    value = _field(record, key, kind)
    if not isinstance(value, kinds):
        raise ValueError(f"the ground truth has an entry in '{kind}' with {key} {value!r:.80}")
    return value


def _field(record: Any, key: str, kind: str) -> Any:
    if not isinstance(record, Mapping) or key not in record:
        raise ValueError(
            f"the ground truth has an entry in '{kind}' without '{key}': {record!r:.120}"
        )
    return record[key]


def _require_unique(kind: str, names: list[Any]) -> None:
    twice = [str(name) for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ValueError(
            f"the ground truth lists {kind} more than once: {', '.join(twice[:_SHOWN])}; "
            "keep one entry of each"
        )


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


def coco_image_ids(ground_truth: Mapping[str, Any], columns: pa.Table) -> dict[str, Any]:
    """file_name -> COCO image id; ValueError for detections of images without ground truth."""
    image_ids = {image["file_name"]: image["id"] for image in ground_truth["images"]}
    unknown = [i for i in pc.unique(columns["image_id"]).to_pylist() if i not in image_ids]
    if unknown:
        quoted = ", ".join(map(str, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
        raise ValueError(
            f"{len(unknown)} images with detections are not in the ground truth: {quoted}; give "
            "the COCO json the images were indexed from (image_id must equal its 'file_name'), "
            "or drop the detections of other images"
        )
    return image_ids


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    """Whether a COCO annotation counts neither as hit nor as miss."""
    return bool(annotation.get("iscrowd", 0))


def _ground_truth_dataset(ground_truth: Mapping[str, Any]) -> dict[str, Any]:
    """A copy COCOeval may write into, with the fields it needs.

    Ids are given anew from 1: COCOeval takes a match with annotation id 0 for no match.
    """
    annotations = [
        {
            "id": number,
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": list(a["bbox"]),
            "area": a["bbox"][2] * a["bbox"][3] if a.get("area") is None else a["area"],
            "iscrowd": int(is_crowd(a)),
        }
        for number, a in enumerate(ground_truth["annotations"], start=1)
    ]
    return {
        "images": [dict(image) for image in ground_truth["images"]],
        "categories": [dict(category) for category in ground_truth["categories"]],
        "annotations": annotations,
    }


def detection_annotations(
    table: pa.Table, image_ids: Mapping[str, Any], category_ids: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Result entries as `COCO.loadRes` makes them (it cannot take an empty list)."""
    x0, y0, x1, y1 = (table[name].to_numpy() for name in ("x0", "y0", "x1", "y1"))
    boxes = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)  # [N, 4] xywh
    names, labels = table["image_id"].to_pylist(), table["label"].to_pylist()
    entries = zip(names, labels, table["score"].to_pylist(), boxes.tolist(), strict=True)
    return [
        {
            "id": number,
            "image_id": image_ids[name],
            "category_id": category_ids[label],
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "score": score,
        }
        for number, (name, label, score, box) in enumerate(entries, start=1)
    ]


def run_coco(
    inputs: Inputs, max_dets: int = 300, iou_thresholds: Sequence[float] | None = None
) -> Any:
    """An accumulated COCOeval; arguments as for `evaluate_detections`.

    Its ids count annotations and detections in their order, from 1.
    """
    if max_dets < 1:
        raise ValueError(f"max_dets is {max_dets}: it must be at least 1")
    truth = _ground_truth_dataset(inputs.ground_truth)
    found = detection_annotations(inputs.detections, inputs.image_ids, inputs.category_ids)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports by print
        coco_eval = COCOeval(_coco(truth), _coco({**truth, "annotations": found}), "bbox")
        coco_eval.params.maxDets = [max_dets]
        if iou_thresholds is not None:
            coco_eval.params.iouThrs = np.asarray(iou_thresholds, np.float64)
        coco_eval.evaluate()
        coco_eval.accumulate()
    return coco_eval


def _coco(dataset: dict[str, Any]) -> Any:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _scores_by_class(coco_eval: Any) -> dict[Any, Scores]:
    precision = coco_eval.eval["precision"][..., 0]  # [T, R, K, A], -1 = no ground truth
    recall = coco_eval.eval["recall"][..., 0]  # [T, K, A]
    thresholds = np.asarray(coco_eval.params.iouThrs)
    return {
        category: _class_scores(precision[:, :, k], recall[:, k], thresholds)
        for k, category in enumerate(coco_eval.params.catIds)
    }


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


def aligned_table(rows: list[list[str]], total: bool = True) -> str:
    """Cells [rows][columns] as text; a line below the first row and, of a total, one above it.

    Signs that move the cursor or the order of letters are shown as ``?``.
    """
    rows = [["".join(c if c.isprintable() else "?" for c in cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    if total:
        lines.insert(len(lines) - 1, lines[1])
    return "\n".join(lines)
