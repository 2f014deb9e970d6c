"""JSON files that hold an object, and what is said of entries that may not be read."""

from __future__ import annotations

import json
from typing import Any

from af_pipeline.data.access import LOCAL, SourceError, Storage
from af_pipeline.data.secrets import redact
from af_pipeline.data.storage import listing, read_bytes


def read_json(path: str, storage: Storage = LOCAL) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        SourceError: it cannot be read, is not JSON, or holds something else.
    """
    return json_object(read_bytes(path, listing(storage)), path)


def json_object(data: bytes, path: str) -> dict[str, Any]:
    """The object that the JSON ``data`` of the file at ``path`` holds; errors as `read_json`."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{redact(path)} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise SourceError(
            f"{redact(path)} holds a JSON {type(document).__name__}, expected an object"
        )
    return document


def refused_entry(entry: str, reason: str) -> SourceError:
    """What to say of an entry of a list that ``source.reach=own`` refuses."""
    return SourceError(f"{entry} {reason}: leave it out, or set source.reach=any")
