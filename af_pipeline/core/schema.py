"""The data contract: Arrow schemas, and rows as plain objects of arrays.

One row is one image. Boxes are x0, y0, x1, y1, half-open, original image px after EXIF
orientation. Every table of the pipeline is built with these schemas, never inferred: an
inferred one drifts to ``list<null>`` where a block has no detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from af_pipeline.core.pixels import ArrayPixels, Pixels

SCHEMA_VERSION = 3  # of rows/; a run of another version is not gone on with

DET = pa.struct(
    [
        *[pa.field(name, pa.float32()) for name in ("x0", "y0", "x1", "y1", "score")],
        pa.field("label", pa.int32()),
        pa.field("scale", pa.int8()),
    ]
)

_CHIP_FIELDS = [
    pa.field("scale", pa.int8()),
    pa.field("lane", pa.int16()),  # -1: larger than the largest lane, run as tiles
    *[pa.field(name, pa.int32()) for name in ("x0", "y0", "x1", "y1")],
    pa.field("focus", pa.float32()),  # mean probability of the FocusPixels it was made from
    pa.field("gain", pa.float32()),  # their expected number: the sum of the probabilities
]
STORED_CHIP = pa.struct(_CHIP_FIELDS)
# In flight a chip carries its native-resolution crop, uint8 [y1-y0, x1-x0, 3], until the chips of
# the next scale are cut from it.
CHIP = pa.struct(
    [*_CHIP_FIELDS, pa.field("looked", pa.bool_()), pa.field("pixels", pa.large_binary())]
)
# A chip of the next scale, not yet merged with the others of its image.
CANDIDATE = pa.struct(
    [
        *[pa.field(name, pa.int32()) for name in ("x0", "y0", "x1", "y1")],
        pa.field("focus", pa.float32()),
        pa.field("gain", pa.float32()),
        pa.field("parent", pa.int32()),  # index of the chip it lies in
    ]
)

PixelsPerScale = Annotated[list[int], pa.large_list(pa.int64())]  # network px
ChipsPerScale = Annotated[list[int], pa.large_list(pa.int32())]
Count = Annotated[int, pa.int64()]
Milliseconds = Annotated[float, pa.float32()]


@dataclass
class Ledger:
    """What an image cost and what was dropped; `LEDGER` has these fields in this order."""

    pixels: PixelsPerScale = field(default_factory=list)  # forwarded
    padded: PixelsPerScale = field(default_factory=list)  # padding
    chips: ChipsPerScale = field(default_factory=list)  # forwarded
    refused: ChipsPerScale = field(default_factory=list)  # left out by the budget
    pixels_pyramid: Count = 0  # network px of every scale whole
    dropped_border: Count = 0  # cut by an edge, and seen whole elsewhere or in no valid place
    dropped_range: Count = 0  # outside their scale's valid range
    dropped_score: Count = 0  # below the lowest score
    dropped_nms: Count = 0  # suppressed by a better one
    dropped_forward: Count = 0  # beyond the number that one forward answers with
    dropped_image: Count = 0  # beyond the number kept of an image
    joined_seam: Count = 0  # parts of objects joined across the seams between tiles
    cut_seam: Count = 0  # detections that a seam still cuts
    decode_ms: Milliseconds = 0.0
    forward_ms: Milliseconds = 0.0


_KINDS = get_type_hints(Ledger, include_extras=True)
LEDGER = pa.struct([pa.field(name, kind.__metadata__[0]) for name, kind in _KINDS.items()])
DROPPED = tuple(name for name in _KINDS if name.startswith("dropped_"))
COUNTERS = (*DROPPED, "joined_seam", "cut_seam")


def _row_schema(chip: pa.DataType, *more: pa.Field) -> pa.Schema:
    return pa.schema(
        [
            pa.field("image_id", pa.string()),
            pa.field("uri", pa.string()),
            pa.field("version", pa.string()),  # of its bytes as listed; '' = unknown
            pa.field("width", pa.int32()),  # original px; 0 when the image could not be read
            pa.field("height", pa.int32()),
            pa.field("bytes", pa.int64()),  # size of the encoded file
            pa.field("error", pa.string()),  # '' = fine
            pa.field("detections", pa.large_list(DET)),
            pa.field("chips", pa.large_list(chip)),
            pa.field("ledger", LEDGER),
            *more,
        ]
    )


# Between stages; candidates are there between two pools of one scale only.
ROW = _row_schema(CHIP, pa.field("candidates", pa.large_list(CANDIDATE)))
STORED_ROW = _row_schema(STORED_CHIP)  # rows/*.parquet
MANIFEST = pa.schema([pa.field(name, pa.string()) for name in ("image_id", "uri", "version")])

DETECTIONS = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("label_id", pa.int32()),
        pa.field("label", pa.string()),
        *[pa.field(name, pa.float32()) for name in ("score", "x0", "y0", "x1", "y1")],
        pa.field("scale", pa.int8()),
    ]
)
IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("version", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("status", pa.string()),  # 'ok' or 'error'
        pa.field("error", pa.string()),
        pa.field("num_detections", pa.int32()),
        pa.field("num_chips", pa.int32()),  # FocusChips, without the coarse look
        pa.field("num_refused", pa.int32()),  # FocusChips that the budget left out
        pa.field("pixels_processed", pa.int64()),
        pa.field("pixels_padded", pa.int64()),
        pa.field("pixels_pyramid", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("run_id", pa.string()),
        *[pa.field(name, pa.int64()) for name in COUNTERS],
        pa.field("decode_ms", pa.float32()),
        pa.field("forward_ms", pa.float32()),
        pa.field("pixels_per_scale", pa.list_(pa.int64())),
        pa.field("chips_per_scale", pa.list_(pa.int32())),
    ]
)
CHIPS = pa.schema([pa.field("image_id", pa.string()), *_CHIP_FIELDS])


@dataclass(frozen=True)
class Detections:
    """boxes float32 [N, 4] original px; scores float32 [N]; labels int32 [N]; scales int8 [N]."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    scales: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, keep: NDArray) -> Detections:
        """The detections of a mask or of indices."""
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], self.scales[keep])


