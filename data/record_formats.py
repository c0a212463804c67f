"""From files to columns: one reader for each `Records.format`.

A reader yields (number of the line where a record starts, its columns), in the file's order; of a JSON array and of
SQuAD's questions, which have no lines, the number from 0. What it cannot read it hands to `bad`, which raises or
counts. Undecodable bytes become lone surrogates, so that a bad byte spoils its record and not the next ones;
`records.py` and `files.py` refuse the surrogates.
"""

import csv
import glob
import json
import os
import re
from collections.abc import Iterator
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

from data.document import DataError, Skipped
from data.streams import MAX_LINE_BYTES, Bad, ending, json_name, nearest_path, read_chunks, read_lines
from data.task_config import Records, repeated

Numbered = Iterator[tuple[int, dict[str, Any]]]

_ENDINGS = {".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".txt": "lines"}
# Option → the formats that read it.
_OPTIONS = {
    "columns": ("csv", "tsv", "conll"),
    "quoted": ("csv", "tsv"),
    "pattern": ("lines", "matches"),
    "beside": ("lines",),
}


def read_columns(source: Records, bad: Bad) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the columns of every record of `source` and its place, such as `train.tsv:17` or `train.json[17]`."""
    for path in record_files(source):
        kind = _format(path, source)
        for option, kinds in _OPTIONS.items():
            if getattr(source, option) != Records.model_fields[option].default and kind not in kinds:
                raise DataError(f"{path}: {option} is for the formats {', '.join(kinds)}, not for {kind}")
        place = "{}[{}]" if kind in ("json", "squad") else "{}:{}"
        try:
            for number, columns in _READERS[kind](path, source, bad):
                yield {"file": path.name, **columns}, place.format(path, number)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
        except UnicodeError as error:
            raise DataError(f"{path}: is not text in {source.encoding}: {error}") from error


def record_files(source: Records) -> list[Path]:
    """Returns the files of `source`, sorted, without those of `beside`; raises DataError where there are none."""
    path = Path(source.path).expanduser()
    if path.is_dir():
        found = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        paths = sorted(file for file in found if not file.name.startswith("."))
        if source.format == "auto":
            paths = [file for file in paths if ending(file) in _ENDINGS]
        elif source.format == "folders":
            paths = [file for file in paths if file.parent != path]
    elif path.exists():
        paths = [path]
    elif glob.has_magic(str(path)):
        paths = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
    else:
        raise DataError(f"{path}: no such file or folder{nearest_path(path)}")
    others = set(files_beside(source, paths))
    paths = [file for file in paths if file not in others]
    if not paths:
        raise DataError(f"{path}: there is no file with records here")
    return paths


def files_beside(source: Records, paths: list[Path]) -> list[Path]:
    """Returns the files of `beside`, those of the first path first."""
    return [path.parent / name for path in paths for name in source.beside.values()]


def _format(path: Path, source: Records) -> str:
    if source.format != "auto":
        return source.format
    if ending(path) not in _ENDINGS:
        raise DataError(f"{path}: its name does not say what is in it; give format, or a name in {', '.join(_ENDINGS)}")
    return _ENDINGS[ending(path)]


# Lines and whole texts


def _text_lines(path: Path, source: Records, bad: Bad) -> Iterator[tuple[int, str]]:
    """Yields (number, line without its end)."""
    for number, line in read_lines(read_chunks(path), path, bad):
        yield number, line.decode(source.encoding, "surrogateescape").removesuffix("\n").removesuffix("\r")


def _text(path: Path, source: Records) -> str:
    return b"".join(read_chunks(path)).decode(source.encoding, "surrogateescape")


def _lines(path: Path, source: Records, bad: Bad) -> Numbered:
    if source.beside:
        yield from _parallel_lines(path, source)
        return
    pattern = re.compile(source.pattern or "(?P<text>.*)", re.DOTALL)
    for number, line in _text_lines(path, source, bad):
        if not line.strip():
            continue
        if match := pattern.fullmatch(line):
            yield number, match.groupdict()
        else:
            bad(f"{path}:{number}: the line does not match the pattern {source.pattern!r}")


def _parallel_lines(path: Path, source: Records) -> Numbered:
    """A line that cannot be read would move all that follow, so it is never just skipped."""
    refuse = Skipped().handler("fail")
    paths = dict(zip(("text", *source.beside), (path, *files_beside(source, [path])), strict=True))
    for other in paths.values():
        if not other.is_file():
            raise DataError(f"{other}: no such file{nearest_path(other)}")
    rows = zip_longest(*(_text_lines(other, source, refuse) for other in paths.values()))
    for number, row in enumerate(rows, 1):
        if None in row:
            counts = [sum(1 for _ in _text_lines(other, source, refuse)) for other in paths.values()]
            told = ", ".join(
                f"{other} has {count:,} lines" for other, count in zip(paths.values(), counts, strict=True)
            )
            raise DataError(f"{told}; files beside each other must have as many")
        yield number, {name: line for name, (_, line) in zip(paths, row, strict=True)}


def _matches(path: Path, source: Records, bad: Bad) -> Numbered:
    if source.pattern is None:
        raise DataError(f"{path}: the format matches needs a pattern with named groups")
    text, number, end = _text(path, source), 1, 0
    for match in re.finditer(source.pattern, text):
        number, end = number + text.count("\n", end, match.start()), match.start()
        yield number, match.groupdict()


def _folders(path: Path, source: Records, bad: Bad) -> Numbered:
    try:
        yield 1, {"label": path.parent.name, "text": _text(path, source)}
    except DataError as error:  # the file is a single record
        bad(str(error))


# Tables


def _table(path: Path, source: Records, bad: Bad) -> Numbered:
    is_csv = _format(path, source) == "csv"
    quoted = is_csv if source.quoted is None else source.quoted
    rows = _quoted_rows if quoted else _plain_rows
    header = list(source.columns)
    for number, row in rows(path, source, "," if is_csv else "\t", bad):
        if not header:
            header = row
            if (name := repeated(row)) is not None:
                raise DataError(f"{path}: two columns are called {name!r}; name them all by columns")
        elif len(row) != len(header):
            bad(f"{path}:{number}: has {len(row)} columns, expected {len(header)}: {', '.join(header)}"[:300])
        else:
            yield number, dict(zip(header, row, strict=True))


def _plain_rows(path: Path, source: Records, delimiter: str, bad: Bad) -> Iterator[tuple[int, list[str]]]:
    for number, line in _text_lines(path, source, bad):
        if line:
            yield number, line.split(delimiter)


def _quoted_rows(path: Path, source: Records, delimiter: str, bad: Bad) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    decoded = (line.decode(source.encoding, "surrogateescape") for _, line in read_lines(read_chunks(path), path, bad))
    rows = csv.reader(decoded, delimiter=delimiter, strict=True)
    while True:
        first = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            bad(f"{path}:{first}: is not a valid quoted record: {error}")
            continue
        if row is None:
            return
        if row:
            yield first, row


# JSON


def _json_lines(path: Path, source: Records, bad: Bad) -> Numbered:
    for number, line in _text_lines(path, source, bad):
        if line.strip():
            try:
                yield number, _object(_parsed(line, f"{path}:{number}"), f"{path}:{number}")
            except DataError as error:
                bad(str(error))


def _json_list(path: Path, source: Records, bad: Bad) -> Numbered:
    content = _parsed(_text(path, source), str(path))
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a JSON array of objects, found {json_name(content)}")
    for index, item in enumerate(content):
        try:
            yield index, _object(item, f"{path}[{index}]")
        except DataError as error:
            bad(str(error))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise DataError(f"{where}: JSON is nested too deeply") from error
    except ValueError as error:  # malformed, or an integer of thousands of digits
        hint = "; objects one a line are the format jsonl" if str(error).startswith("Extra data") else ""
        raise DataError(f"{where}: is not valid JSON: {error}{hint}") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, found {json_name(value)}")
    return value


def _squad(path: Path, source: Records, bad: Bad) -> Numbered:
    content, number = _object(_parsed(_text(path, source), str(path)), str(path)), 0
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield number, {"context": paragraph["context"], "title": article.get("title"), **question}
                    number += 1
    except (KeyError, TypeError, AttributeError) as error:
        lack = error if isinstance(error, KeyError) else "an object or a list where SQuAD has one"
        raise DataError(f"{path}: is not a SQuAD file: after {number:,} questions it lacks {lack}") from error


# Words in lines


def _conll(path: Path, source: Records, bad: Bad) -> Numbered:
    """Columns stand between tabs, where a line has any, else between spaces."""
    for is_sentence, group in groupby(_text_lines(path, source, bad), lambda numbered: bool(numbered[1].strip())):
        if not is_sentence:
            continue
        numbered = [(number, line.split("\t") if "\t" in line else line.split(" ")) for number, line in group]
        words = [(number, row) for number, row in numbered if row[0] != "-DOCSTART-"]
        if not words:
            continue
        first, width = words[0][0], len(source.columns) or len(words[0][1])
        wrong = next((number for number, row in words if len(row) != width), None)
        if wrong is not None:
            bad(f"{path}:{wrong}: a word of this sentence has other columns than the {width} expected")
            continue
        by_place = [list(column) for column in zip(*(row for _, row in words), strict=True)]
        if source.columns:
            yield first, dict(zip(source.columns, by_place, strict=True))
        else:
            yield first, {"tokens": by_place[0]} | ({"tags": by_place[-1]} if width > 1 else {})


_NUMBERED = re.compile(r"(\d+) (your persona: |partner's persona: )?(.*)", re.DOTALL)


def _persona_chat(path: Path, source: Records, bad: Bad) -> Numbered:
    """Lines are numbered from 1 in each conversation.

    First comes the persona of the side that answers, which is the system's text, then a message, a tab and its answer;
    what follows after another tab is not read. A bad line spoils its conversation.
    """
    start, persona, turns, is_whole = 0, [], [], True
    for number, line in _text_lines(path, source, bad):
        if not line.strip():
            continue
        match = _NUMBERED.fullmatch(line)
        if match is not None and match[1] == "1":
            if turns and is_whole:
                yield start, {"system": " ".join(persona), "turns": turns}
            start, persona, turns, is_whole = number, [], [], True
        if match is not None and match[2] is not None:
            persona += [match[3]] if match[2].startswith("your") else []
        elif match is None or "\t" not in match[3]:
            is_whole = False
            bad(f"{path}:{number}: expected a number, a message, a tab and its answer, as PersonaChat has them")
        else:
            turns += match[3].split("\t")[:2]
    if turns and is_whole:
        yield start, {"system": " ".join(persona), "turns": turns}


_READERS = {
    "jsonl": _json_lines,
    "json": _json_list,
    "csv": _table,
    "tsv": _table,
    "lines": _lines,
    "matches": _matches,
    "conll": _conll,
    "squad": _squad,
    "persona_chat": _persona_chat,
    "folders": _folders,
}
