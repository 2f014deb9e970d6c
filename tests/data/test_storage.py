"""storage: the right bytes from servers that fail now and then, and errors that tell no secret."""

import io
import pickle
import random
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import md5
from pathlib import Path

import fsspec
import pytest

from af_pipeline.config import ConfigError, config_from
from af_pipeline.data.access import MissingSourceError, SourceError, Storage
from af_pipeline.data.listing import list_files
from af_pipeline.data.storage import (
    exists,
    filesystem,
    full_uri,
    is_folder,
    join,
    open_file,
    parent,
    range_uri,
    read_bytes,
)
from af_pipeline.output.place import Place
from af_pipeline.settings.index import SourceConfig
from tests.helpers.s3_server import Fault, Quiet, Server, faulty_s3, serve

DATA = bytes(range(256)) * 400
SLOW = Fault(503, "SlowDown")
SECRET = "wJalrXUtnFEMI"


@pytest.fixture(scope="module")
def started() -> Iterator[Server]:
    with faulty_s3() as server:
        yield server


@pytest.fixture
def server(started: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server without faults so far, credentials, and pauses of nearly nothing."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(random, "random", lambda: 0.001)
    started.script.faults.clear()
    started.script.always.clear()
    return started


@pytest.fixture
def storage(server: Server) -> Storage:
    return Storage(server.url, attempts=3, timeout_s=1.5)


@pytest.fixture
def key(server: Server, storage: Storage, request: pytest.FixtureRequest) -> str:
    """An object of its own, as ``bucket/key``."""
    name = f"bucket/{abs(hash(request.node.name))}/a b#%ä.jpg"
    system, _ = filesystem("s3://bucket", storage)
    system.makedirs("bucket", exist_ok=True)
    system.pipe_file(name, DATA)
    server.script.requests.clear()
    return name


# What passes


@pytest.mark.parametrize(
    "fault",
    [
        SLOW,
        Fault(500),
        Fault(502, "BadGateway"),
        Fault(503, "ServiceUnavailable"),
        Fault(504, "GatewayTimeout"),
        Fault(429, "TooManyRequests"),
        Fault(drop=True),
        Fault(wait_s=2),
        Fault(body_bytes=5000),
        Fault(body_bytes=0),
        Fault(body_bytes=5000, stall_s=2),
    ],
    ids=str,
)
def test_faults_that_pass_cost_no_image(
    server: Server, storage: Storage, key: str, fault: Fault
) -> None:
    server.script.fail(key, fault, fault)
    assert read_bytes(f"s3://{key}", storage) == DATA
    # aiohttp itself repeats a GET on a connection that it finds closed.
    assert 3 <= server.script.requests[key] <= (6 if fault.drop else 3)


@pytest.mark.parametrize(
    "fault", [SLOW, Fault(429), Fault(drop=True), Fault(body_bytes=9)], ids=str
)
def test_a_server_that_stays_broken_is_an_error(
    server: Server, storage: Storage, key: str, fault: Fault
) -> None:
    server.script.fail(key, fault, always=True)
    with pytest.raises(SourceError, match=r"cannot read s3://bucket/.*") as caught:
        read_bytes(f"s3://{key}", storage)
    assert not isinstance(caught.value, MissingSourceError)
    most = 2 * storage.attempts if fault.drop else storage.attempts
    assert storage.attempts <= server.script.requests[key] <= most


def test_one_attempt_is_one_request(server: Server, key: str) -> None:
    for fault in (SLOW, Fault(body_bytes=1)):
        server.script.requests.clear()
        server.script.fail(key, fault)
        with pytest.raises(SourceError):
            read_bytes(f"s3://{key}", Storage(server.url, attempts=1))
        assert server.script.requests[key] == 1


def test_an_outage_uses_up_no_budget(server: Server, storage: Storage, key: str) -> None:
    """botocore's mode "standard" would give up trying again after a hundred times in all."""
    server.script.fail(key, SLOW, always=True)
    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(lambda _: _error(f"s3://{key}", storage), range(80)))
    assert all(errors)
    # "standard" makes 180 of these 240. A client may lose a connection before it asks.
    assert server.script.requests[key] > 0.9 * 80 * storage.attempts


def _error(uri: str, storage: Storage) -> SourceError | None:
    try:
        read_bytes(uri, storage)
    except SourceError as error:
        return error
    return None


def test_threads_share_one_client(server: Server, storage: Storage, key: str) -> None:
    storage = replace(storage, attempts=6)  # one thread may meet every fault
    server.script.fail(key, *[SLOW] * 5)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read_bytes(f"s3://{key}", storage), range(32)))
    assert found == [DATA] * 32
    systems = {id(filesystem(f"s3://{key}", pickle.loads(pickle.dumps(storage)))[0]) for _ in "ab"}
    assert len(systems) == 1
    assert id(filesystem(f"s3://{key}", Storage(server.url, attempts=4))[0]) not in systems


