"""secrets: what is told of a URI, alone and in prose, and in time linear in its length."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from af_pipeline.commands import complain
from af_pipeline.core.schema import ImageRow
from af_pipeline.data.access import reading_error
from af_pipeline.data.secrets import holds_secret, redact, redact_text, redact_tree
from af_pipeline.indexing.stages import mark_failed

SECRET = "wJalrXUtnFEMI"
# URI, what is told of it.
TOLD = {
    f"https://h/a.jpg?X-Amz-Signature={SECRET}&b=c": "https://h/a.jpg?...",
    f"https://h/a b?sig={SECRET}": "https://h/a b?...",
    f"https://h/a'b?sig={SECRET}": "https://h/a'b?...",
    f'https://h/x"y?sig={SECRET}': 'https://h/x"y?...',
    f"https://h/k#access_token={SECRET}": "https://h/k#...",
    f"https://h/a?b='c d'&sig={SECRET}": "https://h/a?...",
    f"HTTPS://h/a\n?{SECRET}": "HTTPS://h/a\n?...",
    f"https://h/t.tar?sig={SECRET}#offset=512&size=9": "https://h/t.tar?...#offset=512&size=9",
    f"https://h/a?u=https://g/b?sig={SECRET}": "https://h/a?...",
    f"simplecache::https://h/b.jpg?sig={SECRET}": "simplecache::https://h/b.jpg?...",
    f"abfs://c/a?sig={SECRET}": "abfs://c/a?...",
    f"abfs://c/a#sig={SECRET}": "abfs://c/a#...",
    f"ftp://u:{SECRET}@h/a@b": "ftp://...@h/a@b",
    f"s3://AKIA:{SECRET}/more@b/k": "s3://...@b/k",
    f"s3://AKIA:{SECRET}": "s3://...",
}
PLAIN = (
    "s3://b/cam?/x=1/*.tif",
    "/a?b=c",
    "s3://b/a@b#c=d",
    "s3://b/k?.jpg",
    "http://h:80/a@b:c.jpg",
    "https://h/t.tar#offset=512&size=9",
    "a.jpg",
    "",
)


@pytest.mark.parametrize("uri", TOLD)
def test_secrets_are_told_nowhere(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert redact(uri) == TOLD[uri]
    row = ImageRow("a", uri)
    mark_failed(row, f"cannot do: OSError('{uri}'), tried twice")
    complain(f"{uri} is broken", 2)
    told = [
        redact(f"an id with {uri}"),
        redact_text(f"url='{uri}', more"),
        str(reading_error(uri, OSError(f"boom {uri}\nsecond line"))),
        row.error,
        capsys.readouterr().err,
        str(redact_tree({"a": [{"b": uri}]})),
    ]
    assert not [text for text in told if SECRET in text or SECRET[:5] in text]


def test_what_is_no_secret_stays() -> None:
    for plain in PLAIN:
        assert redact(plain) == redact_text(plain) == redact_tree(plain) == plain
        assert not holds_secret(plain)
    prose = f"cannot read 'https://h/a?sig={SECRET}', status 500: see https://h/b?c=d&e=f"
    shown = "cannot read 'https://h/a?...', status 500: see https://h/b?..."
    assert redact_text(prose) == redact_text(shown) == shown
    member = "https://h/t.tar?...#offset=512&size=9 ends at byte 7: is it cut short?"
    assert redact_text(member) == member


def test_trees_that_differ_in_secrets_only_stay_different() -> None:
    first, second = (redact_tree({"uri": f"https://h/a?v={n}"})["uri"] for n in "12")
    assert first.startswith("https://h/a?... (SHA-256 ")
    assert first != second


@example(":?@@", "http")
@given(st.text("ab:/?#&=@. '\"~%", max_size=60), st.sampled_from(["http", "s3", "abfs"]))
def test_redacting_twice_is_redacting_once(text: str, scheme: str) -> None:
    for function in (redact, redact_text):
        once = function(f"{scheme}://{text}")
        assert function(once) == once


@pytest.mark.timeout(60)  # quadratic patterns took hours
@pytest.mark.parametrize(
    "piece", ["a", "://", "a://", "?", "&a", "#", "@", ":", "a+", "?a=", "%", "https://h/a?"]
)
def test_long_texts_take_linear_time(piece: str) -> None:
    text = piece * 100_000
    for head in ("", "https://", "s3://", "gs://"):
        redact(head + text)
        redact_text(head + text)
        holds_secret(head + text)
    reading_error(text, OSError(text))
