"""Typed configuration: one YAML file plus ``--set a.b=c``; unknown or duplicate keys are errors.

What can be set is in `af_pipeline.settings.index`. The resolved config is written beside every
checkpoint and every output.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass


class ConfigError(ValueError):
    """The configuration cannot be used; the message names the key and what to write."""


# Inputs may hold secrets, and errors are chained.
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
RuleT = TypeVar("RuleT")


class Section(BaseModel):
    """Base of the sections that only configs are made of: immutable, no unknown keys, no nan."""

    model_config = ConfigDict(**_STRICT, frozen=True)


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def rule(kind: type[RuleT]) -> type[RuleT]:
    """Make a frozen dataclass that is a section of a config and what its algorithm is given."""
    made: type[RuleT] = dataclass(frozen=True, config=_STRICT)(kind)  # type: ignore[assignment]
    return made


ConfigT = TypeVar("ConfigT", bound=Section)

# Upper limits of settings: more does not work, and would be told late or not at all.
Side = Annotated[int, Field(le=100_000)]  # network px; no device holds the forward of a larger one
Pixels = Annotated[int, Field(le=10**11)]  # network px of a batch, likewise
NodeCores = Annotated[float, Field(le=1024)]  # an actor lives on one node; none has more
Threads = Annotated[int, Field(le=1024)]  # of one process
Count = Annotated[int, Field(le=10**9)]  # of images, detections, chips or steps

# Bounds of a config: the recipes have 3 kB, 100 entries and 5 levels.
MOST_BYTES = 200_000
MOST_NODES = 20_000
MOST_DEPTH = 30

_TAGS = {f"tag:yaml.org,2002:{t}" for t in ("map", "seq", "str", "int", "float", "bool", "null")}
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """No setting is a date: 2024-11-25 is text, such as the name of a folder."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as the base declares it
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def load_config(kind: type[ConfigT], path: str | Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file, apply ``a.b=c`` overrides, validate as ``kind``.

    Raises ConfigError naming the file or key, with the nearest valid key where one is unknown.
    """
    try:
        with Path(path).open("rb") as file:  # no more than that of a device or a wrong file
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read config {path}: {reason}") from error
    try:
        text = data[:MOST_BYTES].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path} is larger than {MOST_BYTES} bytes: is it a config?")
    tree = _read_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, found {type(tree).__name__}")
    return config_from(kind, tree, overrides, str(path))


def _read_yaml(text: str, origin: str) -> Any:
    """The value of a YAML text: maps, lists, text, numbers, booleans and null, nothing else.

    Raises ConfigError that begins with ``origin`` for any text that has no such value.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check_nodes(loader, root)
        return loader.construct_document(root)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error
    except yaml.MarkedYAMLError as error:  # its own text quotes the document, secrets too
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{origin}: not valid YAML: {problem}{line}") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: not valid YAML: nested too deep") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from error


def _check_nodes(loader: _Loader, root: yaml.Node) -> None:
    """Raise ConfigError, naming key and line, for what no config holds.

    Aliases and merges are followed each time they occur, so that what multiplies, or holds itself,
    ends at a bound before anything is built of it.
    """
    left: list[tuple[tuple[str, ...], yaml.Node]] = [((), root)]
    count = 0
    while left:
        path, node = left.pop()
        where = f"{_dotted(path) or 'the whole'} (line {node.start_mark.line + 1})"
        count += 1
        if node.tag not in _TAGS:
            raise ConfigError(f"{where} has the tag {node.tag!r}, which no setting has")
        if isinstance(node, yaml.ScalarNode):
            try:
                loader.construct_object(node)
            except (ValueError, LookupError) as error:
                raise ConfigError(f"{where} cannot be read: {str(error)[:200]}") from error
        elif isinstance(node, yaml.MappingNode):
            keys = [key for key, _ in node.value]
            _check_keys(keys, where)
            left += [((*path, key.value), child) for key, child in node.value]
        else:
            left += [((*path, str(place)), child) for place, child in enumerate(node.value)]
        if len(path) > MOST_DEPTH or count + len(left) > MOST_NODES:
            raise ConfigError(
                f"more than {MOST_NODES} entries, aliases written out, or {MOST_DEPTH} levels at "
                + where
            )


def _check_keys(keys: Sequence[yaml.Node], where: str) -> None:
    seen: set[str] = set()
    for key in keys:
        line = key.start_mark.line + 1
        if key.tag not in (_TEXT, _MERGE) or not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{where} has a key that is no text (line {line})")
        if key.value in seen and key.tag == _TEXT:
            raise ConfigError(f"key {key.value!r} is given twice (line {line}); keep one")
        seen.add(key.value)


def config_from(
    kind: type[ConfigT], tree: dict[str, Any], overrides: Sequence[str], origin: str
) -> ConfigT:
    """Like `load_config`, from the mapping ``tree``; ``origin`` is what messages call it."""
    tree = copy.deepcopy(tree)
    seen: set[str] = set()
    for override in overrides:
        key = override.partition("=")[0]
        if key in seen:
            raise ConfigError(f"--set {key} is given twice; keep one")
        seen.add(key)
        _apply_override(kind, tree, override)
    return _validate(kind, tree, origin, [tuple(key.split(".")) for key in seen])


