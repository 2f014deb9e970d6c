"""Wrong values, as a user or an attacker gives them: one line that names the key, exit code 2."""

import random
from pathlib import Path

import pytest

from af_pipeline.commands import index, train
from af_pipeline.config import MOST_BYTES, ConfigError, load_config
from af_pipeline.settings.index import IndexConfig

BASE = "pyramid: [{factor: 0.5}, {factor: 1}]\nfocus: {steps: [{threshold: 0.3}]}\n"
DOUBLING = "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGING = "".join(f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}\n" for n in range(1, 40))

# --set, and what the line says beside the key.
VALUES = {
    "source.uri": ["0x_", "1" * 5000, "[" * 3000, "{" * 3000, "'open", "*nowhere", "%x", "`x`",
        "a: b: c", "!!python/object:os.system {}", "!!python/name:os.system ''", "!!binary aGk=",
        "!!timestamp 2024-12-31", "!!timestamp 2024-13-45", "!!set {a, b}", "!!omap [a: 1]",
        "!!pairs [a: 1]", "!own x", "!!int ''", "!!float ''", "!!bool maybe", "!!null [1]",
        "123", "null", "true", "[a]", "{a: 1}", "&a [*a]", "a\tb: [\t", "\x00", "\x1b[31m",
        "--- a\n--- b", "? [1]\n: 2", "{1: 2}", "{a: 1, a: 2}", "{<<: 5}", "{<<: [1]}",
        "{null: 1}"],
    "pyramid.0.factor": ["1e300", "1.0e+300", ".inf", "-.inf", ".nan", "1e-300", "0", "-1", "17",
        "1" * 400, "'" + "1" * 5000 + "'", "half", "[1]", "0b_", "0o9", "1:99:x", "!!float x"],
    "pyramid": ["1", "[[]]", "[1]", "{}", "[{factor: {}}]", "&p [{factor: *p}]"],
    "ray.pools.0.actors": ["1000000000", "0", "-1", "[2, 1]", "[1]", "[1, 2, 3]", "1.5", "many",
        "[1, 1000000000]", "9" * 4000],
    "ray.pools.0.threads": ["1000000", "-1", ".nan"],
    "ray.pools.0.num_cpus": ["-1", "1e20", ".inf"],
    "ray.pools.0.num_gpus": ["-0.5", "1.5", "1000"],
    "ray.pools.0.resources": ["{a: -1}", "{a: 1e300}", "{GPU: 1}", "{a: x}", "[1]", "{a: .nan}"],
    "ray.pools.0.max_side": ["1e9", "-32"],
    "ray.wait_for_actors_s": ["1e20", "1.0e+20", "-1", "0.5"],
    "ray.task_cpus": ["1e20", "0"],
    "ray.rows_per_block": ["1e10", "0"],
    "lanes.sides": ["[320000000]", "[-32]", "[256, 256]", "[]"],
    "lanes.batch_pixels": ["1e30", "0"],
    "stack.max_detections": ["1e30", "-1"],
    "focus.steps.0.dilation": ["1000001", "0"],
    "focus.steps.0.treshold": ["0.1"],
    "focus.steps.0.min_size": ["1e12"],
    "source.storage.attempts": ["1e9"],
    "source.storage.timeout_s": ["1e20"],
    "tiles.side": ["1e12"],
    "max_error_rate": ["-0.1", "1.1", "many"],
    "mode": ["", "AUTOFOCUS", "1", "[autofocus]"],
    "a.b.c.d": ["1"],
    "mode.deeper": ["1"],
    "\u202eedom": ["1"],
}  # fmt: skip
SETS = [(key, value) for key, values in VALUES.items() for value in values]

# A config file, and what the line names.
FILES = {
    "empty": (b"", "NoneType"),
    "list": (b"- a\n", "list"),
    "text": (b"plain", "str"),
    "binary": (bytes(range(256)) * 8, "UTF-8"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "UTF-8"),
    "zeros": (bytes(500), "YAML"),
    "utf16": (BASE.encode("utf-16"), "UTF-8"),
    "large": (b"# " + b"x" * MOST_BYTES, "larger than"),
    "tabs": (b"stack:\n\tsigma: 1\n", "line 2"),
    "two documents": (b"a: 1\n---\nb: 2\n", "single document"),
    "key twice, deep": (b"focus: {steps: [{threshold: 1, threshold: 1}]}", "'threshold' is given"),
    "key twice": (b"stack:\n  sigma: 1\n  iou: 1\n  sigma: 2\n", "line 4"),
    "key of a list": (b"? [1, 2]\n: 3\n", "key that is no text (line 1)"),
    "key of a number": (b"stack: {1: 2}", "stack (line 1) has a key that is no text"),
    "key that cannot be": (b"stack: {0x_: 2}", "stack (line 1) has a key that is no text"),
    "odd key": (b'"a\\nb\\L\\e": 1', r"unknown key 'a\nb\u2028\x1b'"),
    "odd key, deep": (b'{"a\\nb\\L\\e": 0x_}', r"a\nb\u2028\x1b (line 1)"),
    "long key": (b"? " + b"k" * 5000 + b"\n: 1\n", "unknown key"),
    "number": (b"source:\n  uri: 0x_\n", "source.uri (line 2)"),
    "digits": (b"source: {uri: " + b"7" * 5000 + b"}", "source.uri (line 1)"),
    "object": (b"mode: !!python/object/apply:os.system [id]", "mode (line 1) has the tag"),
    "brackets": (b"mode: " + b"[" * 3000, "nested too deep"),
    "closed brackets": (b"mode: " + b"[" * 60 + b"]" * 60, "30 levels at mode.0.0"),
    "aliases": (f"a0: &a0 [1]\n{DOUBLING}".encode(), "aliases written out"),
    "merges": (f"m0: &m0 {{x: 1}}\n{MERGING}".encode(), "aliases written out"),
    "endless alias": (b"stack: &s {sigma: *s}", "stack.sigma.sigma"),
    "unknown alias": (b"stack: *s", "undefined alias"),
    "secret": (b"source: {uri: 'https://h/?sig=hush', x: [}\n", "not valid YAML"),
}


