"""Listings as one HTML page that loads nothing: a tree that opens and closes, and a table that can be read anywhere."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; color: #1c2733; }
summary { cursor: pointer; }
details details, .leaf { margin-left: 1.4rem; }
.leaf, summary, td { font-family: ui-monospace, monospace; font-size: 13px; white-space: pre-wrap; }
.dim { color: #5f6f80; }
.share { display: inline-block; height: .6rem; background: #7aa6d8; vertical-align: middle; margin-left: .6rem; }
table { border-collapse: collapse; }
td, th { padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #e2e7ec; }
td:first-child, th:first-child { text-align: left; }
.bad { color: #b3261e; font-weight: 600; }
"""


def tree(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """The paths as a tree; a bar is the share of all parameters."""
    nested: dict[str, Any] = {}
    for row in rows:
        *folders, last = row["path"].split("/")
        node = nested
        for part in folders:
            node = node.setdefault(part, {})
        node[last] = Leaf(row)
    total = sum(row["count"] for row in rows)
    return _page(title, f"<p>{len(rows):,} arrays, {total:,} numbers</p>" + _branches(nested, max(total, 1), depth=0))


class Leaf(dict):
    """A row at the end of a branch."""


def _count(node: dict[str, Any]) -> int:
    return node["count"] if isinstance(node, Leaf) else sum(map(_count, node.values()))


def _branches(node: dict[str, Any], total: int, depth: int) -> str:
    parts = []
    for name, child in node.items():
        count = _count(child)
        bar = f'<span class="share" style="width:{max(1, 160 * count / total):.0f}px"></span>'
        label = f"{html.escape(name)} <span class=dim>{count:,}</span>{bar}"
        if isinstance(child, Leaf):
            told = [str(tuple(child["shape"])), child["dtype"]]
            told += [str(child[key]) for key in ("dims", "initializer", "sharding") if child.get(key)]
            parts.append(f'<div class="leaf">{label} <span class=dim>{html.escape("  ".join(told))}</span></div>')
        else:
            is_open = " open" if depth < 1 else ""
            parts.append(f"<details{is_open}><summary>{label}</summary>{_branches(child, total, depth + 1)}</details>")
    return "\n".join(parts)


def stats(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """A row for each array; what is not finite is marked."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in ("count",)))
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in columns)
    lines = ("<tr>" + "".join(_cell(name, row.get(name)) for name in columns) + "</tr>" for row in rows)
    return _page(title, f"<table><tr>{head}</tr>\n" + "\n".join(lines) + "</table>")


def _cell(name: str, value: Any) -> str:
    is_bad = name in ("nans", "infinities") and value or isinstance(value, float) and not math.isfinite(value)
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"<td{' class=bad' if is_bad else ''}>{html.escape(text)}</td>"


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>"
    )
