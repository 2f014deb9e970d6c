"""Parquet and CSV files that list images by URI, read as Arrow tables, batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from af_pipeline.core.schema import IMAGES, MANIFEST
from af_pipeline.data.access import SourceError
from af_pipeline.data.manifest import LONGEST, Listed
from af_pipeline.data.reach import is_remote, refusal, refused_entry
from af_pipeline.data.secrets import holds_secret, redact, redact_text
from af_pipeline.data.sources.source import ID_COLUMN, Source
from af_pipeline.data.storage import open_file, parent

SUFFIXES = (".parquet", ".csv")

_BATCH_ROWS = 50_000
_READ_BYTES = 4 << 20  # of one read of a remote file
_MAY_HOLD_SECRET = r"://[^/?#]*[@:]"
# Queries as `redact` knows them, any of HTTP's and name=value of others, and fragments of HTTP's; a
# part of a tar stays.
_QUERY = (
    r"(?is)^(?:([^?#]*https?://[^?#]*)(?:[?#].*?)??|([^?]*://[^?]*)\?[^/=]*=.*?)"
    r"(#offset=\d+&size=\d+)?$"
)
_VERSION = "version"
_PLAIN = r"(?i)^(?:s3a?|https?)://"  # where any list may lead
_TAKEN = {name.casefold() for name in (ID_COLUMN, "uri", "file_row_number", *IMAGES.names)}
_HELP = "rename or drop them"


def is_table(source: Source) -> bool:
    """Whether a source is a file that lists URIs, or a pattern of such files.

    Spark writes folders named x.parquet, which are none.
    """
    return source.ends(SUFFIXES) and not source.is_folder


def list_table(source: Source) -> Listed:
    """The tables of a file, or of those of a pattern."""
    return read_tables([place for _, place in source.files()], source)


def read_tables(files: Sequence[str], source: Source) -> Iterator[pa.Table]:
    """The rows of Parquet or CSV files in order: `MANIFEST` and all other columns as they are.

    A column ``version`` is taken as that of the bytes, which no one asks for here: for millions of
    files that would be as many requests.
    Without a column of the default name ``image_id`` the URI itself is the id, without its query,
    which may be a signature. Relative URIs are below ``source.images``, else below the file's
    folder. Whether ids are unique is checked where the tables are written.
    """
    schema: pa.Schema | None = None
    rows = 0
    for file in files:
        folder = source.images or parent(file)
        start = 0
        for batch in _batches(file, source, schema):
            table = _normalised(pa.Table.from_batches([batch]), file, start, folder, source)
            if source.storage.reach == "own":
                _check_reach(batch[source.uri_column].cast(pa.string()), file, start, folder)
            start += table.num_rows
            table = _like(table, schema, file, files[0])
            schema = table.schema
            if table.num_rows:
                yield table
        rows += start
    if not rows:
        raise SourceError(f"{redact(files[0])} lists no image")


def _batches(file: str, source: Source, schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
    is_csv = file.lower().endswith(".csv")
    try:
        with open_file(file, source.storage, _READ_BYTES) as opened:
            if is_csv:
                yield from _csv_batches(opened, source, schema)
                return
            # Else a kilobyte of file can stand for gigabytes of one long name again and again.
            footer = pq.read_metadata(opened)
            paths = {footer.schema.column(number).path for number in range(footer.num_columns)}
            parquet = pq.ParquetFile(
                opened,
                metadata=footer,
                buffer_size=_READ_BYTES,
                read_dictionary=sorted(paths & {source.id_column, source.uri_column}),
            )
            yield _empty(parquet.schema_arrow)
            yield from parquet.iter_batches(_BATCH_ROWS)
    except pa.ArrowInvalid as error:
        kind = "CSV" if is_csv else "Parquet"
        hint = "; types are guessed from the first rows: use Parquet" if is_csv else ""
        text = " ".join(redact_text(str(error)).split())
        raise SourceError(f"{redact(file)} is no valid {kind} file: {text:.500}{hint}") from None
    except MemoryError:
        raise SourceError(f"{redact(file)} has rows that need more memory than there is") from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"cannot read {redact(file)}: {redact_text(str(error))}") from None


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    """No rows, so that the columns of a file without rows are checked too."""
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _csv_batches(opened: Any, source: Source, schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
    types = {name: pa.string() for name in (source.id_column, source.uri_column, _VERSION)}
    for field in schema or ():
        if field.name not in MANIFEST.names:
            types[field.name] = field.type
    reader = pcsv.open_csv(
        opened,
        parse_options=pcsv.ParseOptions(newlines_in_values=True),
        convert_options=pcsv.ConvertOptions(column_types=types),
    )
    yield _empty(reader.schema)
    yield from reader


def _normalised(table: pa.Table, file: str, start: int, folder: str, source: Source) -> pa.Table:
    """A batch with columns image_id and uri, checked; start: number of its first row."""
    _check_columns(table.schema.names, file, source)
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:  # text that is no UTF-8 would stop the run when it is written
        raise SourceError(f"{redact(file)} row {start} or one after it: {error}") from None
    uri = _text(table, source.uri_column, file, start)
    has_id = source.id_column in table.schema.names
    image_id = _text(table, source.id_column, file, start) if has_id else _ids(uri, folder)
    _check_secrets(uri, file, start)
    below = f"{folder.rstrip('/')}/"
    uri = pc.if_else(_absolute(uri), uri, pc.binary_join_element_wise(below, uri, ""))
    version = pa.nulls(table.num_rows, pa.string())
    if _VERSION in table.schema.names:
        version = _as_text(table, _VERSION, file)
    own = [image_id, uri, pc.fill_null(version, "")]
    extras = [n for n in table.schema.names if n not in _own_names(source)]
    schema = pa.schema([*MANIFEST, *(table.schema.field(name) for name in extras)])
    return pa.table([*own, *(table[name] for name in extras)], schema=schema)


def _own_names(source: Source) -> tuple[str, ...]:
    return (source.id_column, source.uri_column, _VERSION)


def _check_columns(names: list[str], file: str, source: Source) -> None:
    place = redact(file)
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise SourceError(f"{place} has several columns named {twice[0]!r}: rename or drop them")
    missing = [source.uri_column] if source.uri_column not in names else []
    if source.id_column not in names and source.id_column != ID_COLUMN:
        missing.append(source.id_column)
    if missing:
        raise SourceError(
            f"{place} has no column {missing[0]!r}, only {', '.join(names) or 'none'}: name the "
            "columns of ids and URIs with source.id_column and source.uri_column"
        )
    extras = [name for name in names if name not in _own_names(source)]
    if "" in extras:
        raise SourceError(
            f"{place}: column {names.index('')}, counted from 0, has no name: rename or drop it"
        )
    # What reads the list later does not tell upper from lower case.
    clash = [name for name in extras if name.casefold() in _TAKEN]
    if clash:
        raise SourceError(f"{place} has columns whose names are taken: {', '.join(clash)}; {_HELP}")
    folded = Counter(name.casefold() for name in extras)
    alike = [name for name in extras if folded[name.casefold()] > 1]
    if alike:
        raise SourceError(
            f"{place} has columns that differ only in case: {', '.join(alike)}; {_HELP}"
        )


def _check_secrets(uri: pa.ChunkedArray, file: str, start: int) -> None:
    """Few rows are looked at one by one."""
    maybe = pc.indices_nonzero(pc.match_substring_regex(uri, _MAY_HOLD_SECRET))
    for row, text in zip(maybe.to_pylist(), uri.take(maybe).to_pylist(), strict=True):
        if holds_secret(text):
            raise SourceError(f"{redact(file)} row {start + row} has a URI with a user or a secret")


def _check_reach(uri: pa.Array, file: str, start: int, folder: str) -> None:
    """Raise SourceError for an entry that `refusal` names; few are looked at one by one."""
    odd = pc.match_substring_regex(uri, r"://|\.\.|%" + ("|^/" if is_remote(file) else ""))
    maybe = pc.indices_nonzero(pc.and_not(odd, pc.match_substring_regex(uri, _PLAIN)))
    for row, text in zip(maybe.to_pylist(), uri.take(maybe).to_pylist(), strict=True):
        if reason := refusal(text, file, folder):
            entry = f"{redact(file)} row {start + row}: {redact(text)[:200]!r}"
            raise refused_entry(entry, reason)


def _absolute(uri: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.or_(pc.starts_with(uri, "/"), pc.match_substring(uri, "://"))


def _ids(uri: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
    """The URIs without queries; a local file may have a name that looks like one."""
    scheme = f"{folder.partition('://')[0]}://" if "://" in folder else ""
    below = pc.if_else(_absolute(uri), "", scheme)
    whole = pc.binary_join_element_wise(below, uri, "")
    bare = pc.replace_substring_regex(whole, _QUERY, r"\1\2\3")
    return pc.if_else(_absolute(uri), bare, pc.utf8_slice_codeunits(bare, len(scheme)))


def _text(table: pa.Table, name: str, file: str, start: int) -> pa.ChunkedArray:
    """A column as strings, none of them empty."""
    column = _as_text(table, name, file)
    empty = pc.index(pc.equal(pc.fill_null(column, ""), ""), True).as_py()
    if empty >= 0:
        raise SourceError(f"{redact(file)} row {start + empty}, counted from 0, has no {name!r}")
    return column


def _as_text(table: pa.Table, name: str, file: str) -> pa.ChunkedArray:
    column = table[name]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not pa.types.is_integer(kind) and not any(test(kind) for test in texts):
        raise SourceError(
            f"{redact(file)}: column {name!r} holds {kind}, expected text or whole numbers"
        )
    for chunk in column.chunks if pa.types.is_dictionary(column.type) else ():
        longest = pc.max(pc.binary_length(chunk.dictionary.cast(pa.binary()))).as_py() or 0
        if longest > LONGEST:
            raise SourceError(f"{redact(file)} has a {name} of {longest} bytes, over {LONGEST}")
    return column.cast(pa.string())


def _like(table: pa.Table, schema: pa.Schema | None, file: str, first: str) -> pa.Table:
    """The table with the columns of the first file."""
    if schema is None or table.schema.equals(schema):
        return table.replace_schema_metadata(None)
    try:
        return table.select(schema.names).cast(schema)
    except (KeyError, ValueError, pa.ArrowException) as error:
        text = " ".join(redact_text(str(error)).split())
        raise SourceError(
            f"{redact(file)} has other columns or types than {redact(first)}: {text:.500}"
        ) from None
