"""A run folder belongs to one training; a full disk is one line, and the run goes on."""

import errno
import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from af_pipeline.config import config_from
from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage
from af_pipeline.settings.train import TrainConfig
from af_pipeline.training import trainer
from af_pipeline.training.folder import (
    KEPT_FILE,
    LIST_FILE,
    claim_folder,
    keep_list,
    mend_list,
    no_space,
    out_of_space,
    run_folder,
)
from af_pipeline.training.log import TrainingLog
from tests.helpers.annotated import data_of
from tests.helpers.said import own_lines
from tests.helpers.training import job, steps


def config(*sets: str) -> TrainConfig:
    return config_from(TrainConfig, {"pyramid": [{"factor": 1}]}, sets, "test")


def data(left: float = 1.0, name: str = "a") -> AnnotatedDataset:
    boxes = np.array([[left, 1, 9, 9]], np.float32)
    image = AnnotatedImage(name, "a.png", 10, 10, boxes, np.zeros(1, np.int32), np.zeros(1, bool))
    return data_of([image], "car")


def claim(folder: Path, *sets: str, dataset: AnnotatedDataset | None = None) -> None:
    claim_folder(folder, config(*sets), dataset or data())


@pytest.mark.parametrize(
    "change",
    [
        "optim.steps=9",
        "run.workers=2",
        "run.output=elsewhere",
        "mining.steps=5",
        "data.train=b.json",
        "data.check_images=0",
        "data.on_broken=drop",
    ],
)
def test_what_may_change_when_a_run_goes_on(tmp_path: Path, change: str) -> None:
    claim(tmp_path / "run")
    claim(tmp_path / "run", change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("optim.lr=0.5", "config.optim.lr: 0.002 there, 0.5 now"),
        ("run.seed=3", "seed: 0 there, 3 now"),
        ("data.proposals=p", 'config.data.proposals: null there, "p" now'),
        ("chips.size=64", "config.chips.size: 512 there, 64 now"),
        ("data.train=[{uri: a, share: 0.5}]", "shares: [] there, [0.5] now"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, change: str, told: str) -> None:
    claim(tmp_path / "run")
    with pytest.raises(ValueError, match="training with other settings") as caught:
        claim(tmp_path / "run", change)
    assert told in str(caught.value)


def test_other_data_are_refused(tmp_path: Path) -> None:
    claim(tmp_path / "run")
    with pytest.raises(ValueError, match=r"data: .* there, .* now"):
        claim(tmp_path / "run", dataset=data(left=2.0))
    with pytest.raises(ValueError, match=r"data: .* there, .* now"):
        claim(tmp_path / "run", dataset=data(name="b"))


@pytest.mark.parametrize("content", [b"", b'{"config": ', b"[]", b"\xff\xfe\x00\x01"])
def test_a_damaged_plan_is_named_with_the_way_on(tmp_path: Path, content: bytes) -> None:
    claim(tmp_path / "run")
    (tmp_path / "run/plan.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"run/plan\.json .*choose another run\.name"):
        claim(tmp_path / "run")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match=r"holds no training: choose another run\.name"):
        claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_the_run_folder_is_local() -> None:
    for output, folder in (("out/put", "out/put/mine"), ("s3://bucket/runs", "runs/mine")):
        assert run_folder(config(f"run.output={output}")) == Path(folder).absolute()


# ---- a full disk


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process grows beyond ``size`` bytes meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_torch_and_safetensors_raise_is_known(tmp_path: Path) -> None:
    weights = {"a": torch.zeros(100_000)}

    def save() -> None:
        with (tmp_path / "x.pt").open("wb") as file:
            torch.save(weights, file)

    for write in (save, lambda: save_file(weights, tmp_path / "x.safetensors")):
        with files_up_to(50_000), pytest.raises(Exception, match=r".") as caught:
            write()
        assert out_of_space(caught.value)
    assert out_of_space(OSError(errno.ENOSPC, "x"))
    assert not out_of_space(OSError(errno.EACCES, "x"))
    assert not out_of_space(ValueError("x"))


def test_the_line_says_where_and_how_to_go_on(tmp_path: Path) -> None:
    text = str(no_space([tmp_path / "not/made"], "checkpoint_00000500"))
    assert f"MB free in {tmp_path}" in text
    assert "checkpoint_00000500 is whole: make room and run the same command again" in text
    assert "no checkpoint yet" in str(no_space([tmp_path], ""))


def test_a_log_that_cannot_be_written_fails_instead_of_waiting(tmp_path: Path) -> None:
    log = TrainingLog(config(), tmp_path, 0, 0)

    def go_on() -> None:
        for step in range(1, 200):
            log.step(step, {"total": 1.0}, 0.1)

    with files_up_to(4000), pytest.raises(OSError, match="File too large"):
        go_on()


def test_a_list_of_checkpoints_cut_short_is_mended(tmp_path: Path) -> None:
    current = tmp_path / LIST_FILE
    mend_list(tmp_path)
    keep_list(tmp_path)
    assert not list(tmp_path.iterdir())
    current.write_text("")
    mend_list(tmp_path)
    assert not current.exists()
    current.write_text(json.dumps({"checkpoint_results": [1]}))
    keep_list(tmp_path)
    for cut in ("", '{"checkpoint_res'):
        current.write_text(cut)
        keep_list(tmp_path)  # does not replace a whole one
        mend_list(tmp_path)
        assert json.loads(current.read_text()) == {"checkpoint_results": [1]}
    assert (tmp_path / KEPT_FILE).exists()


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.usefixtures("cluster")
def test_a_checkpoint_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The third checkpoint is cut off as by a full disk; then there is room again."""
    sets = ("optim.steps=9", "run.checkpoint_every=2", "run.max_failures=0")
    plain = trainer.train_worker
    monkeypatch.setattr(trainer, "train_worker", full_at_third(plain))
    assert job(tmp_path, *sets) == 1
    said = own_lines(capsys.readouterr().err).splitlines()
    (error,) = [line for line in said if line.startswith("error: ")]
    assert error.startswith("error: training failed: ")
    assert not any("Traceback" in line for line in said)
    assert "no space left on a disk" in error
    run = tmp_path / "tiny"
    whole = sorted(path.name for path in run.glob("checkpoint_0*"))
    assert whole  # the one that did not fit is gone
    assert set(whole) <= {"checkpoint_00000002", "checkpoint_00000004"}
    assert f"{whole[-1]} is whole" in error
    (run / LIST_FILE).write_text("")  # as Ray Train leaves it where even this did not fit
    monkeypatch.setattr(trainer, "train_worker", plain)
    assert job(tmp_path, *sets) == 0
    assert steps(tmp_path) == list(range(1, 10))


def full_at_third(plain):  # type: ignore[no-untyped-def]
    """`train_worker` whose third upload of a checkpoint writes one file, then no more."""

    def worker(settings: dict) -> None:
        from ray.train.v2._internal.execution import storage

        copy, done = storage._pyarrow_fs_copy_files, []

        def some(source: str, destination: str, **options: object) -> None:
            done.append(destination)
            if len(done) < 3:
                return copy(source, destination, **options)
            Path(destination, "model.safetensors").write_bytes(b"x" * 1000)
            raise OSError(errno.ENOSPC, "Error writing bytes to file. No space left on device")

        storage._pyarrow_fs_copy_files = some
        try:
            plain(settings)
        finally:
            storage._pyarrow_fs_copy_files = copy

    return worker
