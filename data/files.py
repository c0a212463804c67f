"""Documents from text files: .txt, .jsonl, .csv and .tsv, plain or compressed.

Bytes flow one way: `_chunks` decompresses, `_lines` cuts at b"\\n" (never `str.splitlines`, which also cuts
at U+2028 and others), the three `_read_…` functions make documents. Everything but a .txt file that is one
document, or that is cut by a span, is streamed.

Damage that would silently lose the rest of a file (a truncated archive) is an error even where bad records
are skipped.
"""

import bz2
import codecs
import csv
import difflib
import glob
import gzip
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from data.config import Files
from data.document import DataError, Document, Skipped

FORMATS = (".txt", ".jsonl", ".csv", ".tsv")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
MAX_LINE_BYTES = 64 * 2**20
# A kilobyte of hostile zstd can hold 32 MiB of zeros, so compressed input is fed in pieces this small.
_COMPRESSED_READ_BYTES = 1024
_READ_BYTES = 2**20

_Bad = Callable[[str], None]  # called with a message for each bad record: raises or counts


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
        raise DataError(f"{path}: no such file or folder{_nearest(path)}")
    for path in paths:
        if not _format(path):
            raise DataError(f"{path}: unsupported kind of file; expected a name that ends in {supported}")
        if source.span != (0.0, 1.0) and _format(path) != ".txt":
            raise DataError(f"{path}: span cuts .txt files only; remove it, or make separate files")
    return paths


