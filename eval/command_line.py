"""What the commands of this folder have in common. Imports no JAX, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from pydantic import ValidationError

from data.task_config import TextToText
from train.command_line import read_config
from train.config import Decoding, Experiment, UserError


def add_run(parser: argparse.ArgumentParser) -> None:
    """RUN and --step."""
    parser.add_argument("run", metavar="RUN", help="A run directory.")
    add_step(parser)


def add_step(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--step",
        type=_step,
        default="latest",
        metavar="latest|best|N|average:N",
        help="Which checkpoint: the latest, the best by the run's evaluation.metric, that of step N, or the mean of "
        "the newest N.",
    )


def _step(text: str) -> int | str:
    if text in ("latest", "best") or re.fullmatch(r"average:[1-9]\d*", text):
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is neither latest, best, a number nor average:N")


def run_config(run: str | Path) -> Experiment:
    """The experiment of a run directory. Raises UserError where there is none."""
    path = Path(run) / "config.json"
    if not path.is_file():
        raise UserError(f"{run} is not a run directory: it has no config.json")
    return read_config(path)


def add_sampling(
    parser: argparse._ActionsContainer, *, temperature: float | None = None, top_p: float | None = None
) -> None:
    """A flag for each field of `Sampling`, and --seed; None where it is not given and has no default here."""
    either = parser.add_mutually_exclusive_group()
    text = f"Divides the logits; default {1 if temperature is None else temperature}, 0 is greedy."
    either.add_argument("--temperature", type=float, default=temperature, help=text)
    either.add_argument("--greedy", action="store_const", const=0.0, dest="temperature", help="--temperature 0.")
    parser.add_argument("--top-k", type=int, metavar="K", help="Only the K most likely tokens.")
    text = "Only the most likely tokens, up to mass P" + ("." if top_p is None else f"; default {top_p}.")
    parser.add_argument("--top-p", type=float, default=top_p, metavar="P", help=text)
    parser.add_argument("--min-p", type=float, metavar="P", help="Only tokens P times as likely as the likeliest.")
    parser.add_argument("--repetition-penalty", type=float, help="More than 1 makes tokens of the text less likely.")
    parser.add_argument("--seed", type=int, help="The same seed gives the same texts; default 0.")


def add_decoding(parser: argparse._ActionsContainer) -> None:
    """A flag for each field of `evaluation.decoding`."""
    for name, field in Decoding.model_fields.items():
        text = f"{field.description.rstrip('.')}; default: the run's evaluation.decoding."
        metavar = "TOKEN" if name == "first_token" else "N"
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=text)


_OF_BEAMS = ("length_penalty", "coverage_penalty")


def decoding_of(options: argparse.Namespace, config: Experiment) -> Decoding | None:
    """The run's `evaluation.decoding` with what the flags say otherwise, or None where none is given."""
    given = {name: value for name in Decoding.model_fields if (value := getattr(options, name)) is not None}
    changes = {name: None if value == "none" else value for name, value in given.items()}
    if not changes:
        return None
    if not isinstance(config.objective, TextToText):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in changes)
        raise UserError(f"{flags}: for runs that write texts alone; {options.run} learned {config.objective.kind}")
    own = config.evaluation.decoding.model_dump()
    if str(changes.get("beam_size", own["beam_size"])) == "1":
        if flags := ", ".join(f"--{name.replace('_', '-')}" for name in _OF_BEAMS if name in changes):
            raise UserError(f"{flags}: of a beam search alone; give a --beam-size of at least 2")
        own = {name: value for name, value in own.items() if name not in _OF_BEAMS}
    try:
        return Decoding.model_validate(own | changes)
    except ValidationError as error:
        told = ((str(problem["loc"][0]).replace("_", "-"), problem["msg"]) for problem in error.errors())
        raise UserError(*(f"--{flag}: {message[0].lower()}{message[1:]}" for flag, message in told)) from error


def print_anything() -> None:
    """Let stdout write out, as \\u…, what its encoding lacks, where it would fail."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
