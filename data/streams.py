"""Bytes and lines of files, plain or compressed.

Bytes flow one way: `read_chunks` decompresses, `read_lines` cuts at b"\\n" (never `str.splitlines`, which also cuts
at U+2028 and others). Damage that would silently lose the rest of a file (a truncated archive) is an error even
where bad records are skipped.
"""

import bz2
import codecs
import difflib
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from data.document import DataError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
MAX_LINE_BYTES = 64 * 2**20
# A kilobyte of hostile zstd can hold 32 MiB of zeros, so compressed input is fed in pieces this small.
_COMPRESSED_READ_BYTES = 1024
_READ_BYTES = 2**20

Bad = Callable[[str], None]  # called with a message for each bad record: raises or counts


def nearest_path(path: Path) -> str:
    """Returns '; did you mean …?' for the first part of `path` that does not exist, or an empty string."""
    while not path.parent.exists():
        path = path.parent
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def ending(path: Path) -> str:
    """Returns the suffix that says what is in the file, under any compression, or an empty string."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_chunks(path: Path) -> Iterator[bytes]:
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


def read_lines(chunks: Iterable[bytes], path: Path, bad: Bad, first: int = 1) -> Iterator[tuple[int, bytes]]:
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


def decode(data: bytes, path: Path, number: int) -> str:
    """Decodes lines that start at line `number`; raises DataError that names the line and the byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = number + before.count(b"\n"), error.start - (before.rfind(b"\n") + 1) + 1
        raise DataError(
            f"{path}:{line}: byte {column} of the line (0x{data[error.start]:02x}) is not valid UTF-8"
        ) from error


def check_encodable(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"half a character (U+{code:04X})"
        raise DataError(f"{where}: the text is not valid Unicode: {what} at character {error.start + 1}") from error
    return text


def json_name(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def list_names(names: Iterable[str]) -> str:
    shown = [repr(name)[:40] for name in names]
    return ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "") if shown else "none"
