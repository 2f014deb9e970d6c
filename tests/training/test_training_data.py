"""From a training config to its stream: which sources, which shares, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from af_pipeline.settings.train import TrainConfig
from af_pipeline.sniper.chips import ChipMaking
from af_pipeline.sniper.images import FileImages
from af_pipeline.sniper.stream import ChipStream
from af_pipeline.training.data import (
    build_stream,
    check_cache,
    chips_per_epoch,
    load_training,
)

CLASS_NAMES = ("car", "truck", "bus")
PARTS = {"photos": ("cat", "dog"), "drawn": ("dog", "cat")}  # folder and classes
PYRAMID = [{"factor": 0.5, "valid_range": [72, -1]}, {"factor": 2, "valid_range": [-1, 90]}]


def annotations(folder: Path, names: tuple[str, ...] = CLASS_NAMES) -> str:
    """Four images of 400 x 300 px with one 40 px box each, but for the last; a COCO file."""
    images = [{"id": k, "file_name": f"{k}.jpg", "width": 400, "height": 300} for k in range(4)]
    boxes = [
        {"id": k, "image_id": k, "category_id": 1, "bbox": [50, 60, 40, 40], "iscrowd": 0}
        for k in range(3)
    ]
    for box in boxes:
        box["area"] = 1600
    kinds = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
    folder.mkdir(exist_ok=True)
    path = folder / "train.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": kinds}))
    for image in images:
        (folder / str(image["file_name"])).touch()
    return str(path)


def config(data: dict[str, Any], **sections: Any) -> TrainConfig:
    return TrainConfig.model_validate({"pyramid": PYRAMID, "data": data} | sections)


def stream(settings: TrainConfig) -> ChipStream:
    return build_stream(settings, load_training(settings))


def proposals(folder: Path, image_id: str, count: int) -> str:
    columns: dict[str, list[Any]] = {"image_id": [image_id] * count}
    columns |= {
        name: [value] * count for name, value in zip(("x0", "y0"), (300.0, 200.0), strict=True)
    }
    columns |= {
        name: [value] * count for name, value in zip(("x1", "y1"), (320.0, 220.0), strict=True)
    }
    pq.write_table(pa.table(columns), folder / "found.parquet")
    return str(folder / "found.parquet")


def test_files_alone(tmp_path: Path) -> None:
    settings = config({"train": annotations(tmp_path)})
    chips = stream(settings)
    assert [type(source) for source in chips.sources] == [FileImages]
    assert chips.repeats is None
    assert load_training(settings).class_names == CLASS_NAMES
    assert chips.making == ChipMaking(settings.pyramid, settings.chips, settings.focus_labels)


def test_parts_with_shares_are_sources_of_their_own(tmp_path: Path) -> None:
    one, two = (annotations(tmp_path / name, names) for name, names in PARTS.items())
    settings = config({"train": [{"uri": one, "share": 0.6}, {"uri": two, "share": 0.2}]})
    data = load_training(settings)
    assert data.class_names == ("cat", "dog")  # the same by name, whatever their order in a file
    chips = build_stream(settings, data)
    assert chips.shares == (0.6, 0.2)
    keys = [[source.key(number) for number in range(4)] for source in chips.sources]
    assert keys == [[f"{name}/{k}.jpg" for k in range(4)] for name in PARTS]
    assert [source.boxes(0)[1].tolist() for source in chips.sources] == [[0], [1]]
    together = stream(config({"train": [one, two]}))
    assert [len(source) for source in together.sources] == [8]
    fixed = config({"train": [one, two]}, classes=["dog", "cat"])
    assert load_training(fixed).class_names == ("dog", "cat")


def test_what_the_data_cannot_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no training images: .* data\.train=FILE"):
        stream(config({}))
    train = annotations(tmp_path)
    found = proposals(tmp_path, "other.jpg", 3)
    with pytest.raises(ValueError, match=r"found\.parquet has no image of data\.train"):
        stream(config({"train": train, "proposals": found}))
    with pytest.raises(ValueError, match=r"data\.proposals=nowhere cannot be read"):
        stream(config({"train": train, "proposals": "nowhere"}))


def test_chips_of_an_epoch_by_kind(tmp_path: Path) -> None:
    train = annotations(tmp_path)
    counts = chips_per_epoch(stream(config({"train": train})))
    assert counts == {"positive": 3, "focus": 3, "negative": 2}
    found = proposals(tmp_path, "3.jpg", 30)
    mined = stream(config({"train": train, "proposals": found}))
    assert chips_per_epoch(mined) == {"positive": 3, "focus": 3, "negative": 1}
    some = chips_per_epoch(mined, most=2)  # the first and the last image stand for four
    assert some == {"positive": 2, "focus": 2, "negative": 2}


def test_rare_classes_come_again(tmp_path: Path) -> None:
    chips = stream(config({"train": annotations(tmp_path), "class_power": 1}))
    assert chips.repeats is not None
    np.testing.assert_array_equal(chips.repeats, [1] + [3] * (len(CLASS_NAMES) - 1))


def test_slots_go_through_as_many_images_as_the_cache_holds(tmp_path: Path) -> None:
    train, image = annotations(tmp_path), 3 * 400 * 300
    for cache, batch, mix in ((2.0, 8, 16), (4 * 16 * image / 1e9, 8, 4), (image / 1e9, 8, 1)):
        optim = {"global_batch": batch}
        settings = config({"train": train, "cache_gb": cache}, optim=optim)
        chips = stream(settings)
        assert (chips.slots, chips.mix) == (batch, mix)
        dataset = load_training(settings)
        told = "".join(check_cache(settings, dataset))
        assert ("holds 1 decoded images, but a worker is at 8" in told) == (mix == 1)
