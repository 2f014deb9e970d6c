"""What a training tells: each step in a file, the means in a line, no step twice."""

import json
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from af_pipeline.settings.train import TrainConfig
from af_pipeline.training.log import METRICS_FILE, TrainingLog, cut_after


def config() -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "pyramid": [{"factor": 1}],
            "optim": {"steps": 10, "global_batch": 4},
            "run": {"log_every": 3},
        }
    )


def losses(step: int) -> dict[str, float]:
    return {"class": step / 4, "box": 1.0, "total": step / 4 + 1}


def log(folder: Path, steps: range, rank: int = 0) -> TrainingLog:
    made = TrainingLog(config(), folder, steps.start - 1, rank)
    for step in steps:
        made.step(step, losses(step), 0.1 / step)
    made.close()
    return made


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def board(folder: Path) -> list[tuple[int, str, float]]:
    """Scalars of the TensorBoard files as (step, tag, value), in the order of writing."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length, its checksum, event, its checksum
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += length + 16
    return found


def test_every_step_is_in_the_file_and_on_the_board(tmp_path: Path) -> None:
    log(tmp_path / "deep" / "er", range(1, 8))
    found = records(tmp_path / "deep" / "er")
    assert [record["step"] for record in found] == list(range(1, 8))
    for record in found:
        step = int(record["step"])
        assert {name: record[name] for name in losses(step)} == losses(step)
        assert record["lr"] == pytest.approx(0.1 / step, rel=1e-5)
        assert record["chips_per_s"] > 0
        assert record["eta_s"] >= 0
    shown = board(tmp_path / "deep" / "er")
    assert [(step, value) for step, tag, value in shown if tag == "class"] == [
        (step, step / 4) for step in range(1, 8)
    ]
    assert {tag for _, tag, _ in shown} == set(found[0]) - {"step"}


def test_lines_print_means_since_the_last_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log(tmp_path, range(1, 11))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"step {n}/10" for n in (3, 6, 9, 10)]
    assert "loss 1.500  class 0.500  box 1.000  lr 3.33e-02" in lines[0]  # steps 1, 2, 3
    assert "loss 2.250  class 1.250  box 1.000" in lines[1]
    assert "loss 3.500  class 2.500  box 1.000" in lines[3]  # step 10 alone
    for line in lines:
        assert "chips/s  ETA 0:00:0" in line


def test_other_ranks_say_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = TrainingLog(config(), tmp_path / "none", 0, rank=1)
    assert other.step(3, losses(3), 0.1)["total"] == 1.75
    other.tell("hello")
    other.write(3, {"val_AP": 0.5})
    other.close()
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "none").exists()


def test_a_resumed_run_writes_no_step_twice_and_keeps_validations(tmp_path: Path) -> None:
    log(tmp_path, range(1, 8))
    before = records(tmp_path)
    log(tmp_path, range(6, 11))
    assert [record["step"] for record in records(tmp_path)] == list(range(1, 11))
    assert records(tmp_path)[:5] == before[:5]
    assert [step for step, tag, _ in board(tmp_path) if tag == "class"][-5:] == list(range(6, 11))
    made = TrainingLog(config(), tmp_path, 10, 0)
    made.write(10, {"val_AP": 0.123456789, "val_AP50": 0.5})
    made.close()
    assert records(tmp_path)[-1] == {"step": 10, "val_AP": 0.123457, "val_AP50": 0.5}
    assert {tag for _, tag, _ in board(tmp_path) if "val" in tag} == {"val/AP", "val/AP50"}


def test_cut_after(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    cut_after(path, 3)
    assert not path.exists()
    lines = [json.dumps({"step": n, "total": n / 2}) + "\n" for n in (1, 2, 2, 3, 4)]
    whole = "".join(lines)
    for text, step, kept in (
        (whole + '{"step": 5, "tot', 9, whole),
        (whole, 3, "".join(lines[:4])),
        (lines[0].rstrip(), 3, lines[0]),  # without its end of line
        (lines[0], 0, ""),
    ):
        path.write_text(text)
        cut_after(path, step)
        assert path.read_text() == kept
