"""Configuration: what is wrong is named, with the key to write instead."""

import re
from pathlib import Path

import pytest

from af_pipeline.config import ConfigError, Section, config_hash, dump_config, load_config
from af_pipeline.core.focus import ChipRule
from af_pipeline.core.scales import Scale
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.train import TrainConfig

CONFIGS = Path(__file__).parents[1] / "configs"
INDEX = """
pyramid:
  - {factor: 0.5, valid_range: [72, -1]}
  - {min_side: 800, max_side: 1280}
focus:
  steps:
    - {threshold: 0.3, merge: paper}
lanes: {sides: [256, 512]}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "index.yaml"
    path.write_text(text)
    return path


def load(folder: Path, text: str = INDEX, *overrides: str) -> IndexConfig:
    return load_config(IndexConfig, write(folder, text), overrides)


def problem(folder: Path, text: str = INDEX, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return str(caught.value)


def test_sections_become_plain_rules(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.pyramid[0] == Scale(0.5, valid_range=(72, -1))
    assert config.pyramid[1] == Scale(None, 800, 1280)
    assert config.focus.steps[0] == ChipRule(0.3, merge="paper", chip_cost=4096)
    assert config.lanes.sides == (256, 512)
    assert config.mode == "autofocus"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_loads(path: Path) -> None:
    kinds: dict[str, type[Section]] = {"train": TrainConfig, "index": IndexConfig}
    kind = kinds[path.relative_to(CONFIGS).parts[0]]
    config = load_config(kind, path)
    assert kind.model_validate(dump_config(config)) == config


# ---- wrong keys


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("pyramyd: []", "'pyramyd'", "'pyramid'"),
        ("stack: {sigmaa: 1}", "'stack.sigmaa'", "'sigma'"),
        ("focus: {steps: [{treshold: 0.1}]}", "'focus.steps.0.treshold'", "'threshold'"),
        ("ray: {pools: [{}, {num_cpu: 1}]}", "'ray.pools.1.num_cpu'", "'num_cpus'"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, text: str, key: str, near: str) -> None:
    message = problem(tmp_path, text)
    assert "index.yaml" in message
    assert f"unknown key {key}; did you mean {near}?" in message


def test_a_key_near_to_none_lists_the_valid_ones(tmp_path: Path) -> None:
    message = problem(tmp_path, INDEX + "tiles: {zzz: 1}")
    assert "unknown key 'tiles.zzz'; valid: overlap, scale, side" in message


def test_an_unknown_key_in_an_override(tmp_path: Path) -> None:
    message = problem(tmp_path, INDEX, "stack.min_scor=0.2")
    assert "unknown key 'stack.min_scor'; did you mean 'min_score'?" in message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    message = problem(tmp_path, INDEX, "stack.sigma=-1", "modee=whole", "lanes.overlap=x")
    for part in ("stack.sigma", "'modee'", "lanes.overlap"):
        assert part in message


def test_a_key_given_twice_names_its_line(tmp_path: Path) -> None:
    message = problem(tmp_path, "mode: whole\nstack:\n  sigma: 1\n  iou: 0.5\n  sigma: 2\n")
    assert "index.yaml" in message
    assert "'sigma' is given twice (line 5)" in message


def test_an_override_given_twice(tmp_path: Path) -> None:
    assert "--set mode is given twice" in problem(tmp_path, INDEX, "mode=whole", "mode=pyramid")


def test_yaml_anchors_and_merges(tmp_path: Path) -> None:
    text = "pyramid: [{factor: 0.5}, {factor: 1}, {factor: 2}]\n"
    coarse = "&coarse {threshold: 0.3, dilation: 5}"
    text += f"focus: {{steps: [{coarse}, {{<<: *coarse, threshold: 0.4}}]}}\n"
    fine = load(tmp_path, text).focus.steps[1]
    assert (fine.threshold, fine.dilation) == (0.4, 5)


def test_a_missing_key(tmp_path: Path) -> None:
    assert "pyramid: Field required" in problem(tmp_path, "mode: whole")


# ---- wrong values


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("mode=fast", "mode: Input should be 'autofocus', 'pyramid', 'tiles' or 'whole'"),
        ("stack.sigma=wide", "stack.sigma: Input should be a valid number"),
        ("focus.steps.0.threshold=1.5", "0.threshold: Input should be less than or equal to 1"),
        ("lanes.sides=[256, 300]", "lanes: sides must be positive multiples of 32"),
        ("lanes.sides=[512, 256]", "lanes: sides must rise"),
        ("lanes.overlap=256", "lanes: overlap must be less than half of the largest side"),
        ("pyramid.0.min_side=480", "pyramid.0: give factor or min_side/max_side, not both"),
        ("pyramid.0.factor=", "pyramid.0.factor"),
        ("focus.steps=[]", "one entry per step between scales: 1 for 2 scales, found 0"),
        ("focus.budget=0", "focus.budget: Input should be greater than 0"),
        ("focus.budget_per=day", "focus.budget_per: Input should be 'image' or 'run'"),
        ("focus.steps.0.context=-1", "focus.steps.0.context: Input should be greater than or"),
        ("pyramid=[]", "pyramid needs at least one scale"),
        ("pyramid.0.factor=0", "pyramid.0.factor: Input should be greater than or equal to 0.001"),
        ("pyramid.0.factor=.inf", "pyramid.0.factor: Input should be a finite number"),
        ("stack.sigma=.nan", "stack.sigma: Input should be"),
        ("pyramid.0.valid_range=[1, .inf]", "valid_range.1: Input should be a finite number"),
        ("pyramid.1.min_side=0", "pyramid.1: min_side must be 1 px or more, or -1 for none"),
        ("pyramid.1.max_side=0", "pyramid.1: max_side must be 1 px or more, or -1 for none"),
        ("pyramid.1.max_side=-5", "or -1 for none; found -5"),
        ("pyramid.0.valid_range=[90, 34]", "pyramid.0: valid_range must rise; found 90 to 34"),
        ("pyramid.0.valid_range=[34, 34]", "pyramid.0: valid_range must rise"),
        ("pyramid.0.valid_range=[-1, 0]", "valid_range takes px, or -1 for open"),
        ("pyramid=[{factor: 1}, {factor: 0.5}]", "factor must rise, but scale 0 has 1 and scale 1"),
        ("pyramid=[{factor: 1}, {factor: 1}]", "pyramid goes coarse to fine: factor must rise"),
        (
            "pyramid=[{min_side: 800, max_side: 900}, {min_side: 480, max_side: 1200}]",
            "min_side must rise, but scale 0 has 800 and scale 1 has 480",
        ),
        (
            "pyramid=[{min_side: 480, max_side: 1280}, {min_side: 800, max_side: 1280}]",
            "max_side must rise, but scale 0 has 1280 and scale 1 has 1280",
        ),
        ("lanes={sides: [96], overlap: 16}", "overlap must leave 96 px of the largest side"),
        ("source=cars.json", "source: Input should be"),
    ],
)
def test_wrong_values_are_readable(tmp_path: Path, override: str, part: str) -> None:
    message = problem(tmp_path, INDEX, override)
    assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "override", "start"),
    [
        (INDEX, "focus.steps.0.treshold=0.2", "--set: unknown key 'focus.steps.0.treshold'"),
        (INDEX, "lanes={sides: [96], overlap: 16}", "--set: lanes: overlap"),
        (INDEX + "stack: {sigma: -1}", "mode=whole", "FILE: stack.sigma: "),
        (INDEX, "lanes.overlap=256", "FILE with --set lanes.overlap: lanes: overlap must"),
        (INDEX + "stack: {sigma: -1}", "mode=x", "--set: mode: .*; FILE: stack.sigma: "),
    ],
)
def test_who_said_what_is_wrong(tmp_path: Path, text: str, override: str, start: str) -> None:
    wanted = start.replace("FILE", re.escape(str(tmp_path / "index.yaml")))
    assert re.match(wanted, problem(tmp_path, text, override))


# ---- overrides


def test_overrides_reach_lists_and_missing_sections(tmp_path: Path) -> None:
    config = load(
        tmp_path, INDEX, "focus.steps.0.threshold=0.2", "stack.sigma=0.7", "lanes.sides=[64, 128]",
        "lanes.overlap=8", "output.chips=false", "source.uri=s3://bucket/a=b", "bf16=no",
    )  # fmt: skip
    assert config.focus.steps[0].threshold == 0.2
    assert config.focus.steps[0].merge == "paper"
    assert config.stack.sigma == 0.7
    assert config.lanes.sides == (64, 128)
    assert config.output.chips is False
    assert config.source.uri == "s3://bucket/a=b"
    assert config.bf16 is False


def test_the_paper_spelling_of_small_numbers(tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-3 as text; a number is wanted
    assert load(tmp_path, INDEX, "detector_score=1e-3").detector_score == 0.001


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("focus.steps.1.threshold=0.2", "the list has entries 0..0, not '1'"),
        ("focus.steps.-1.threshold=0.2", "the list has entries 0..0, not '-1'"),
        ("focus.steps.first.threshold=0.2", "the list has entries 0..0, not 'first'"),
        ("pyramid.0.factor.x=1", "'x' is below a plain value"),
        ("mode", "--set takes key=value, found 'mode'"),
        ("=whole", "--set takes key=value, found '=whole'"),
        ("lanes.sides=[1", "--set lanes.sides: not valid YAML: while parsing a flow"),
        ("focus.steps.\u00b2.threshold=1", "the list has entries 0..0, not '\u00b2'"),
        ("stack={sigma: 1, sigma: 2}", "'sigma' is given twice"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, part: str) -> None:
    assert part in problem(tmp_path, INDEX, override)


def test_an_entry_of_a_list_that_is_not_in_the_file(tmp_path: Path) -> None:
    """It is one of the default."""
    text = INDEX.replace("lanes: {sides: [256, 512]}\n", "")
    config = load(
        tmp_path, text, "ray.pools.0.actors=2", "ray.pools.0.threads=3", "lanes.sides.0=64",
        "pyramid.1.valid_range.1=90",
    )  # fmt: skip
    plain = load(tmp_path, text)
    assert config.ray.pools == (plain.ray.pools[0].model_copy(update={"actors": 2, "threads": 3}),)
    assert config.lanes.sides == (64, *plain.lanes.sides[1:])
    assert config.pyramid[1].valid_range == (-1, 90)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("ray.pools.1.actors=2", "--set ray.pools.1.actors: the list has entries 0..0, not '1'"),
        ("ray.pools.actors=2", "the list has entries 0..0, not 'actors'"),
        ("focus.steps.0.dilation=1", "steps.0.dilation: the list is empty; give the whole list"),
        ("pyramid.0.factor=1", "the file has no list 'pyramid'; give the whole list"),
        ("nothing.0.at=1", "unknown key 'nothing'"),
    ],
)
def test_a_list_that_cannot_be_completed(tmp_path: Path, override: str, part: str) -> None:
    assert part in problem(tmp_path, "mode: whole\n", override)


# ---- wrong files


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read config .*nowhere\.yaml: No such file"):
        load_config(IndexConfig, tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot read config"):
        load_config(IndexConfig, tmp_path)
    for text, kind in (("- a\n- b", "list"), ("", "NoneType"), ("plain", "str")):
        assert f"must hold a mapping of keys, found {kind}" in problem(tmp_path, text)
    assert "not valid YAML" in problem(tmp_path, "a: [1, 2")
    (tmp_path / "latin.yaml").write_bytes(b"mode: \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml"):
        load_config(IndexConfig, tmp_path / "latin.yaml")


# ---- identity


def test_config_is_immutable_and_hashable(tmp_path: Path) -> None:
    one, two = load(tmp_path), load(tmp_path, INDEX, "stack.sigma=0.55", "output.uri=elsewhere")
    with pytest.raises(ValueError, match="frozen"):
        one.mode = "whole"  # type: ignore[misc]
    assert config_hash(one) != config_hash(two)
    assert config_hash(one, ["output"]) == config_hash(two, ["output"])
    assert len(config_hash(one)) == 16
