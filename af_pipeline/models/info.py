"""The json beside a checkpoint's weights, checked without loading torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from af_pipeline.config import ConfigError, config_from, dump_config
from af_pipeline.settings.train import ModelConfig

SCHEMA_VERSION = 1
MOST_JSON = 20_000_000  # bytes; a config and the names of some hundred thousand classes
MODEL_KEYS = ("backbone", "width", "channels", "head_depth")  # what every json has, old ones too


class CheckpointError(ValueError):
    """The checkpoint cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class CheckpointInfo:
    """The json beside the weights.

    ``model``: what `build_detector` takes; ``class_names``: by label index; ``training``: the
    resolved training config, data and step it came from.
    """

    model: dict[str, Any]
    class_names: tuple[str, ...]
    training: dict[str, Any]
    schema_version: int = SCHEMA_VERSION


def info_path(weights: str | Path) -> Path:
    """The json beside a ``.safetensors`` file."""
    return Path(weights).with_suffix(".json")


def load_info(weights: str | Path) -> CheckpointInfo:
    """Read the json beside ``weights``. Raises CheckpointError when it is missing or unfit."""
    if not _is_file(Path(weights)):
        raise CheckpointError(
            f"checkpoint {weights} does not exist: set checkpoint= to a .safetensors file, or "
            "train one with jobs/train.py"
        )
    path = info_path(weights)
    try:
        with path.open("rb") as file:
            data = file.read(MOST_JSON)
            content = json.loads(data) if not file.read(1) else None
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {weights} has no {path.name} beside it") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no object of at most {MOST_JSON} bytes")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {version!r:.40}, this code reads {SCHEMA_VERSION}: "
            "train again or use the matching release"
        )
    model, training = content.get("model"), content.get("training", {})
    missing = [] if isinstance(content.get("class_names"), list) else ["a list class_names"]
    if isinstance(model, dict):
        missing += [f"model.{key}" for key in MODEL_KEYS if key not in model]
    else:
        missing.append("an object model")
    missing += [] if isinstance(training, dict) else ["an object training"]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    names = _class_names(content["class_names"], path)
    return CheckpointInfo(_checked_model(content["model"], path), names, training, version)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def _class_names(names: list[Any], path: Path) -> tuple[str, ...]:
    """The names, which must be distinct texts that Parquet takes."""
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name or name in seen:
            raise CheckpointError(
                f"{path} has class_names that are no distinct texts: {name!r:.80}"
            )
        if any("\ud800" <= sign <= "\udfff" for sign in name):
            raise CheckpointError(
                f"{path} has a class name that is not valid Unicode: {name!r:.80}"
            )
        seen.add(name)
    if not names:
        raise CheckpointError(f"{path} has no class_names: a detector finds one class at least")
    return tuple(names)


def _checked_model(model: dict[str, Any], path: Path) -> dict[str, Any]:
    """The json's model with what `ModelConfig` knows of it checked; the rest is left as it is."""
    known = {key: value for key, value in model.items() if key in ModelConfig.model_fields}
    try:
        checked = dump_config(config_from(ModelConfig, known, (), f"{path} has an unfit model"))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return model | {key: checked[key] for key in known}


def checkpoint_hash(weights: str | Path) -> str:
    """First 16 hex digits of the SHA-256 of the weights and their json."""
    digest = hashlib.sha256()
    for path in (Path(weights), info_path(weights)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