def _apply_override(kind: Any, tree: dict[str, Any], override: str) -> None:
    """Set one ``a.b=c`` in place; list entries by index, as in ``focus.steps.0.threshold=0.2``."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set takes key=value, found {override!r}")
    value = _read_yaml(text, f"--set {path}") if text else ""
    node: Any = tree
    keys = path.split(".")
    for key in keys[:-1]:
        if isinstance(node, dict):
            field = _fields(kind).get(key) if kind else None
            if node.get(key) is None:
                node[key] = _missing(field, key, path)
            kind = _section_of(field.annotation) if field else None
        node = node[_index(node, key, path)]
    last = _index(node, keys[-1], path)
    node[last] = value


def _missing(field: Any, key: str, path: str) -> Any:
    """What an override changes where the file says nothing: a list's default, else a section."""
    if field is None:
        return {}
    default = field.default
    if isinstance(default, tuple):
        return [dump_config(one) if _is_section(type(one)) else one for one in default]
    if any(get_origin(kind) is tuple for kind in (field.annotation, *get_args(field.annotation))):
        raise ConfigError(f"--set {path}: the file has no list {key!r}; give the whole list")
    return {}


def _index(node: Any, key: str, path: str) -> Any:
    if isinstance(node, dict):
        return key
    if isinstance(node, list):
        places = {str(place): place for place in range(len(node))}
        if key in places:
            return places[key]
        if not node:
            raise ConfigError(f"--set {path}: the list is empty; give the whole list")
        raise ConfigError(f"--set {path}: the list has entries 0..{len(node) - 1}, not {key!r}")
    raise ConfigError(f"--set {path}: {key!r} is below a plain value")


def _validate(
    kind: type[ConfigT], tree: dict[str, Any], origin: str, overridden: Sequence[tuple[str, ...]]
) -> ConfigT:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        found: dict[str, list[str]] = {}
        for problem in error.errors():
            place = _origin_of(tuple(map(str, problem["loc"])), origin, overridden)
            found.setdefault(place, []).append(_explain(kind, problem))
        lines = [f"{place}: {'; '.join(problems)}" for place, problems in found.items()]
        raise ConfigError("; ".join(lines)) from error


def _origin_of(loc: tuple[str, ...], origin: str, overridden: Sequence[tuple[str, ...]]) -> str:
    """Who said what is wrong at ``loc``: the file, --set, or both in what they make together."""
    if any(loc[: len(key)] == key for key in overridden):
        return "--set"
    within = sorted(_dotted(key) for key in overridden if key[: len(loc)] == loc)
    return f"{origin} with --set {', '.join(within)}" if within and origin != "--set" else origin


def _explain(kind: type[Section], problem: Any) -> str:
    where = _dotted(problem["loc"]) or "config"
    if problem["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        message = problem["msg"].removeprefix("Value error, ")
        return f"{where}: {message}"
    valid = _valid_keys(kind, problem["loc"][:-1])
    near = difflib.get_close_matches(str(problem["loc"][-1]), valid, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "valid: " + ", ".join(sorted(valid))
    return f"unknown key '{where}'; {hint}"


def _dotted(path: Sequence[Any]) -> str:
    """A key as one printable line, each part cut at 80 signs."""
    return ".".join(repr(str(part))[1:-1][:80] for part in path)


def _valid_keys(kind: Any, loc: Sequence[Any]) -> list[str]:
    """Field names of the section that ``loc`` leads to."""
    for part in loc:
        if isinstance(part, int):
            continue
        kind = _section_of(_fields(kind)[part].annotation)
    return list(_fields(kind))


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, Section) or is_dataclass(kind))


def _fields(kind: Any) -> dict[str, Any]:
    found: dict[str, Any] = kind.__pydantic_fields__
    return found


def _section_of(annotation: Any) -> Any:
    """The section inside an annotation such as ``tuple[Scale, ...]``."""
    if _is_section(annotation):
        return annotation
    for argument in get_args(annotation):
        found = _section_of(argument)
        if found is not None:
            return found
    return None


def dump_config(config: Any) -> dict[str, Any]:
    """The resolved config, or a section of it, as plain JSON values."""
    dumped: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return dumped


def dump_without(config: Any, exclude: Sequence[str] = ()) -> dict[str, Any]:
    """The resolved config without some keys; ``a.b`` leaves out b of section a."""
    tree = dump_config(config)
    for key in exclude:
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node[section] or {}  # a section that is not given
        node.pop(last, None)
    return tree


def config_hash(config: Any, exclude: Sequence[str] = ()) -> str:
    """First 16 hex digits of the SHA-256 of the config's canonical JSON."""
    tree = dump_without(config, exclude)
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tree_differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Differences of two JSON trees, one line each: key, what is there, what is asked for now."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = (dict(enumerate(values)) for values in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(set(old) | set(new)):
            below = f"{path}.{key}" if path else key
            found += tree_differences(old.get(key), new.get(key), below)
        return found
    return [] if old == new else [f"{path}: {_short(old)} there, {_short(new)} now"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
