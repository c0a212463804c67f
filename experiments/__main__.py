"""`python -m experiments list`: every paper, variant and size."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console
from rich.table import Table

from train.command_line import papers, user_errors, variants
from train.config import Experiment


def size(experiment: Experiment) -> int:
    """Number of parameters, counted on the abstract tree."""
    import jax

    from model import tree
    from model.transformer import initialize
    from train.objective import make_model

    model = make_model(experiment)
    return tree.count(jax.eval_shape(lambda: initialize(model, jax.random.key(0))))


def rows() -> list[dict[str, object]]:
    """One row a variant, the papers in alphabetical order."""
    found = []
    for paper, path in papers().items():
        for name, variant in variants(path).items():
            experiment = variant()
            about = (variant.__doc__ or "").strip().split("\n")[0]
            found.append(
                {
                    "paper": paper,
                    "variant": f"{paper}:{name}",
                    "parameters": size(experiment),
                    "steps": experiment.num_steps,
                    "about": about,
                }
            )
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("command", choices=["list"], help="Print every paper, variant and size.")
    parser.add_argument("--json", action="store_true", help="The same as JSON.")
    options = parser.parse_args(argv)
    with user_errors():
        found = rows()
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    table = Table(box=None, header_style="bold")
    for column in found[0]:
        table.add_column(column, justify="right" if column in ("parameters", "steps") else "left")
    for row in found:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