def no_detections() -> Detections:
    """An empty list."""
    return Detections(
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.float32),
        np.zeros(0, np.int32),
        np.zeros(0, np.int8),
    )


def join_detections(parts: Sequence[Detections]) -> Detections:
    """All detections of ``parts`` in order."""
    if not parts:
        return no_detections()
    return Detections(
        np.concatenate([p.boxes for p in parts]),
        np.concatenate([p.scores for p in parts]),
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.scales for p in parts]),
    )


@dataclass(frozen=True)
class Chip:
    """A FocusChip. box: x0, y0, x1, y1 original px, integers, half-open; focus: mean probability of
    the FocusPixels it was made from, gain: their sum; pixels: of ``box``,
    None once the chips of the next scale are cut from it."""

    scale: int
    lane: int
    box: tuple[int, int, int, int]
    focus: float
    gain: float = 0.0
    pixels: Pixels | None = None
    looked: bool = False


@dataclass(frozen=True)
class Candidate:
    """A chip of the next scale as one chip's focus map gives it; box as in `Chip`; ``parent``:
    index of that chip among the chips of the image."""

    box: tuple[int, int, int, int]
    focus: float
    gain: float
    parent: int


@dataclass
class ImageRow:
    """One image on its way through the stages; fields as in `ROW`."""

    image_id: str
    uri: str
    width: int = 0
    height: int = 0
    bytes: int = 0
    error: str = ""
    detections: Detections = field(default_factory=no_detections)
    chips: list[Chip] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    candidates: list[Candidate] = field(default_factory=list)
    version: str = ""


def rows_to_table(rows: Sequence[ImageRow], stored: bool = False) -> pa.Table:
    """Rows -> a table of `ROW`, or of `STORED_ROW` (without chip pixels and candidates)."""
    schema = STORED_ROW if stored else ROW
    columns: dict[str, Any] = {
        name: pa.array([getattr(row, name) for row in rows], schema.field(name).type)
        for name in ("image_id", "uri", "version", "width", "height", "bytes", "error")
    }
    columns["detections"] = _detection_lists([row.detections for row in rows])
    columns["chips"] = _chip_lists([row.chips for row in rows], stored)
    columns["ledger"] = pa.array([vars(row.ledger) for row in rows], LEDGER)
    if not stored:
        columns["candidates"] = pa.array(
            [[_candidate_record(one) for one in row.candidates] for row in rows],
            ROW.field("candidates").type,
        )
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _lists(counts: Sequence[int], values: pa.Array) -> pa.Array:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _detection_lists(lists: Sequence[Detections]) -> pa.Array:
    joined = join_detections(lists)
    arrays = [joined.boxes[:, i] for i in range(4)] + [
        joined.scores,
        joined.labels,
        joined.scales,
    ]
    children = [pa.array(a, DET.field(i).type) for i, a in enumerate(arrays)]
    values = pa.StructArray.from_arrays(children, fields=list(DET))
    return _lists([len(d) for d in lists], values)


def _candidate_record(candidate: Candidate) -> dict[str, Any]:
    return {
        **dict(zip(("x0", "y0", "x1", "y1"), candidate.box, strict=True)),
        "focus": candidate.focus,
        "gain": candidate.gain,
        "parent": candidate.parent,
    }


def _candidate(record: dict[str, Any]) -> Candidate:
    box = (record["x0"], record["y0"], record["x1"], record["y1"])
    return Candidate(box, record["focus"], record["gain"], record["parent"])


