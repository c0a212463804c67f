"""Spans of labelled words and the tags that spell them: IOB1, IOB2 and IOBES."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from data.document import DataError


class Span(NamedTuple):
    """Words start … end - 1, which are one `type`."""

    type: str
    start: int
    end: int


Scheme = Literal["iob1", "iob2", "iobes"]
"""iob1: I-, and B- only where a span follows one of its own type. iob2: B- begins every span. iobes: E- ends it, too,
and S- is a span of one word; M- is read as I-, as Chinese corpora write it (Ramshaw & Marcus 1995; Tjong Kim Sang &
Veenstra 1999)."""

_PREFIXES = {"iob1": "IOB", "iob2": "IOB", "iobes": "IOBESM", "conlleval": "IOBESM"}
# Prefixes that must not come but within a span of their type.
_INSIDE = {"iob1": "", "iob2": "I", "iobes": "IE", "conlleval": ""}


def spans_from_tags(tags: Sequence[str], scheme: Scheme | Literal["conlleval"]) -> list[Span]:
    """Returns the spans of one sentence, in order.

    Args:
      tags: one a word, such as "B-PER", "O" or, where spans have no type, "B".
      scheme: what the tags follow; or "conlleval", which reads all schemes and takes a tag out of place as the
        beginning of a span, as the official program of CoNLL-2003 does.

    Raises DataError for a tag that the scheme does not have, a tag out of place and a span that iobes does not end.
    """
    spans: list[Span] = []
    opened: tuple[str, int] | None = None  # type and start
    parsed = [_parse(tags, i, scheme) for i in range(len(tags))]
    for i, (prefix, kind) in enumerate([*parsed, ("O", "")]):
        continues = opened is not None and prefix in ("I", "E") and kind == opened[0]
        unfinished = scheme == "iobes" and opened is not None and not continues
        unbegun = prefix in _INSIDE[scheme] and not continues
        if scheme == "iob1" and prefix == "B":
            unbegun = opened is None or kind != opened[0]
        if unfinished or unbegun:
            raise DataError(_complaint(tags, i, scheme))
        if not continues:
            if opened is not None:
                spans.append(Span(*opened, i))
            opened = None if prefix == "O" else (kind, i)
        if prefix in ("E", "S") and opened is not None:
            spans.append(Span(*opened, i + 1))
            opened = None
    return spans


def tags_from_spans(spans: Iterable[tuple[str, int, int]], length: int, scheme: Scheme) -> list[str]:
    """Returns `length` tags that spell the spans; raises DataError where these overlap, are empty or go beyond."""
    tags = ["O"] * length
    last = Span("", 0, 0)
    for span in sorted((Span(*span) for span in spans), key=lambda span: (span.start, span.end)):
        kind, start, end = span
        if not 0 <= start < end <= length:
            raise DataError(f"span {tuple(span)} must hold at least one of the {length} words and no other")
        if start < last.end:
            raise DataError(f"spans {tuple(last)} and {tuple(span)} overlap, which tags cannot spell")
        prefixes = ["I"] * (end - start)
        if scheme != "iob1" or (last.end == start > 0 and last.type == kind):
            prefixes[0] = "B"
        if scheme == "iobes":
            prefixes[-1] = "E" if end - start > 1 else "S"
        tags[start:end] = [f"{prefix}-{kind}" if kind else prefix for prefix in prefixes]
        last = span
    return tags


def convert(tags: Sequence[str], source: Scheme | Literal["conlleval"], target: Scheme) -> list[str]:
    """Returns tags of the scheme `target` with the spans that `tags` have in `source`; raises DataError as above."""
    return tags_from_spans(spans_from_tags(tags, source), len(tags), target)


def _parse(tags: Sequence[str], place: int, scheme: str) -> tuple[str, str]:
    """Prefix and type of a tag."""
    prefix, hyphen, kind = tags[place].partition("-")
    if len(prefix) != 1 or prefix not in _PREFIXES[scheme] or (prefix == "O" and hyphen):
        known = "O, " + ", ".join(f"{known}-TYPE" for known in _PREFIXES[scheme] if known != "O")
        raise DataError(f"tag {place} is {tags[place]!r}, but {scheme} has {known}")
    return prefix.replace("M", "I"), kind


def _complaint(tags: Sequence[str], place: int, scheme: str) -> str:
    before = f"after {tags[place - 1]}" if place else "at the beginning"
    what = f"tag {place} is {tags[place]}" if place < len(tags) else f"the {len(tags)} tags end"
    rule = {
        "iob1": "B- may only follow a span of the same type",
        "iob2": "I- may only go on with a span of the same type that B- began",
        "iobes": "a span goes from B- over I- to E- of one type, or is S-",
    }
    return f"{what} {before}, but in {scheme} {rule[scheme]}"
