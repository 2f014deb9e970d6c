"""HTTP by fsspec, a module of its own because loading aiohttp takes long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from af_pipeline.data.access import Refused, Storage, check_size, read_body


class BoundedHTTP(HTTPFileSystem):
    """fsspec's HTTP with bounds on what a server may do to its reader.

    What is read has a size, a least rate and a limit on the wait for its headers; redirects lead
    to the same host unless ``storage.reach`` is any.
    """

    def __init__(self, storage: Storage, **options: Any) -> None:
        wait = storage.timeout_s
        trace = aiohttp.TraceConfig()
        if storage.reach == "own":
            trace.on_request_redirect.append(_stay)
        client = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=wait, sock_read=wait),
            # Sizes are those of the files then. Who compresses all the same is read, in bounds.
            "headers": {"Accept-Encoding": "identity"},
            "trace_configs": [trace],
        }
        super().__init__(client_kwargs=client, **options)
        self.storage = storage

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, **headers: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        session = await self.set_session()
        async with asyncio.timeout(2 * self.storage.timeout_s):  # to connect, and for the headers
            response = await session.request(method, self.encode_url(url), headers=headers)
        async with response:
            yield response

    def _check(self, response: aiohttp.ClientResponse, url: str) -> None:
        self._raise_not_found_for_status(response, url)
        if response.status >= 300:  # a redirect that names no address
            raise Refused(f"is answered with status {response.status}")

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        part = start is not None and end is not None
        headers = {"Range": f"bytes={start}-{end - 1}"} if part else {}  # type: ignore[operator]
        async with self._answer("GET", url, **headers) as response:
            self._check(response, url)
            if part:
                return await read_body(response.content.read, self.storage, end - start)  # type: ignore[operator]
            check_size(response.content_length, self.storage.max_bytes)
            return await read_body(response.content.read, self.storage)

    async def _info(self, url: str, **_: Any) -> dict[str, Any]:
        size = None
        for method in ("HEAD", "GET"):  # some servers refuse HEAD, or tell no size with it
            async with self._answer(method, url) as response:
                if method == "HEAD" and response.status >= 400:
                    continue
                self._check(response, url)
                encoded = response.headers.get("Content-Encoding", "identity") != "identity"
                size = None if encoded else response.content_length
            if size is not None:
                break
        return {"name": url, "size": size, "type": "file"}

    async def _exists(self, path: str, strict: bool = False, **_: Any) -> bool:
        async with self._answer("GET", path) as response:
            if strict:
                self._raise_not_found_for_status(response, path)
            return response.status < 400

    async def _isdir(self, path: str) -> bool:
        """There are no folders: fsspec would take any page with links for one."""
        return False


async def _stay(_: Any, __: Any, event: aiohttp.TraceRequestRedirectParams) -> None:
    """Refuse a redirect to another host or port; http may become https."""
    answer, before = event.response, event.url
    try:
        after = before.join(URL(answer.headers.get("Location") or answer.headers.get("URI") or ""))
    except ValueError:
        after = URL()
    usual_ports = before.is_default_port() and after.is_default_port()
    upgraded = (before.scheme, after.scheme) == ("http", "https") and usual_ports
    moved = (before.scheme, before.port) != (after.scheme, after.port) and not upgraded
    if after.host is None:
        answer.close()
        raise Refused("is redirected to an address that is none")
    if before.host != after.host or moved:
        answer.close()
        raise Refused(
            f"is redirected to another host, {after.host}:{after.port}: give its address there, "
            "or set source.storage.reach=any"
        )
