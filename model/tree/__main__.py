"""`python -m model.tree tree|stats|slice|diff|find`: look into any checkpoint, on one CPU.

What is opened, and how, says `archives.py`. The one place of this package that knows runs.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from model import tree
from model.text_table import aligned
from model.tree import page, statistics
from model.tree.archives import Archive, ArchiveError, open_archive
from train.command_line import nearest, user_errors
from train.config import UserError


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m model.tree",
        description="Look into a run, an orbax checkpoint of any program, or safetensors; no array is read before it "
        "is asked for.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="tree|stats|slice|diff|find", dest="command")

    def add(name: str, function: Any, text: str, formats: Sequence[str] = ("text", "json")) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("path", metavar="PATH", help="A run, a checkpoint, a safetensors folder or file.")
        command.add_argument("--step", type=int, help="Which checkpoint of a folder; the newest by default.")
        command.add_argument("--group", help="Of a run: params, ema or optimizer; of others, the name of an item.")
        for kind in formats[1:]:
            command.add_argument(f"--{kind}", action="store_const", const=kind, dest="format", help=f"Print {kind}.")
        command.set_defaults(run_command=function, format="text")
        return command

    patterns = dict(
        nargs="*", metavar="PATTERN", help="Only paths that one of these matches: * is any part, ** any parts."
    )
    add("tree", _tree, "Paths, shapes, types and sizes.", ("text", "json", "html")).add_argument("patterns", **patterns)
    command = add("stats", _stats, "Norms, means, extremes, zeros and NaNs.", ("text", "json", "html"))
    command.add_argument("patterns", **patterns)
    command.add_argument("--by-layer", action="store_true", help="A line for each layer of stacked arrays.")
    command.add_argument(
        "--singular-values", action="store_true", help="Of kernels: largest, smallest, effective rank."
    )
    command = add("slice", _slice, "One array or a part of it.")
    command.add_argument(
        "name", metavar="NAME[INDEX]", help="A path, with an index as NumPy has them: up/kernel[0,:,:5]."
    )
    command.add_argument("--output", type=Path, metavar="FILE", help="Write it to this .npy file.")
    command = add("diff", _diff, "What is other in a second checkpoint, the most changed first.")
    command.add_argument("other", metavar="OTHER", help="The second one, opened in the same way.")
    command.add_argument("patterns", **patterns)
    command.add_argument("--other-step", type=int, help="Its step; the newest by default.")
    command.add_argument("--by-layer", action="store_true", help="A line for each layer of stacked arrays.")
    command = add("find", _find, "Where a value, a NaN or a dead unit is.")
    command.add_argument("patterns", **patterns)
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--value", type=float, help="This number.")
    what.add_argument("--nan", action="store_const", const=math.nan, dest="value", help="NaNs.")
    what.add_argument("--dead", action="store_true", help="Units without a weight above --tolerance.")
    command.add_argument("--tolerance", type=float, default=0.0, help="How far from the number; default 0.")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    with user_errors():
        try:
            options.run_command(options)
        except ArchiveError as error:
            raise UserError(str(error)) from error
    return 0


def _open(options: argparse.Namespace, path: str | None = None, step: int | None = None) -> dict[str, Any]:
    """The arrays that the patterns leave, stacked ones by layer where that is asked for."""
    archive = open_archive(path or options.path, options.step if path is None else step, options.group)
    chosen = _chosen(archive, options.patterns)
    return statistics.layers(chosen) if getattr(options, "by_layer", False) else chosen


def _chosen(archive: Archive, patterns: Sequence[str]) -> dict[str, Any]:
    found: set[str] = set()
    for pattern in patterns or ["**"]:
        hits = set(filter(tree.glob(pattern), archive))
        if not hits:
            raise UserError(f"{pattern}: no path of {archive.path} is like that.{nearest(pattern, archive)}")
        found |= hits
    return {name: array for name, array in archive.items() if name in found}


# Commands


def _tree(options: argparse.Namespace) -> None:
    arrays = _open(options)
    facts = _facts(options)
    rows = [
        {
            "path": name,
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "bytes": array.nbytes,
            "count": array.size,
            "sharding": array.sharding,
            **facts.get(name, {}),
        }
        for name, array in arrays.items()
    ]
    if options.format != "text":
        print(json.dumps(rows, indent=1) if options.format == "json" else page.tree(options.path, rows))
        return
    columns = ["path", "shape", "dtype", "count", "bytes"]
    columns += [name for name in ("dims", "initializer", "decays", "sharding") if any(row.get(name) for row in rows)]
    lines = [columns] + [[_cell(name, row.get(name, "")) for name in columns] for row in rows]
    for name, count, size in [*_totals(rows), ("total", sum(r["count"] for r in rows), sum(r["bytes"] for r in rows))]:
        lines.append([name, "", "", f"{count:,}", readable_bytes(size), *[""] * (len(columns) - 5)])
    print("\n".join(aligned(lines, right=(3, 4))))


def _totals(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, int, int]]:
    """Sums by the first parts of the paths, as deep as there are at most a dozen."""
    for depth in (2, 1):
        sums: dict[str, list[int]] = {}
        for row in rows:
            parts = row["path"].split("/")
            total = sums.setdefault("/".join(parts[:depth]) + "/" if len(parts) > depth else row["path"], [0, 0])
            total[0] += row["count"]
            total[1] += row["bytes"]
        if len(sums) <= 12:
            break
    if 1 < len(sums) < len(rows):
        yield from ((name, *total) for name, total in sums.items())


def _facts(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What the config of a run knows of its parameters."""
    path = Path(options.path) / "config.json"
    if options.group == "optimizer" or not (Path(options.path) / "checkpoints").is_dir() or not path.is_file():
        return {}
    from train.facts import parameter_facts

    return {name: asdict(facts) for name, facts in parameter_facts(path).items()}


