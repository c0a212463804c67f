"""`python -m experiments list`: every paper, variant and size."""

from __future__ import annotations

import argparse
import json
import sys

from train.command_line import papers, user_errors, variants


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("command", choices=["list"])
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    options = parser.parse_args(argv)
    with user_errors():
        rows = [row(paper, name) for paper, path in papers().items() for name in variants(path)]
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    widths = {key: max(len(key), *(len(f"{row[key]:,}" if key == "parameters" else str(row[key])) for row in rows)) for key in rows[0]}
    print("  ".join(f"{key:<{widths[key]}}" for key in rows[0]))
    for row_ in rows:
        print("  ".join(f"{value:>{widths[key]},}" if isinstance(value, int) else f"{value:<{widths[key]}}" for key, value in row_.items()))
    return 0