def told(capsys: pytest.CaptureFixture[str], job: object, *arguments: str) -> str:
    assert job.main(arguments) == 2  # type: ignore[attr-defined]
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 700
    return line


@pytest.mark.parametrize(("key", "value"), SETS, ids=[f"{k}={v[:20]!r}" for k, v in SETS])
def test_a_wrong_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    path = tmp_path / "index.yaml"
    path.write_text(BASE)
    # Were the value taken, the missing source would be told, which names another key.
    nowhere = () if key == "source.uri" else ("--set", f"source.uri={tmp_path}/nowhere")
    line = told(capsys, index, "--config", str(path), "--set", f"{key}={value}", *nowhere)
    names = {key, repr(key)[1:-1], key.rpartition(".")[0]} - {""}
    assert any(name in line for name in names)
    assert "nowhere" not in line.replace("*nowhere", "").replace("alias 'nowhere'", "")


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path, (content, part) = tmp_path / "mine.yaml", FILES[name]
    path.write_bytes(content)
    line = told(capsys, index, "--config", str(path))
    assert part in line
    assert "mine.yaml" in line
    assert "hush" not in line


@pytest.mark.parametrize("path", ["", ".", "nowhere.yaml", "/dev/zero", "a" * 5000, "a\0b"])
def test_a_file_that_cannot_be_read(capsys: pytest.CaptureFixture[str], path: str) -> None:
    told(capsys, index, "--config", path)


@pytest.mark.parametrize(
    "override",
    ["model.channels=-8", "model.channels=8000000", "model.width=1e9", "model.head_depth=1e6",
     "optim.steps=1e18", "run.workers=1000000000", "run.seed=1e20", "chips.size=3200000",
     "run.loader_threads=1e6", "data.cache_gb=1e300", "classes=2024", "mining.per_scale=1e12"],
)  # fmt: skip
def test_a_wrong_value_for_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, override: str
) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("pyramid: [{factor: 1}]\n")
    line = told(capsys, train, "--config", str(path), "--set", override)
    assert f"--set: {override.partition('=')[0]}" in line


FRAGMENTS = (
    *"[]{}:,-&*!|>'\"%@`?#\n\t~", "- ", ": ", "<<: ", "&a ", "*a", "!!", "!!set ", "!!python/x ",
    "0x", "0b_", "1e999", ".inf", ".nan", "2024-13-45", "true", "null", "pyramid: ", "factor: ",
    "\n  ", "\n---\n", "9" * 5000, "[" * 500, "\ud7ff", "\u2028", "\x00", "\ufeff",
)  # fmt: skip


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.soak)])
def test_mutants_of_a_config_are_read_or_refused_in_one_line(tmp_path: Path, count: int) -> None:
    """The place and the number of a mutant are all it follows from."""
    path = tmp_path / "index.yaml"
    for number in range(count):
        rng, text = random.Random(number), BASE
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(text))
            text = text[:start] + rng.choice(FRAGMENTS) + text[start + rng.choice((0, 0, 1, 9)) :]
        path.write_text(text, encoding="utf-8")
        override = f"{rng.choice(list(VALUES))}={rng.choice(FRAGMENTS)}"
        for overrides in ((), (override,)):
            told = ""
            try:
                load_config(IndexConfig, path, overrides)
            except ConfigError as error:
                told = str(error)
            assert len(told.splitlines()) <= 1, (number, text, overrides)


def test_a_date_is_text_and_merges_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "index.yaml"
    fine = "focus: {steps: [&f {<<: &c {threshold: 0.3, dilation: 5}, threshold: 0.4}, *f]}\n"
    path.write_text(f"pyramid: [{{factor: 1}}, {{factor: 2}}, {{factor: 3}}]\n{fine}")
    config = load_config(IndexConfig, path, ["source.uri=2024-12-31"])
    assert config.source.uri == "2024-12-31"
    assert [(s.threshold, s.dilation) for s in config.focus.steps] == [(0.4, 5)] * 2
