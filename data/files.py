"""Documents from text files: .txt, .jsonl, .csv and .tsv, plain or compressed.

The three `_read_…` functions make documents of the lines of `streams.py`. Everything but a .txt file that is one
document, or that is cut by a span, is streamed.
"""

import csv
import glob
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.config import Files
from data.document import DataError, Document, Skipped
from data.streams import (
    COMPRESSIONS,
    MAX_LINE_BYTES,
    Bad,
    check_encodable,
    decode,
    json_name,
    list_names,
    nearest_path,
    read_chunks,
    read_lines,
)

FORMATS = (".txt", ".jsonl", ".csv", ".tsv")


def read_files(source: Files, skipped: Skipped) -> Iterator[Document]:
    """Yields the documents of every file of `source`; raises DataError, or adds bad records to `skipped`."""

    def bad(message: str) -> None:
        if source.on_error == "fail":
            raise DataError(message)
        skipped.add(message)

    for path in find(source):
        try:
            if _format(path) == ".txt":
                yield from _read_text(path, source, bad)
            elif _format(path) == ".jsonl":
                yield from _read_json_lines(path, source.text_field, bad)
            else:
                yield from _read_table(path, source.text_field, bad)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def find(source: Files) -> list[Path]:
    """Returns the files that `source.path` names, sorted; raises DataError where there are none."""
    path = Path(source.path).expanduser()
    supported = ", ".join(FORMATS) + " (also with " + ", ".join(COMPRESSIONS) + ")"
    if path.is_dir():
        found = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
        paths = sorted(file for file in found if _format(file))
        if not paths:
            raise DataError(f"{path}: the folder has no file that ends in {supported}")
    elif path.exists():
        paths = [path]
    elif glob.has_magic(str(path)):
        paths = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        if not paths:
            raise DataError(f"{path}: no file matches this pattern")
    else:
        raise DataError(f"{path}: no such file or folder{nearest_path(path)}")
    for path in paths:
        if not _format(path):
            raise DataError(f"{path}: unsupported kind of file; expected a name that ends in {supported}")
        if source.span != (0.0, 1.0) and _format(path) != ".txt":
            raise DataError(f"{path}: span cuts .txt files only; remove it, or make separate files")
    return paths


def _format(path: Path) -> str:
    """Returns the suffix that says what is in the file, under any compression, or an empty string."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else ""


# Documents


def _read_text(path: Path, source: Files, bad: Bad) -> Iterator[Document]:
    """Yields a .txt file, or its paragraphs or lines without the newline at their end."""
    chunks: Iterable[bytes] = read_chunks(path)
    first = 1
    if source.document == "file" or source.span != (0.0, 1.0):
        content = b"".join(chunks)  # not in the try: a damaged file is never just skipped
        try:
            text = decode(content, path, 1)
        except DataError as error:
            return bad(str(error))
        start, end = (int(len(text) * fraction) for fraction in source.span)
        if source.document == "file":
            yield Document(text[start:end], str(path))
            return
        chunks, first = [text[start:end].encode()], 1 + text.count("\n", 0, start)
    groups = read_lines(chunks, path, bad, first)
    if source.document == "paragraph":
        groups = _paragraphs(groups)
    for number, data in groups:
        try:
            text = decode(data, path, number)
        except DataError as error:
            bad(str(error))
        else:
            yield Document(text.removesuffix("\n").removesuffix("\r"), f"{path}:{number}")


def _paragraphs(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Joins (number, line) pairs into (number of the first line, lines up to a blank line)."""
    first, paragraph = 0, []
    for number, line in lines:
        if line.strip():
            first = first if paragraph else number
            paragraph.append(line)
        elif paragraph:
            yield first, b"".join(paragraph)
            paragraph = []
    if paragraph:
        yield first, b"".join(paragraph)


def _read_json_lines(path: Path, field: str, bad: Bad) -> Iterator[Document]:
    for number, line in read_lines(read_chunks(path), path, bad):
        if not line.strip():
            continue
        try:
            text = _json_text(line, field, path, number)
        except DataError as error:
            bad(str(error))
        else:
            yield Document(text, f"{path}:{number}")


def _json_text(line: bytes, field: str, path: Path, number: int) -> str:
    where = f"{path}:{number}"
    try:
        record = json.loads(decode(line.rstrip(b"\r\n"), path, number))
    except RecursionError as error:
        raise DataError(f"{where}: JSON is nested too deeply") from error
    except ValueError as error:  # malformed, or an integer of thousands of digits
        raise DataError(f"{where}: is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {json_name(record)}")
    if field not in record:
        raise DataError(f"{where}: has no field {field!r}; its fields are: {list_names(record)}")
    if not isinstance(record[field], str):
        raise DataError(f"{where}: field {field!r} must be a string, found {json_name(record[field])}")
    return check_encodable(record[field], where)


def _read_table(path: Path, column: str, bad: Bad) -> Iterator[Document]:
    """Yields the text column of a .csv (quoted as in RFC 4180) or .tsv (never quoted) file with a header."""
    csv.field_size_limit(MAX_LINE_BYTES)
    # Undecodable bytes become lone surrogates, so that a bad byte spoils its record and not the next ones.
    lines = (line.decode("utf-8", "surrogateescape") for _, line in read_lines(read_chunks(path), path, bad))
    if _format(path) == ".csv":
        rows = csv.reader(lines, strict=True)
    else:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    header = None
    while True:
        first = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            bad(f"{path}:{first}: is not a valid {_format(path)} record: {error}")
            continue
        if row is None:
            return
        if header is None:
            header = row
            if column not in header:
                raise DataError(f"{path}: has no column {column!r}; its columns are: {list_names(header)}")
        elif row:
            try:
                yield Document(_cell(row, header, column, f"{path}:{first}"), f"{path}:{first}")
            except DataError as error:
                bad(str(error))


def _cell(row: list[str], header: list[str], column: str, where: str) -> str:
    if len(row) != len(header):
        raise DataError(f"{where}: has {len(row)} columns, the header has {len(header)}")
    return check_encodable(row[header.index(column)], where)
