"""HTTP: servers that never end, never hurry, inflate or lead elsewhere."""

import gzip
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress

import pytest

from af_pipeline.data.access import MissingSourceError, SourceError, Storage
from af_pipeline.data.sources.open import list_images
from af_pipeline.data.storage import exists, is_folder, open_file, range_uri, read_bytes
from tests.helpers.s3_server import Quiet, serve

LIMITS = Storage(attempts=1, timeout_s=0.5, max_bytes=100_000)
BOMB = gzip.compress(bytes(50_000_000))


class Hostile(Quiet):
    """One path, one trick."""

    elsewhere = ""

    def do_GET(self) -> None:
        trick = self.path.split("?")[0].strip("/").replace(".", "_")
        getattr(self, trick, self.missing)()

    do_HEAD = do_GET

    def begin(self, **headers: str) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def missing(self) -> None:
        self.answer(404, {"Content-Length": "0"}, b"")

    def fine_jpg(self) -> None:
        self.answer(200, {"Content-Length": "5"}, b"hello")

    def endless_jpg(self) -> None:
        self.begin(Connection="close")
        self.close_connection = True
        with suppress(OSError):
            while self.command == "GET":
                self.wfile.write(bytes(100_000))

    endless_tar = endless_csv = endless = endless_jpg

    def large_jpg(self) -> None:
        self.begin(Content_Length="100001")
        self.close_connection = True

    def dripping_jpg(self) -> None:
        self.begin(Content_Length="1000")
        with suppress(OSError):
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.1)
        self.close_connection = True

    def no_body_jpg(self) -> None:
        self.begin(Transfer_Encoding="chunked")
        self.wfile.write(b"1;")
        with suppress(OSError):
            while True:  # a chunk's header that goes on
                self.wfile.write(b"x" * 1000)
                time.sleep(0.01)

    def slow_headers_jpg(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: ")
        with suppress(OSError):
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.1)
        self.close_connection = True

    def bomb_jpg(self) -> None:
        self.answer(200, {"Content-Encoding": "gzip", "Content-Length": str(len(BOMB))}, BOMB)

    def zipped_jpg(self) -> None:
        body = gzip.compress(b"hello")
        self.answer(200, {"Content-Encoding": "gzip", "Content-Length": str(len(body))}, body)

    def here_jpg(self) -> None:
        self.answer(302, {"Location": "/fine.jpg", "Content-Length": "0"}, b"")

    def there_jpg(self) -> None:
        self.answer(302, {"Location": f"{self.elsewhere}/fine.jpg", "Content-Length": "0"}, b"")

    def there_csv(self) -> None:
        self.answer(302, {"Location": f"{self.elsewhere}/list.csv", "Content-Length": "0"}, b"")

    def nowhere_jpg(self) -> None:
        self.answer(302, {"Location": "http://[", "Content-Length": "0"}, b"")

    def unsaid_jpg(self) -> None:
        self.answer(302, {"Content-Length": "0"}, b"")

    def file_jpg(self) -> None:
        self.answer(302, {"Location": "file:///etc/passwd", "Content-Length": "0"}, b"")

    def other_jpg(self) -> None:
        """No HTTP: what an inner service sends is not told."""
        self.wfile.write(b"geheim of redis\r\n\r\n")
        self.close_connection = True

    def circle_jpg(self) -> None:
        self.answer(302, {"Location": "/circle.jpg", "Content-Length": "0"}, b"")

    def folder(self) -> None:
        page = b"<a href='fine.jpg'>" + b"<a " + b" " * 200_000
        self.answer(200, {"Content-Type": "text/html", "Content-Length": str(len(page))}, page)

    def list_csv(self) -> None:
        self.answer(200, {"Content-Length": "11"}, b"uri\na.jpg\n\n")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(Hostile) as other, serve(Hostile) as url:
        Hostile.elsewhere = other
        yield url


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("endless.jpg", r"has more than storage\.max_bytes=100000 bytes"),
        ("large.jpg", r"has 100001 bytes, more than storage\.max_bytes=100000"),
        ("dripping.jpg", r"less than storage\.min_rate=10000 bytes/s came"),
        ("no_body.jpg", r"less than storage\.min_rate|400|no answer within"),
        ("slow_headers.jpg", r"no answer within storage\.timeout_s"),
        ("bomb.jpg", r"has more than storage\.max_bytes=100000 bytes"),
        (
            "there.jpg",
            r"is redirected to another host, 127\.0\.0\.1:\d+.*source\.storage\.reach=any",
        ),
        ("nowhere.jpg", "is redirected to an address that is none"),
        ("circle.jpg", "TooManyRedirects"),
        ("unsaid.jpg", "is answered with status 302"),
        ("file.jpg", "is redirected to an address that is none"),
        ("other.jpg", "ClientResponseError, status 400$"),
        ("gone.jpg", "nothing at"),
    ],
)
def test_hostile_answers_are_one_line(url: str, name: str, message: str) -> None:
    tracemalloc.start()
    with pytest.raises(SourceError, match=message) as caught:
        read_bytes(f"{url}/{name}?sig=geheim", LIMITS)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20e6
    assert "geheim" not in str(caught.value)


def test_good_answers(url: str) -> None:
    for name in ("fine", "here", "zipped"):
        assert read_bytes(f"{url}/{name}.jpg", LIMITS) == b"hello"
    signed = f"{url}/fine.jpg?sig=geheim"
    (image,) = list_images(signed, storage=LIMITS)  # a single image
    assert (image.image_id, image.uri) == ("fine.jpg", signed)
    with pytest.raises(MissingSourceError, match="nothing at"):
        list_images(f"{url}/gone.jpg", storage=LIMITS)
    assert exists(f"{url}/here.jpg", LIMITS)
    assert not exists(f"{url}/gone.jpg", LIMITS)
    assert read_bytes(f"{url}/there.jpg", Storage(reach="any")) == b"hello"


@pytest.mark.timeout(60)
def test_lists_and_parts_of_what_never_ends(url: str) -> None:
    with pytest.raises(SourceError, match="cannot send a part"):
        read_bytes(range_uri(f"{url}/endless.jpg", 5, 50), LIMITS)
    for name in ("endless.tar", "endless.csv"):
        with pytest.raises(SourceError, match="does not tell the size"):
            list(list_images(f"{url}/{name}", storage=LIMITS))
    with pytest.raises(SourceError, match="is redirected to another host"):
        list(list_images(f"{url}/there.csv", storage=LIMITS))
    with pytest.raises(MissingSourceError):
        open_file(f"{url}/gone.csv", LIMITS)


@pytest.mark.timeout(60)
def test_pages_of_web_servers_are_no_folders(url: str) -> None:
    """fsspec would read any page whole, and look for links by a pattern that takes hours."""
    for name in ("folder", "endless"):
        assert not is_folder(f"{url}/{name}", LIMITS)
        with pytest.raises(SourceError, match="is nothing that lists images"):
            list_images(f"{url}/{name}", storage=LIMITS)
