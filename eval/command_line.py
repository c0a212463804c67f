"""What the commands of this folder have in common. Imports no JAX, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import sys


def add_run(parser: argparse.ArgumentParser) -> None:
    """RUN and --step."""
    parser.add_argument("run", metavar="RUN", help="A run directory.")
    parser.add_argument(
        "--step",
        type=_step,
        default="latest",
        metavar="latest|best|N",
        help="Which checkpoint: the latest, the one with the lowest validation loss, or that of step N.",
    )


def _step(text: str) -> int | str:
    if text in ("latest", "best"):
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is neither latest, best nor a number")


def print_anything() -> None:
    """Let stdout write out, as \\u…, what its encoding lacks, where it would fail."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
