"""tar: members are found where tarfile finds them, and broken tars are named."""

import gzip
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from af_pipeline.data.access import MissingSourceError, SourceError
from af_pipeline.data.sources.open import list_images
from af_pipeline.data.sources.tar import list_tar
from af_pipeline.data.storage import read_bytes
from tests.helpers.odd_files import pack


def contents(uri: str) -> dict[str, bytes]:
    return {image.image_id: read_bytes(image.uri) for image in list_images(uri)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    members=st.dictionaries(
        st.text("aä/b. ", min_size=1, max_size=150)
        .filter(lambda n: n.strip("./ "))
        .map("x{}.jpg".format),
        st.binary(max_size=2000),
        min_size=1,
        max_size=6,
    ),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_ranges_are_the_members(tmp_path: Path, members: dict[str, bytes], form: int) -> None:
    uri = pack(tmp_path / "a.tar", members, form)
    visible = {n: d for n, d in members.items() if "/." not in n}
    found = list_tar("a.tar", uri)
    assert {i.image_id: read_bytes(i.uri) for i in found} == {
        f"a.tar/{name}": data for name, data in visible.items()
    }


def test_what_is_an_image(tmp_path: Path) -> None:
    names = ["b.jpg", "./a.PNG", "sub/c.jpeg", "x.json", "x.cls", "._b.jpg", ".h/d.jpg", "jpg"]
    uri = pack(tmp_path / "a.tar", {name: name.encode() for name in names})
    found = list(list_images(uri))
    assert [i.image_id for i in found] == ["a.tar/b.jpg", "a.tar/a.PNG", "a.tar/sub/c.jpeg"]
    assert found[0].uri == f"{uri}#offset=512&size=5"
    assert [read_bytes(i.uri) for i in found] == [b"b.jpg", b"./a.PNG", b"sub/c.jpeg"]


def test_several_tars(tmp_path: Path) -> None:
    for number in range(12):
        pack(tmp_path / f"in/{number // 6}/s-{number:03d}.tar", {f"{number}.jpg": b"%d" % number})
    everything = {f"{n // 6}/s-{n:03d}.tar/{n}.jpg": b"%d" % n for n in range(12)}
    for uri in ("in", "in/**/*.tar", "in/*/s-*.tar"):
        assert contents(f"{tmp_path}/{uri}") == everything
    some = contents(f"{tmp_path}/in/0/s-{{001..003}}.tar")
    assert list(some) == ["s-001.tar/1.jpg", "s-002.tar/2.jpg", "s-003.tar/3.jpg"]
    assert list(contents(f"{tmp_path}/in/0/s-000.tar")) == ["s-000.tar/0.jpg"]
    with pytest.raises(MissingSourceError, match=r"nothing at .*s-006\.tar"):
        contents(f"{tmp_path}/in/0/s-{{004..006}}.tar")
    with pytest.raises(SourceError, match="twice"):
        contents(f"{tmp_path}/in/0/s-{{001,001}}.tar")


def test_a_folder_with_tars_and_images_lists_images(tmp_path: Path) -> None:
    pack(tmp_path / "in/a.tar", {"a.jpg": b""})
    (tmp_path / "in/b.jpg").touch()
    assert [i.image_id for i in list_images(f"{tmp_path}/in")] == ["b.jpg"]
    (tmp_path / "in/b.jpg").rename(tmp_path / "in/b.csv")
    with pytest.raises(SourceError, match=r"holds \.csv and \.tar: say which by a pattern"):
        list_images(f"{tmp_path}/in")


@pytest.mark.parametrize("images", [1, 3])
def test_cut_short_anywhere(tmp_path: Path, images: int) -> None:
    uri = pack(tmp_path / "a.tar", {f"{i}.jpg": b"x" * 700 for i in range(images)})
    whole = Path(uri).read_bytes()
    end = images * 1536
    for size in range(0, end + 512, 128):
        Path(uri).write_bytes(whole[:size])
        with pytest.raises(SourceError, match=r"a\.tar") as caught:
            list(list_images(uri))
        assert "no image" not in str(caught.value)
    Path(uri).write_bytes(whole[: end + 512])
    assert len(list(list_images(uri))) == images


@pytest.mark.parametrize("at", [0, 100, 1536, 1536 + 130])
def test_broken_headers(tmp_path: Path, at: int) -> None:
    uri = pack(tmp_path / "a.tar", {f"{i}.jpg": b"x" * 700 for i in range(3)})
    data = bytearray(Path(uri).read_bytes())
    data[at : at + 8] = b"\x01\xffgarbag"
    Path(uri).write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.tar is .*(broken|cut short)"):
        list(list_images(uri))


def test_compressed_tars_are_refused(tmp_path: Path) -> None:
    data = Path(pack(tmp_path / "a.tar", {"a.jpg": b"x"})).read_bytes()
    for name in ("a.tar.gz", "b.TGZ", "c.tar", "d/x.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(data))
    for uri in ("a.tar.gz", "b.TGZ", "c.tar", "?.tar.gz", "d"):
        with pytest.raises(SourceError, match=r"compressed.*unpack it once"):
            list(list_images(f"{tmp_path}/{uri}"))


def test_links_and_twins_are_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.tar")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(uri, "w") as tar:
            link = tarfile.TarInfo("b.jpg")
            link.type, link.linkname = kind, "a.jpg"
            tar.addfile(link)
        with pytest.raises(SourceError, match=r"b\.jpg is a link"):
            list(list_images(uri))
    with tarfile.open(uri, "w") as tar:
        for name in ("a.jpg", "./a.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(SourceError, match=r"holds a\.jpg twice"):
        list(list_images(uri))


def block(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, max(0, size)
    made = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        made[124:136] = b"\xff" + size.to_bytes(11, "big", signed=True)
        made[148:156] = b"%06o\0 " % (sum(made[:148]) + 8 * 32 + sum(made[156:]))
    return bytes(made)


def extended(kind: bytes, data: bytes) -> bytes:
    return block(kind, len(data)) + data + bytes(-len(data) % 512)


def keyword(text: str) -> bytes:
    """One line of a pax header."""
    size = len(text) + 3
    size += len(str(size)) - 1
    return f"{size} {text}\n".encode()


IMAGE = block(b"0", 5, "a.jpg") + b"hello".ljust(512, b"\0")
END = bytes(1024)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "before",
    [
        extended(b"x", keyword("comment=x")) * 5000,
        extended(b"g", keyword("comment=x")) * 5000,
        extended(b"L", b"b.jpg") * 5000 + extended(b"L", b"a.jpg\0"),
        extended(b"K", bytes(2 << 20)) * 2,
        extended(b"x", keyword("path=a.jpg") + keyword("size=5")),
        extended(b"x", keyword("SCHILY.xattr.user.x=" + "1" * 900_000)),
        extended(b"Y", b"unknown kind"),
    ],
    ids=["pax", "global pax", "long names", "long link", "keywords", "attributes", "unknown"],
)
def test_many_and_large_headers_are_read(tmp_path: Path, before: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(before + IMAGE + END)
    (found,) = list_images(f"{tmp_path}/a.tar")
    assert (found.image_id, read_bytes(found.uri)) == ("a.tar/a.jpg", b"hello")


@pytest.mark.timeout(60)  # negative sizes led round for ever, digits through a quadratic pattern
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (block(b"L", 8 << 30), "8589934592 bytes of member 0 do not fit, at byte 0 of"),
        (extended(b"L", b"x" * (2 << 20)), "extended header has 2097152 bytes, more than 1048576"),
        (extended(b"x", bytes(2 << 20)), "extended header has 2097152 bytes"),
        (IMAGE + block(b"0", -1024, "b.txt"), "-1024 bytes of member 1 do not fit, at byte 1024"),
        (IMAGE + block(b"0", -512, "b.txt"), "-512 bytes of member 1 do not fit, at byte 1024"),
        (block(b"x", -512) + IMAGE, "-512 bytes of member 0 do not fit"),
        (extended(b"x", b"1" * 1_000_000) + IMAGE, "a pax header is broken, at byte 512"),
        (extended(b"x", b"99 path=a.jpg\n") + IMAGE, "a pax header is broken"),
        (extended(b"x", b"0 path=a.jpg\n") + IMAGE, "a pax header is broken"),
        (extended(b"x", keyword("size=-5")) + IMAGE, "a size that is none"),
        (extended(b"x", keyword("size=" + "9" * 5000)) + IMAGE, "a size that is none"),
        (extended(b"x", keyword("size=" + "9" * 20)) + IMAGE, "9{20} bytes of member 0 do not"),
        (extended(b"x", keyword("GNU.sparse.map=0,1")) + IMAGE, r"a\.jpg is a link or sparse"),
        (block(b"S", 512, "a.jpg"), r"a\.jpg is a link or sparse"),
        (block(b"S", 4096, "a.jpg"), "4096 bytes of member 0 do not fit"),
    ],
)
def test_hostile_headers_are_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(data + END)
    with pytest.raises(SourceError, match=message) as caught:
        list(list_images(f"{tmp_path}/a.tar"))
    assert "\n" not in str(caught.value)


def test_sparse_members_between_images(tmp_path: Path) -> None:
    """Their header goes on in further blocks, which are no members."""
    sparse = bytearray(block(b"S", 512, "s.bin"))
    sparse[482] = 1
    sparse[148:156] = b"%06o\0 " % (sum(sparse[:148]) + 8 * 32 + sum(sparse[156:]))
    more = b"\0" * 504 + b"\1" + b"\0" * 7
    last = bytes(512)
    data = bytes(sparse) + more * 3 + last + b"d" * 512 + IMAGE + END
    (tmp_path / "a.tar").write_bytes(data)
    (found,) = list_images(f"{tmp_path}/a.tar")
    assert read_bytes(found.uri) == b"hello"


def test_no_image(tmp_path: Path) -> None:
    uri = pack(tmp_path / "a.tar", {"a.txt": b"x"})
    pack(tmp_path / "b.tar", {})
    for source in (uri, str(tmp_path)):
        with pytest.raises(SourceError, match="no image found in the tars"):
            list(list_images(source))
    with pytest.raises(SourceError, match="needs no image folder"):
        list_images(uri, str(tmp_path))
