"""Prompts from a file, and what was written after them into another: one record a line. Imports no JAX."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.document import DataError
from data.storage import write_atomically


def read_prompts(path: Path, field: str, output_field: str) -> tuple[list[str], list[dict[str, Any]]]:
    """The prompts of a file, and the record of each.

    Of a .jsonl file, a prompt is the text in `field` of a line's object, blank lines aside; of any other file it is a
    line, and its record {"prompt": line}. Raises DataError for what cannot be read, or has an `output_field` already.
    """
    records = []
    for number, line in _lines(path):
        if path.suffix != ".jsonl":
            records.append({"prompt": line})
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            names = f", only {', '.join(record)}" if isinstance(record, dict) and field not in record else ""
            raise DataError(f"{path}:{number}: expected an object with a text in the field '{field}'{names}")
        if output_field in record:
            raise DataError(f"{path}:{number}: has a field '{output_field}' already; choose another --output-field")
        records.append(record)
    return [record[field if path.suffix == ".jsonl" else "prompt"] for record in records], records


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; an empty one is a line, too."""
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                yield number, line.removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8: {error.reason}") from error


def write_texts(
    path: Path, texts: Sequence[Sequence[str]], records: Sequence[dict[str, Any]], output_field: str
) -> None:
    """The texts of each record, all at once or not at all.

    Into a .jsonl file go the records, each with its text, or the list of its texts, as `output_field`; into any other
    file the single text of each record, a line each: a line end in a text becomes a space.
    """
    if path.suffix == ".jsonl":
        added = ({output_field: list(own) if len(own) > 1 else own[0]} for own in texts)
        lines = [json.dumps(record | new, ensure_ascii=False) for record, new in zip(records, added, strict=True)]
    else:
        lines = [" ".join(text.splitlines()) for [text] in texts]
    # A lone surrogate, which UTF-8 lacks, is written as JSON writes it.
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
