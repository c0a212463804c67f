"""Labelled records: from a source's columns to the fields that a task asks for."""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from data.config import HuggingFace
from data.document import DataError, Skipped
from data.huggingface import read_rows
from data.record_formats import read_columns
from data.streams import check_encodable, json_name, list_names
from data.task_config import Records

_BRACES = re.compile(r"\{([^{}]+)\}")


class Record(NamedTuple):
    """Field → value, and where the record stands, such as `train.tsv:17`."""

    fields: dict[str, Any]
    origin: str


def read_records(source: Records | HuggingFace, roles: Mapping[str, bool], skipped: Skipped) -> Iterator[Record]:
    """Yields the records of `source` in its order.

    Args:
      roles: the fields to read, and whether a record must have them.

    Raises DataError for input that cannot be used; with `on_error="skip"`, bad records go to `skipped` instead.
    """
    if unknown := next((name for name in (*source.fields, *source.replace) if name not in roles), None):
        raise DataError(f"{source.path}: fields names {unknown!r}; the task's fields are {', '.join(roles)}")
    if isinstance(source, HuggingFace):
        if source.text_field != HuggingFace.model_fields["text_field"].default:
            raise DataError(f"{source.path}: text_field is for language models; for a task, fields name the columns")
        yield from (_record(columns, origin, source, roles) for columns, origin in read_rows(source))
        return
    records = _readable(source, roles, skipped.handler(source.on_error))
    yield from islice(_chosen(records, source), source.max_records)


def _readable(source: Records, roles: Mapping[str, bool], bad: Callable[[str], None]) -> Iterator[Record]:
    for columns, origin in read_columns(source, bad):
        try:
            record = _record(columns, origin, source, roles)
        except DataError as error:
            bad(str(error))
        else:
            yield record


def _chosen(records: Iterator[Record], source: Records) -> Iterator[Record]:
    """Drops repeats and what is not in `part`; both go by a hash of a record's fields without its id."""
    start, end = source.part
    if (start, end) == (0.0, 1.0) and not source.drop_repeats:
        yield from records
        return
    seen: set[bytes] = set()
    for record in records:
        fields = {name: value for name, value in record.fields.items() if name != "id"}
        text = json.dumps(fields, sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if source.drop_repeats:
            if digest in seen:
                continue
            seen.add(digest)
        if start <= int.from_bytes(digest[:8], "big") / 2**64 < end:
            yield record


# Columns


def _record(
    columns: Mapping[str, Any], origin: str, source: Records | HuggingFace, roles: Mapping[str, bool]
) -> Record:
    fields = {}
    for role, is_required in roles.items():
        if role not in source.fields and role not in columns and not is_required:
            continue
        value = _value(columns, source.fields.get(role, role), f"{origin}: the field {role}")
        for pattern, replacement in source.replace.get(role, {}).items():
            value = _in_texts(_spelled(value), lambda text, p=pattern, r=replacement: re.sub(p, r, text))
        fields[role] = _in_texts(value, lambda text: check_encodable(text, origin))
    return Record(fields, origin)


def _value(columns: Mapping[str, Any], wanted: str | tuple[str, ...], where: str) -> Any:
    """Returns a column, a text with columns in it, or a list of these, in which nothing is null or empty."""
    if isinstance(wanted, tuple):
        values = [_value(columns, name, where) for name in wanted]
        return [value for value in values if value not in (None, "")]
    if wanted in columns:
        return columns[wanted]
    if _BRACES.search(wanted):
        return _BRACES.sub(lambda match: _column_as_text(columns, match[1], where), wanted)
    return _column(columns, wanted, where)


def _column_as_text(columns: Mapping[str, Any], name: str, where: str) -> str:
    value = _column(columns, name, where)
    return "" if value is None else as_text(value, f"{where}: the column {name!r}")


def _column(columns: Mapping[str, Any], name: str, where: str) -> Any:
    """Returns the column `name`, or what stands at a path such as `answers.text`, in each item of a list."""
    value: Any = columns
    try:
        for key in [name] if name in columns else name.split("."):
            value = [item[key] for item in value] if isinstance(value, list) else value[key]
    except (KeyError, TypeError, IndexError) as error:
        near = difflib.get_close_matches(name, columns, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{where} needs the column {name!r}; the columns are: {list_names(columns)}{hint}") from error
    return value


def as_text(value: Any, name: str) -> str:
    """Returns a text, a number, true or false, or the sentences of a list as one text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = " ".join(item.strip() for item in value)
    if not isinstance(value, str):
        raise DataError(f"{name} must be a text, found {json_name(value)}")
    return value.strip()


def _spelled(value: Any) -> Any:
    """Returns `value` with numbers, true and false as texts, also in a list."""
    if isinstance(value, list | tuple):
        return [_spelled(item) for item in value]
    return as_text(value, "") if isinstance(value, int | float) else value


def _in_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Returns `value` with `change` applied to every text within it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return [_in_texts(item, change) for item in value]
    if isinstance(value, dict):
        return {name: _in_texts(item, change) for name, item in value.items()}
    return value