def test_one_request_an_image_and_no_more_bytes_than_may_be(
    server: Server, storage: Storage, key: str
) -> None:
    assert len(read_bytes(f"s3://{key}", replace(storage, max_bytes=len(DATA)))) == len(DATA)
    assert server.script.requests == {key: 1}
    with pytest.raises(SourceError, match=r"has 102400 bytes, more than storage\.max_bytes=102399"):
        read_bytes(f"s3://{key}", replace(storage, max_bytes=len(DATA) - 1))
    assert server.script.requests == {key: 2}


# What does not


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (Fault(403, "AccessDenied"), SourceError, "no permission to read s3://"),
        (Fault(403, "SignatureDoesNotMatch"), SourceError, "no permission"),
        (Fault(404, "NoSuchKey"), MissingSourceError, "nothing at s3://"),
        (Fault(404, "NoSuchBucket"), MissingSourceError, "nothing at s3://"),
    ],
)
def test_what_cannot_pass_is_not_tried_again(
    server: Server,
    storage: Storage,
    key: str,
    fault: Fault,
    kind: type[SourceError],
    message: str,
) -> None:
    server.script.fail(key, fault, always=True)
    with pytest.raises(kind, match=message):
        read_bytes(f"s3://{key}", storage)
    assert server.script.requests[key] == 1


def test_missing_key_and_bucket(storage: Storage, key: str) -> None:
    for uri in ("s3://bucket/gone.jpg", "s3://no-such-bucket/x.jpg"):
        with pytest.raises(MissingSourceError, match=f"nothing at {uri}"):
            read_bytes(uri, storage)
        assert not exists(uri, storage)
    assert exists(f"s3://{key}", storage)
    assert is_folder("s3://bucket", storage)
    assert not is_folder(f"s3://{key}", storage)