def _stats(options: argparse.Namespace) -> None:
    rows = []
    for name, array in _open(options).items():
        row = {"path": name, "shape": list(array.shape), **asdict(statistics.stats(array))}
        if options.singular_values:
            row |= _spectrum(name, array)
        rows.append(row)
    if options.format != "text":
        print(json.dumps(rows, indent=1) if options.format == "json" else page.stats(options.path, rows))
        return
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "count"))
    lines = [[name.replace("_", " ") for name in columns]]
    lines += [[_cell(name, row.get(name, "")) for name in columns] for row in rows]
    print("\n".join(aligned(lines, right=range(2, len(columns)))))


def _spectrum(name: str, array: Any) -> dict[str, Any]:
    try:
        values = statistics.singular_values(name, array)
    except ValueError:
        return {}
    rank = statistics.effective_rank(values)
    return {
        "largest_singular_value": float(values.max()),
        "least_singular_value": float(values.min()),
        "effective_rank": [round(float(r), 2) for r in np.atleast_1d(rank)],
    }


def _slice(options: argparse.Namespace) -> None:
    archive = open_archive(options.path, options.step, options.group)
    name, _, index = options.name.partition("[")
    if name not in archive:
        raise UserError(f"{name}: {archive.path} has no such path.{nearest(name, archive)}")
    try:
        part = archive[name][_index(f"[{index}" if index else "[...]")]
    except IndexError as error:
        raise UserError(str(error)) from error
    if options.output is not None:
        if options.output.suffix != ".npy":
            raise UserError(f"--output: {options.output} must end in .npy")
        try:
            np.save(options.output, part)
        except OSError as error:
            raise UserError(f"{options.output} cannot be written: {error.strerror}") from error
        print(f"{options.output}: {part.shape} {part.dtype}")
    elif options.format == "json":
        print(json.dumps(part.tolist()))
    else:
        print(f"{options.name} {part.shape} {part.dtype}")
        print(np.array2string(np.asarray(part, np.float32 if part.dtype.kind == "V" else None), threshold=200))


_PART = re.compile(r"\s*(?:(\.\.\.)|(-?\d+)|(-?\d*)\s*:\s*(-?\d*)\s*(?::\s*(\d*))?)\s*")


def _index(text: str) -> tuple[Any, ...]:
    """`[0, :5, ...]` as NumPy reads it."""
    parts = text.strip()[1:-1].split(",") if text.strip().endswith("]") else [""]
    found: list[Any] = []
    for part in parts:
        match = _PART.fullmatch(part)
        if match is None:
            raise UserError(f"{text}: expected an index such as [0], [1, :5] or [..., 2], not {part.strip()!r}")
        if match[1]:
            found.append(...)
        elif match[2]:
            found.append(int(match[2]))
        else:
            found.append(slice(*(int(match[i]) if match[i] else None for i in (3, 4, 5))))
    return tuple(found)


def _diff(options: argparse.Namespace) -> None:
    found = statistics.diff(_open(options), _open(options, options.other, options.other_step))
    if options.format == "json":
        print(json.dumps([asdict(one) for one in found], indent=1))
        return
    same = sum(one.kind == "same" for one in found)
    lines = [["path", "", "relative", "greatest", ""]]
    for one in found:
        if one.kind != "same":
            changed = one.kind == "changed"
            numbers = [f"{one.relative:.3g}", f"{one.greatest:.3g}"] if changed else ["", ""]
            lines.append([one.name, one.kind, *numbers, one.detail])
    if len(lines) > 1:
        print("\n".join(aligned(lines, right=(2, 3))))
    print(f"{same:,} of {len(found):,} arrays are the same")


def _find(options: argparse.Namespace) -> None:
    arrays = _open(options)
    if options.dead:
        found = statistics.find_dead(arrays, options.tolerance)
    else:
        found = statistics.find_value(arrays, options.value, options.tolerance)
    if options.format == "json":
        print(json.dumps([asdict(place) for place in found], indent=1))
        return
    for place in found:
        shown = ", ".join(str(list(index)) for index in place.first)
        print(f"{place.name}: {place.count:,}, at {shown}{' …' if place.count > len(place.first) else ''}")
    if not found:
        print(f"not found in {len(arrays):,} arrays")


# Cells


def readable_bytes(size: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,} B" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError


def _cell(name: str, value: Any) -> str:
    if name == "bytes":
        return readable_bytes(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"({', '.join(map(str, value))})" if isinstance(value, list) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
