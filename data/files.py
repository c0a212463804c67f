"""Documents from text files: .txt, .jsonl, .csv and .tsv, plain or compressed.

Everything but a .txt file that is one document, or that is cut by a span, is streamed.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.config import Files
from data.document import DataError, Document, Skipped
from data.record_formats import read_columns
from data.streams import (
    COMPRESSIONS,
    Bad,
    check_encodable,
    decode,
    ending,
    json_name,
    list_names,
    nearest_path,
    read_chunks,
    read_lines,
)
from data.task_config import Records

FORMATS = (".txt", ".jsonl", ".csv", ".tsv")


def read_files(source: Files, skipped: Skipped) -> Iterator[Document]:
    """Yields the documents of every file of `source`; raises DataError, or adds bad records to `skipped`."""
    bad = skipped.handler(source.on_error)
    for path in find(source):
        try:
            if _format(path) == ".txt":
                yield from _read_text(path, source, bad)
            else:
                yield from _read_field(path, source.text_field, bad)
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
    """Returns the suffix that says what is in the file, or an empty string where it is none of `FORMATS`."""
    return ending(path) if ending(path) in FORMATS else ""


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


def _read_field(path: Path, field: str, bad: Bad) -> Iterator[Document]:
    """Yields a field of the objects of a .jsonl file, or a column of a .csv or .tsv file with a header."""
    for columns, origin in read_columns(Records(path=str(path)), bad):
        text = columns.get(field)
        if field not in columns:
            missing = f"has no field {field!r}; its fields are: {list_names(columns)}"
            if _format(path) != ".jsonl":
                raise DataError(f"{path}: {missing}")  # in all rows
            bad(f"{origin}: {missing}")
        elif not isinstance(text, str):
            bad(f"{origin}: field {field!r} must be a string, found {json_name(text)}")
        else:
            try:
                yield Document(check_encodable(text, origin), origin)
            except DataError as error:
                bad(str(error))
