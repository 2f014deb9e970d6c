"""S3 by s3fs, a module of its own because loading s3fs takes long: imported where S3 is used."""

from __future__ import annotations

from typing import Any

from s3fs import S3FileSystem


class OneTryS3(S3FileSystem):
    """s3fs that leaves trying again to botocore, also after pickling.

    It tries again on top of botocore, twice nested: 5 attempts would become 125.
    """

    retries = 1

    @classmethod
    def of(cls, place: str, options: dict[str, Any]) -> tuple[OneTryS3, str]:
        """The instance for ``bucket/key``, one per process and options, and the path in it."""
        more = cls._get_kwargs_from_urls(f"s3://{place}")
        return cls(**options, **more), str(cls._strip_protocol(place))
