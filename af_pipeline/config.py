"""Typed configuration: one YAML file plus ``--set a.b=c``; unknown or duplicate keys are errors.

What can be set is in `af_pipeline.settings`. The resolved config is written beside every
checkpoint and every output.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """The configuration cannot be used; the message names the key and what to write."""


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no inf or nan."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=Section)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML loader that refuses a key given twice (the plain one keeps the last silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                continue  # the plain loader refuses the one and merges the other
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"key {key!r} is given twice (line {line}); keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_config(kind: type[ConfigT], path: str | Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file, apply ``a.b=c`` overrides, validate as ``kind``.

    Raises ConfigError naming the file or key, with the nearest valid key where one is unknown.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    try:
        tree = yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, found {type(tree).__name__}")
    return config_from(kind, tree, overrides, str(path))


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
    return _validate(kind, tree, origin)


def _apply_override(kind: Any, tree: dict[str, Any], override: str) -> None:
    """Set one ``a.b=c`` in place; list entries by index, as in ``focus.steps.0.threshold=0.2``."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set takes key=value, found {override!r}")
    try:
        value = yaml.load(text, _UniqueKeyLoader) if text else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {path}: {text!r} is not a YAML value") from error
    node: Any = tree
    keys = path.split(".")
    for key in keys[:-1]:
        if isinstance(node, dict):
            field = kind.model_fields.get(key) if kind else None
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
        return [dump_config(one) if isinstance(one, Section) else one for one in default]
    if any(get_origin(kind) is tuple for kind in (field.annotation, *get_args(field.annotation))):
        raise ConfigError(f"--set {path}: the file has no list {key!r}; give the whole list")
    return {}


def _index(node: Any, key: str, path: str) -> Any:
    if isinstance(node, dict):
        return key
    if isinstance(node, list):
        if key.isdigit() and int(key) < len(node):
            return int(key)
        if not node:
            raise ConfigError(f"--set {path}: the list is empty; give the whole list")
        raise ConfigError(f"--set {path}: the list has entries 0..{len(node) - 1}, not {key!r}")
    raise ConfigError(f"--set {path}: {key!r} is below a plain value")


def _validate(kind: type[ConfigT], tree: dict[str, Any], origin: str) -> ConfigT:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(kind, problem) for problem in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from error


def _explain(kind: type[Section], problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "config"
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{where}: {message}"
    valid = _valid_keys(kind, problem["loc"][:-1])
    near = difflib.get_close_matches(str(problem["loc"][-1]), valid, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "valid: " + ", ".join(sorted(valid))
    return f"unknown key {where!r}; {hint}"


def _valid_keys(kind: Any, loc: Sequence[Any]) -> list[str]:
    """Field names of the section that ``loc`` leads to."""
    for part in loc:
        if isinstance(part, int):
            continue
        kind = _section_of(kind.model_fields[part].annotation)
    return list(kind.model_fields)


def _section_of(annotation: Any) -> Any:
    """The Section inside an annotation such as ``tuple[ScaleConfig, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in get_args(annotation):
        found = _section_of(argument)
        if found is not None:
            return found
    return None


def dump_config(config: Section) -> dict[str, Any]:
    """The resolved config as plain JSON values."""
    return config.model_dump(mode="json")


def dump_without(config: Section, exclude: Sequence[str] = ()) -> dict[str, Any]:
    """The resolved config without some keys; ``a.b`` leaves out b of section a."""
    tree = dump_config(config)
    for key in exclude:
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node[section]
        del node[last]
    return tree


def config_hash(config: Section, exclude: Sequence[str] = ()) -> str:
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