def test_without_credentials(
    server: Server, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    # Settings of their own, so that the client is not one that has credentials.
    with pytest.raises(SourceError, match=r"no credentials.*AWS_ACCESS_KEY_ID"):
        read_bytes(f"s3://{key}", Storage(server.url, timeout_s=7))
    anonymous = Storage(server.url, anonymous=True, timeout_s=7)
    assert "anonymous" in str(_error("s3://x/y", Storage(server.url, timeout_s=7)))
    system, _ = filesystem(f"s3://{key}", anonymous)
    assert system.anon


# Parts


def test_parts(server: Server, storage: Storage, key: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    for uri in (str(tmp_path / "x"), f"s3://{key}"):
        for offset, size in ((0, 5), (7, 1000), (len(DATA) - 1, 1), (3, 0), (0, len(DATA))):
            part = range_uri(uri, offset, size)
            assert read_bytes(part, storage) == DATA[offset : offset + size]
        with pytest.raises(SourceError, match="ends at byte 102400, expected 102405"):
            read_bytes(range_uri(uri, len(DATA) - 5, 10), storage)
        with pytest.raises(SourceError):
            read_bytes(range_uri(uri, len(DATA) + 5, 10), storage)
    server.script.fail(key, SLOW, Fault(body_bytes=2))
    assert read_bytes(range_uri(f"s3://{key}", 9, 10), storage) == DATA[9:19]


def test_open_file_is_a_file(server: Server, storage: Storage, key: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    for uri in (str(tmp_path / "x"), f"s3://{key}"):
        with open_file(uri, storage, 1000) as file:
            assert file.read(10) == DATA[:10]
            server.script.fail(key, SLOW, Fault(body_bytes=2))
            assert file.seek(-20, io.SEEK_END) == len(DATA) - 20
            assert file.read() == DATA[-20:]
            assert file.read(1) == b""
            file.seek(100)
            assert file.read(5000) == DATA[100:5100]
    with pytest.raises(MissingSourceError):
        open_file("s3://bucket/gone", storage)
    with pytest.raises(SourceError, match="is a folder"):
        open_file("s3://bucket", storage)


# Listing


def test_listing_tries_again(server: Server, storage: Storage, key: str) -> None:
    server.script.fail("bucket", SLOW, Fault(body_bytes=20))
    folder = f"s3://{key}".rpartition("/")[0]
    ((name, version),) = list_files(folder, storage).files
    assert (name, version) == ("a b#%ä.jpg", f"{len(DATA)}-{md5(DATA).hexdigest()}")
    assert server.script.requests["bucket"] == 3
    server.script.fail("bucket", SLOW, always=True)
    with pytest.raises(SourceError, match="cannot read s3://bucket"):
        list_files(folder, storage)
    server.script.fail("bucket", Fault(403, "AccessDenied"), always=True)
    with pytest.raises(SourceError, match="no permission"):
        list_files(folder, storage)


# https


def test_https_sources(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses: list[int] = []

    class Web(Quiet):
        def do_GET(self) -> None:
            status = statuses.pop(0) if statuses else 200
            self.answer(status, {"Content-Length": "5"}, b"hello", 3 if status == 299 else -1)

    with serve(Web) as url:
        signed = f"{url}/x.jpg?X-Amz-Signature={SECRET}"
        statuses[:] = [503, 299]
        assert read_bytes(signed, storage) == b"hello"
        for status, message in ((403, "no permission"), (404, "nothing at"), (400, "cannot read")):
            statuses[:] = [status]
            with pytest.raises(SourceError, match=message) as caught:
                read_bytes(signed, storage)
            assert SECRET not in "".join(traceback.format_exception(caught.value))
        with pytest.raises(SourceError, match="cannot send a part"):
            read_bytes(range_uri(f"{url}/y", 1, 2), storage)


# Secrets and places


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIA:{SECRET}@bucket/a.jpg",
        f"s3://AKIA:{SECRET}/more@bucket/a.jpg",
        f"https://user:{SECRET}@host/a.jpg",
        f"https://{SECRET}@host/a.jpg",
        f"simplecache::s3://AKIA:{SECRET}@bucket/a.jpg",
    ],
)
def test_credentials_in_a_uri_are_refused(uri: str) -> None:
    for function in (read_bytes, filesystem, list_files, lambda u: Storage(endpoint=u)):
        with pytest.raises(ValueError, match="holds a user name or a secret") as caught:
            function(uri)
        assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"endpoint": "minio:9000"}, "https://host:port"),
        ({"endpoint": "https://h/path?x=1"}, "https://host:port"),
        ({"attempts": 0}, "attempts"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"min_rate": 0.0}, "min_rate"),
        ({"max_bytes": 0}, "max_bytes"),
    ],
)
def test_storage_that_cannot_work(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Storage(**fields)


def test_storage_is_a_section_of_the_config() -> None:
    found = config_from(SourceConfig, {"storage": {"attempts": 3}}, ["storage.max_bytes=9"], "f")
    assert found.storage == Storage(attempts=3, max_bytes=9)
    with pytest.raises(ConfigError, match=r"'storage\.endpont'; did you mean 'endpoint'"):
        config_from(SourceConfig, {"storage": {"endpont": "x"}}, (), "f")
    for secret in (f"https://k:{SECRET}@h", f"https://h?sig={SECRET}"):
        with pytest.raises(ConfigError, match="endpoint") as caught:
            config_from(SourceConfig, {"storage": {"endpoint": secret}}, (), "f")
        assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert full_uri(*filesystem("a/../b.jpg")) == f"{tmp_path}/b.jpg"
    assert full_uri(*filesystem("s3://bucket/a//b.jpg")) == "s3://bucket/a//b.jpg"
    assert parent("x/y.json") == f"{tmp_path}/x"
    assert parent("s3://b/x/y.json") == "s3://b/x"
    assert join("s3://b/x/", "y.jpg") == "s3://b/x/y.jpg"
    assert join("/", "y.jpg") == "/y.jpg"
    assert join("s3://b", "/y.jpg") == "/y.jpg"
    assert join("/a", "s3://b/y.jpg") == "s3://b/y.jpg"


def test_what_is_written_is_seen_whole_or_not_at_all(tmp_path: Path, storage: Storage) -> None:
    (tmp_path / "new").mkdir()
    for uri in (f"{tmp_path}/new", "memory://put"):
        for data in (b"{}", b'{"a": 1}'):
            Place(uri, *filesystem(uri)).write_bytes("a.json", data)
            assert read_bytes(f"{uri}/a.json") == data
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
    with pytest.raises(OSError, match="director"):
        Place(str(tmp_path), *filesystem(str(tmp_path))).write_bytes("new", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


# s3fs


def test_pickled_file_systems_try_once_too(server: Server, storage: Storage, key: str) -> None:
    """As Ray Data sends them: rebuilt elsewhere, where s3fs would try 5 times."""
    system, path = filesystem(f"s3://{key}", storage)
    type(system).clear_instance_cache()
    copy = pickle.loads(pickle.dumps(system))
    assert copy is not system
    assert copy.retries == system.retries == 1
    assert copy.storage_options == system.storage_options
    assert copy.storage_options["endpoint_url"] == server.url
    server.script.fail(key, SLOW, always=True)
    server.script.requests.clear()
    with pytest.raises(OSError, match="Service Unavailable"):
        copy.cat_file(path)
    assert server.script.requests[key] == storage.attempts


def test_s3fs_of_others_is_left_alone() -> None:
    system, path = filesystem("S3://bucket/a::b.jpg?versionId=x", Storage(anonymous=True))
    assert path == "bucket/a::b.jpg?versionId=x"
    assert system.version_aware
    assert type(fsspec.filesystem("s3", anon=True)).retries == 5
