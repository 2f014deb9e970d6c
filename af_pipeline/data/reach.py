"""What the entries of a list may reach: the rule of ``storage.reach=own``.

Whoever writes a list on this machine may read its files anyway, so a local list may name any file
and any remote place. A list from elsewhere may name remote places only. No list may name a chain
of file systems (``simplecache::...``, which writes to disk too), one that is neither a file nor
known storage, or climb out of its folder by ``..``.
"""

from __future__ import annotations

from urllib.parse import unquote

from af_pipeline.data.access import SourceError
from af_pipeline.data.secrets import HTTP, S3

_LOCAL = ("file", "local")
# Where images are kept and read by bytes; others of fsspec run code, unpack or write caches.
_STORES = {*S3, *HTTP, "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "hf"}
_STORES |= {"hdfs", "webhdfs", "webdav", "ftp", "sftp", "ssh", "smb"}


def is_remote(place: str) -> bool:
    """Whether a place is none on this machine."""
    return "://" in place and _protocol(place) not in _LOCAL


def refusal(entry: str, file: str, folder: str) -> str | None:
    """Why an entry of the list ``file`` may not be read; None if it may.

    Relative entries are below ``folder``.
    """
    if "://" in entry:
        protocol = _protocol(entry)
        if "::" in protocol or ("::" in entry and protocol not in (*S3, *HTTP)):
            return "is a chain of file systems"
        if protocol in _LOCAL:
            return "is a local file, and the list is remote" if is_remote(file) else None
        known = protocol in _STORES or protocol in (_protocol(file), _protocol(folder))
        return None if known else f"has the protocol {protocol[:20]}"
    if entry.startswith("/"):
        return "is a local file, and the list is remote" if is_remote(file) else None
    return "climbs out of its folder" if _climbs(entry, folder) else None


def refused_entry(entry: str, reason: str) -> SourceError:
    """What to say of an entry that may not be read."""
    return SourceError(f"{entry} {reason}: leave it out, or set source.storage.reach=any")


def _climbs(name: str, folder: str) -> bool:
    if ".." not in name and "%" not in name:
        return False
    depth = 0
    for part in (unquote(name) if _protocol(folder) in HTTP else name).split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            return True
    return False


def _protocol(place: str) -> str:
    return place.partition("://")[0].lower() if "://" in place else ""
