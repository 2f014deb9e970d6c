"""What was found in one image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.resize import RGB
from af_pipeline.core.schema import ImageRow
from af_pipeline.images.decode import encode_jpeg, encode_png
from af_pipeline.reporting.pictures import draw_detections


@dataclass(frozen=True)
class Result:
    """Detections of one image, best first; boxes in original px, x0, y0, x1, y1, half-open.

    Attributes:
        image: RGB uint8 [H, W, 3], EXIF orientation applied.
        row: the image's row as the index job writes it, account included.
        class_names: what ``labels`` are indices of.
    """

    image: RGB
    row: ImageRow
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def boxes(self) -> NDArray[np.float32]:
        """[N, 4] original px."""
        return self.row.detections.boxes

    @property
    def scores(self) -> NDArray[np.float32]:
        """[N], falling."""
        return self.row.detections.scores

    @property
    def labels(self) -> NDArray[np.int32]:
        """[N] indices of ``class_names``."""
        return self.row.detections.labels

    @property
    def scales(self) -> NDArray[np.int8]:
        """[N] scales of the pyramid that the detections were seen at, 0 the coarsest."""
        return self.row.detections.scales

    @property
    def chips(self) -> NDArray[np.int64]:
        """FocusChips [M, 4] that were looked at closely, original px."""
        boxes = [chip.box for chip in self.row.chips if chip.scale > 0]
        return np.array(boxes, np.int64).reshape(-1, 4)

    @property
    def pixels_processed(self) -> int:
        """Network px that were forwarded, padding apart."""
        return sum(self.row.ledger.pixels)

    @property
    def pixels_pyramid(self) -> int:
        """Network px of the full pyramid: every scale whole."""
        return self.row.ledger.pixels_pyramid

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """Detections as COCO's server takes them: bbox x, y, width, height; categories from 1.

        ``image_id``: of the image, else its name.
        """
        name = self.row.image_id if image_id is None else image_id
        corner, size = self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]
        boxes = np.concatenate([corner, size], 1).astype(np.float64).round(2).tolist()
        return [
            {"image_id": name, "category_id": int(label) + 1, "bbox": box, "score": float(score)}
            for label, box, score in zip(self.labels, boxes, self.scores, strict=True)
        ]

    def plot(self, path: str | Path | None = None, min_score: float = 0.3) -> RGB:
        """The image with its detections drawn; written to ``path`` (.jpg or .png) where given.

        Raises ValueError for another suffix, OSError where it cannot be written.
        """
        keep = self.scores >= min_score
        found = self.boxes[keep], self.labels[keep], self.scores[keep]
        drawn = draw_detections(self.image, *found, self.class_names)
        if path is not None:
            encode = {".png": encode_png, ".jpg": encode_jpeg, ".jpeg": encode_jpeg}
            suffix = Path(path).suffix.lower()
            if suffix not in encode:
                raise ValueError(f"a picture is written as .jpg or .png, not as {suffix!r}")
            Path(path).write_bytes(encode[suffix](drawn.image))
        return drawn.image
