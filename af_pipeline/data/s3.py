"""S3 by s3fs, a module of its own because loading s3fs takes long: imported where S3 is used."""

from __future__ import annotations

from typing import Any

from s3fs import S3FileSystem

from af_pipeline.data.bounded import Limits, check_size, read_body


class OneTryS3(S3FileSystem):
    """s3fs that leaves trying again to botocore, also after pickling, and can read in bounds.

    It tries again on top of botocore, twice nested: 5 attempts would become 125.
    """

    retries = 1

    @classmethod
    def of(cls, place: str, options: dict[str, Any]) -> tuple[OneTryS3, str]:
        """The instance for ``bucket/key``, one per process and options, and the path in it."""
        more = cls._get_kwargs_from_urls(f"s3://{place}")
        return cls(**options, **more), str(cls._strip_protocol(place))

    async def _cat_file(
        self,
        path: str,
        start: int | None = None,
        end: int | None = None,
        limits: Limits | None = None,
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
