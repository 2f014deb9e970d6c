"""How storage is reached: endpoint, keys, time limits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from af_pipeline.config import Section
from af_pipeline.data.bounded import (
    Limits,
)
from af_pipeline.data.secrets import holds_secret, redact


class StorageConfig(Section):
    """How a remote place is reached; credentials come from the usual places only."""

    endpoint: str | None = Field(None, description="URL of an S3-compatible server; None: AWS")
    anonymous: bool = Field(False, description="send no credentials (public buckets)")
    attempts: int = Field(5, ge=1, le=100, description="tries of one request, with growing pauses")
    timeout_s: float = Field(60, gt=0, le=3600, description="limit of one try to connect or read")
    min_rate: float = Field(
        10_000, gt=0, description="bytes/s that a file must come with on average, after timeout_s"
    )


class SourceError(ValueError):
    """A source cannot be listed or read; the message says what to do."""


class MissingSourceError(SourceError, FileNotFoundError):
    """There is nothing at the given place."""


@dataclass(frozen=True)
class Storage:
    """How a remote place is reached; travels to the actors.

    Attributes:
        endpoint: URL of an S3-compatible server; None: what AWS's settings say.
        anonymous: no credentials, for public buckets.
        attempts: tries of one request before it counts as failed.
        timeout_s: longest wait of one try for a connection, and for the next bytes, seconds.
        min_rate: bytes/s that a body must come with on average, after timeout_s.
        max_bytes: larger files are not read.
        reach: what lists and redirects may lead to, see `af_pipeline.data.reach`.

    Raises:
        ValueError: a value that cannot work.
    """

    endpoint: str | None = None
    anonymous: bool = False
    attempts: int = 5
    timeout_s: float = 60.0
    min_rate: float = 10_000.0
    max_bytes: int = 2 << 30
    reach: Literal["own", "any"] = "own"

    def __post_init__(self) -> None:
        if self.endpoint is not None:
            refuse_secrets(self.endpoint)
            if not re.fullmatch(r"https?://[^/?#]+/?", self.endpoint):
                raise ValueError(
                    f"endpoint must look like https://host:port, not {redact(self.endpoint)}"
                )
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, not {self.timeout_s:g}")
        if not (self.min_rate > 0 and self.max_bytes > 0):
            raise ValueError("min_rate and max_bytes must be above 0")

    @property
    def limits(self) -> Limits:
        """Of one read."""
        return Limits(self.max_bytes, self.timeout_s, self.min_rate)


LOCAL = Storage()


def storage_of(config: StorageConfig) -> Storage:
    """The `Storage` that a config asks for."""
    return Storage(**config.model_dump())


# Errors


def refuse_secrets(uri: str) -> None:
    """Raises SourceError where `holds_secret`; the message does not tell it."""
    if holds_secret(uri):
        raise SourceError(
            "a URI holds a user name or a secret: leave it out and give credentials by the "
            "environment, ~/.aws or an instance role"
        )