def _nearest(path: Path) -> str:
    """Returns '; did you mean …?' for the first part of `path` that does not exist, or an empty string."""
    while not path.parent.exists():
        path = path.parent
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _format(path: Path) -> str:
    """Returns the suffix that says what is in the file, under any compression, or an empty string."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else ""


# Bytes


def _chunks(path: Path) -> Iterator[bytes]:
    """Yields the decompressed bytes, no byte order mark; raises DataError if empty, damaged or UTF-16."""
    opened = {
        ".gz": lambda file: _blocks(gzip.GzipFile(fileobj=file)),
        ".bz2": lambda file: _inflate(file, bz2.BZ2Decompressor),
        ".xz": lambda file: _inflate(file, lzma.LZMADecompressor),
        ".zst": lambda file: _inflate(file, zstandard.ZstdDecompressor().decompressobj),
    }.get(path.suffix.lower(), _blocks)
    damage = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError)
    if path.suffix.lower() == ".bz2":
        damage += (OSError, ValueError)  # all that bz2 has for damaged data
    with open(path, "rb") as file:
        chunks = opened(file)
        head = b""
        try:
            while len(head) < 3 and (chunk := next(chunks, b"")):
                head += chunk
            yield _without_byte_order_mark(head, path)
            yield from chunks
        except damage as error:
            raise DataError(f"{path}: is truncated or damaged: {error}") from error


def _without_byte_order_mark(head: bytes, path: Path) -> bytes:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is UTF-16 or UTF-32 text; convert it to UTF-8")
    head = head.removeprefix(codecs.BOM_UTF8)
    if not head:
        raise DataError(f"{path}: is empty")
    return head


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_READ_BYTES):
        yield block


def _inflate(file: BinaryIO, new_decompressor: Callable) -> Iterator[bytes]:
    """Yields the contents of the compressed streams in `file`, one after the other.

    The classes of the standard library and of zstandard that read files take damage after a first stream,
    or a missing end, for the end of the data; this loses nothing silently.
    """
    decompressor = new_decompressor()
    while data := file.read(_COMPRESSED_READ_BYTES):
        while data:
            if decompressor.eof:
                data = data.lstrip(b"\0")  # padding between xz streams; no stream starts with a zero
                if not data:
                    break
                decompressor = new_decompressor()
            if inflated := decompressor.decompress(data):
                yield inflated
            data = decompressor.unused_data if decompressor.eof else b""
    if not decompressor.eof and file.tell() > 0:
        raise EOFError("it ends in the middle of the compressed data")


def _lines(chunks: Iterable[bytes], path: Path, bad: _Bad, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yields (line number, line with its b"\\n"); a line over `MAX_LINE_BYTES` is a bad record."""
    number, parts, size = first, [], 0

    def finished() -> Iterator[tuple[int, bytes]]:
        if size > MAX_LINE_BYTES:
            bad(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB")
        else:
            yield number, b"".join(parts)

    for chunk in chunks:
        start = 0
        while end := chunk.find(b"\n", start) + 1:
            parts.append(chunk[start:end])
            size += end - start
            yield from finished()
            number, parts, size, start = number + 1, [], 0, end
        size += len(chunk) - start
        if size <= MAX_LINE_BYTES:  # the rest of a line that is too long is counted but not kept
            parts.append(chunk[start:])
        else:
            parts = []
    if size:
        yield from finished()


def _decode(data: bytes, path: Path, number: int) -> str:
    """Decodes lines that start at line `number`; raises DataError that names the line and the byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = number + before.count(b"\n"), error.start - (before.rfind(b"\n") + 1) + 1
        raise DataError(
            f"{path}:{line}: byte {column} of the line (0x{data[error.start]:02x}) is not valid UTF-8"
        ) from error


# Documents


def _read_text(path: Path, source: Files, bad: _Bad) -> Iterator[Document]:
    """Yields a .txt file, or its paragraphs or lines without the newline at their end."""
    chunks: Iterable[bytes] = _chunks(path)
    first = 1
    if source.document == "file" or source.span != (0.0, 1.0):
        content = b"".join(chunks)  # not in the try: a damaged file is never just skipped
        try:
            text = _decode(content, path, 1)
        except DataError as error:
            return bad(str(error))
        start, end = (int(len(text) * fraction) for fraction in source.span)
        if source.document == "file":
            yield Document(text[start:end], str(path))
            return
        chunks, first = [text[start:end].encode()], 1 + text.count("\n", 0, start)
    groups = _lines(chunks, path, bad, first)
    if source.document == "paragraph":
        groups = _paragraphs(groups)
    for number, data in groups:
        try:
            text = _decode(data, path, number)
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


def _read_json_lines(path: Path, field: str, bad: _Bad) -> Iterator[Document]:
    for number, line in _lines(_chunks(path), path, bad):
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
        record = json.loads(_decode(line.rstrip(b"\r\n"), path, number))
    except RecursionError as error:
        raise DataError(f"{where}: JSON is nested too deeply") from error
    except ValueError as error:  # malformed, or an integer of thousands of digits
        raise DataError(f"{where}: is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {_json_name(record)}")
    if field not in record:
        raise DataError(f"{where}: has no field {field!r}; its fields are: {_names(record)}")
    if not isinstance(record[field], str):
        raise DataError(f"{where}: field {field!r} must be a string, found {_json_name(record[field])}")
    return _check_encodable(record[field], where)


def _read_table(path: Path, column: str, bad: _Bad) -> Iterator[Document]:
    """Yields the text column of a .csv (quoted as in RFC 4180) or .tsv (never quoted) file with a header."""
    csv.field_size_limit(MAX_LINE_BYTES)
    # Undecodable bytes become lone surrogates, so that a bad byte spoils its record and not the next ones.
    lines = (line.decode("utf-8", "surrogateescape") for _, line in _lines(_chunks(path), path, bad))
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
                raise DataError(f"{path}: has no column {column!r}; its columns are: {_names(header)}")
        elif row:
            try:
                yield Document(_cell(row, header, column, f"{path}:{first}"), f"{path}:{first}")
            except DataError as error:
                bad(str(error))


def _cell(row: list[str], header: list[str], column: str, where: str) -> str:
    if len(row) != len(header):
        raise DataError(f"{where}: has {len(row)} columns, the header has {len(header)}")
    return _check_encodable(row[header.index(column)], where)


def _check_encodable(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"half a character (U+{code:04X})"
        raise DataError(f"{where}: the text is not valid Unicode: {what} at character {error.start + 1}") from error
    return text


def _json_name(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _names(names: Iterable[str]) -> str:
    shown = [repr(name)[:40] for name in names]
    return ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "") if shown else "none"