def _chip_lists(lists: Sequence[Sequence[Chip]], stored: bool) -> pa.Array:
    chips = [chip for one in lists for chip in one]
    plain = [
        [c.scale for c in chips],
        [c.lane for c in chips],
        *[[c.box[i] for c in chips] for i in range(4)],
        [c.focus for c in chips],
        [c.gain for c in chips],
    ]
    kind = STORED_CHIP if stored else CHIP
    children = [pa.array(a, kind.field(i).type) for i, a in enumerate(plain)]
    if not stored:
        children.append(pa.array([c.looked for c in chips], pa.bool_()))
        children.append(
            _pixels([None if p is None else p.read(*p.size) for p in (c.pixels for c in chips)])
        )
    values = pa.StructArray.from_arrays(children, fields=list(kind))
    return _lists([len(one) for one in lists], values)


def _pixels(crops: Sequence[NDArray[np.uint8] | None]) -> pa.Array:
    """Crops as binary values, each copied once: they may be whole images."""
    offsets = np.zeros(len(crops) + 1, np.int64)
    np.cumsum([0 if crop is None else crop.size for crop in crops], out=offsets[1:])
    data = np.empty(offsets[-1], np.uint8)
    for crop, low, high in zip(crops, offsets[:-1], offsets[1:], strict=True):
        if crop is not None:
            np.copyto(data[low:high].reshape(crop.shape), crop)
    there = np.packbits(np.array([crop is not None for crop in crops], bool), bitorder="little")
    buffers = [pa.py_buffer(there), pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(crops), buffers)


def table_to_rows(table: pa.Table) -> list[ImageRow]:
    """A table of `ROW` or `STORED_ROW` -> rows; chip pixels are views of the table's buffers."""
    names = ("image_id", "uri", "version", "width", "height", "bytes")
    plain = {name: table[name].to_pylist() for name in names}
    errors, ledgers = table["error"].to_pylist(), table["ledger"].to_pylist()
    detections = _split_detections(table["detections"])
    chips = _split_chips(table["chips"])
    flying = "candidates" in table.column_names
    candidates = table["candidates"].to_pylist() if flying else [[] for _ in errors]
    return [
        ImageRow(
            **{name: values[i] for name, values in plain.items()},
            error=errors[i],
            detections=detections[i],
            chips=chips[i],
            ledger=Ledger(**ledgers[i]),
            candidates=[_candidate(record) for record in candidates[i]],
        )
        for i in range(table.num_rows)
    ]


def _counts_and_values(column: pa.ChunkedArray) -> tuple[list[int], list[pa.Array]]:
    """List lengths and the flat values, chunk by chunk (joining may overflow offsets)."""
    counts: list[int] = []
    for chunk in column.chunks:
        counts += chunk.value_lengths().to_pylist()
    return counts, [chunk.flatten() for chunk in column.chunks]


def _split_detections(column: pa.ChunkedArray) -> list[Detections]:
    counts, values = _counts_and_values(column)

    def joined(name: str, dtype: Any) -> NDArray:
        parts = [v.field(name).to_numpy(zero_copy_only=False) for v in values]
        return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)

    boxes = np.stack([joined(name, np.float32) for name in ("x0", "y0", "x1", "y1")], 1)
    scores, labels = joined("score", np.float32), joined("label", np.int32)
    scales = joined("scale", np.int8)
    ends = np.cumsum(counts)
    return [
        Detections(boxes[e - n : e], scores[e - n : e], labels[e - n : e], scales[e - n : e])
        for n, e in zip(counts, ends, strict=True)
    ]


def _split_chips(column: pa.ChunkedArray) -> list[list[Chip]]:
    counts, values = _counts_and_values(column)
    flat = [chip for part in values for chip in _chips_of(part)]
    ends = np.cumsum(counts)
    return [flat[e - n : e] for n, e in zip(counts, ends, strict=True)]


def _chips_of(values: pa.StructArray) -> list[Chip]:
    names = [f.name for f in STORED_CHIP]
    columns = [values.field(name).to_pylist() for name in names]
    has_pixels = values.type.get_field_index("pixels") >= 0
    pixels = values.field("pixels") if has_pixels else None
    looked = values.field("looked").to_pylist() if has_pixels else [True] * len(values)
    chips = []
    for i, (scale, lane, x0, y0, x1, y1, focus, gain) in enumerate(zip(*columns, strict=True)):
        crop = None
        if pixels is not None and pixels[i].is_valid:
            data = np.frombuffer(pixels[i].as_buffer(), np.uint8)
            crop = ArrayPixels(data.reshape(y1 - y0, x1 - x0, 3))
        chips.append(Chip(scale, lane, (x0, y0, x1, y1), focus, gain, crop, looked[i]))
    return chips
