"""S3, a module of its own because loading s3fs takes long: reading by s3fs, listing by botocore."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from botocore import UNSIGNED
from botocore.config import Config
from botocore.session import Session
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from af_pipeline.data.access import (
    MissingSourceError,
    SourceError,
    Storage,
    check_size,
    read_body,
    reading_error,
)
from af_pipeline.data.secrets import redact

_CONNECTIONS = 64  # of one client: more than threads read at once
_PAGE = 1000  # S3's own limit


class OneTryS3(S3FileSystem):
    """s3fs that leaves trying again to botocore, also after pickling, and can read in bounds.

    It tries again on top of botocore, twice nested: 5 attempts would become 125.
    """

    retries = 1

    @classmethod
    def of(cls, uri: str, storage: Storage) -> tuple[OneTryS3, str]:
        """The instance for a URI, one per process and settings, and the path in it."""
        place = f"s3://{uri.partition('://')[2]}"
        system = cls(
            use_listings_cache=False,
            anon=storage.anonymous,
            endpoint_url=storage.endpoint,
            config_kwargs=_config(storage),
            **cls._get_kwargs_from_urls(place),
        )
        return system, str(cls._strip_protocol(place))

    async def _cat_file(
        self,
        path: str,
        start: int | None = None,
        end: int | None = None,
        limits: Storage | None = None,
        **options: Any,
    ) -> bytes:
        """With ``limits`` one request, where s3fs asks for the size first, and `read_body`."""
        if limits is None:
            return bytes(await super()._cat_file(path, start=start, end=end, **options))
        bucket, key, version = self.split_path(path)
        wanted = None if start is None or end is None else end - start
        part = {} if wanted is None else {"Range": f"bytes={start}-{end - 1}"}  # type: ignore[operator]
        which = {"VersionId": version} if version else {}
        answer = await self._call_s3("get_object", Bucket=bucket, Key=key, **which, **part)
        body = answer["Body"]
        try:
            if wanted is None:
                check_size(answer.get("ContentLength"), limits.max_bytes)
            return await read_body(body.read, limits, wanted)
        finally:
            body.close()


def _config(storage: Storage) -> dict[str, Any]:
    """Options of botocore's ``Config``."""
    return {
        # Not "standard": its quota, shared by all requests of a client, is used up by the first
        # images of an outage, and then all others fail without a second try. It also leaves out
        # the status 429 of other servers than AWS.
        "retries": {"mode": "legacy", "total_max_attempts": storage.attempts},
        "connect_timeout": storage.timeout_s,
        "read_timeout": storage.timeout_s,
        "max_pool_connections": _CONNECTIONS,
    }


def list_keys(base: str, stem: str, root: str, storage: Storage) -> Iterator[tuple[str, str]]:
    """Names and versions (size and ETag) below ``BUCKET/FOLDER``; the first page comes at once.

    In the order of the keys, a page in memory. A client of its own, because s3fs lists folder by
    folder, or everything into memory. ``stem``: what the names begin with; ``root``: the place as
    it was written, for messages.
    """
    bucket, _, folder = base.partition("/")
    above = f"{folder}/" if folder else ""
    client = s3_client(storage, root)
    pages = _pages(client, bucket, above + stem, root)
    first = next(pages)
    if not first and above and not stem:
        raise _nothing_below(client, bucket, folder, root)
    found = ((k[len(above) :], version) for page in chain([first], pages) for k, version in page)
    return ((name, version) for name, version in found if _is_visible(name))


def s3_client(storage: Storage, root: str) -> Any:
    """A client of botocore's."""
    unsigned = {"signature_version": UNSIGNED} if storage.anonymous else {}
    config = Config(**_config(storage), **unsigned)
    try:
        return Session().create_client("s3", endpoint_url=storage.endpoint, config=config)
    except Exception as error:
        raise reading_error(root, error) from None


def _is_visible(name: str) -> bool:
    # A key that ends in "/" is a folder's placeholder.
    return not name.endswith("/") and not name.startswith(".") and "/." not in name and bool(name)


def _pages(client: Any, bucket: str, prefix: str, root: str) -> Iterator[list[tuple[str, str]]]:
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": _PAGE}
    )
    try:
        for page in pages:
            yield [(item["Key"], _version(item)) for item in page.get("Contents", ())]
    except Exception as error:
        raise reading_error(root, translate_boto_error(error)) from None


def _version(item: dict[str, Any]) -> str:
    tag = item.get("ETag", "").strip('"')
    return f"{item.get('Size')}-{tag}" if tag else ""


def _nothing_below(client: Any, bucket: str, key: str, root: str) -> SourceError:
    try:
        client.head_object(Bucket=bucket, Key=key)
    except Exception:
        return MissingSourceError(f"there is nothing at {redact(root)}: check the path")
    return SourceError(f"{redact(root)} is a file, expected a folder")
