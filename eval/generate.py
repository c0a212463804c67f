"""`python -m eval.generate RUN --prompt TEXT`: let a run's model write."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.command_line import add_run, add_sampling, print_anything
from eval.prompt_files import read_prompts, write_texts
from eval.text_stream import printable
from train.command_line import user_errors
from train.config import UserError

if TYPE_CHECKING:
    from eval.batch_decoding import Prompt
    from train.run import Run

# Of the flags below, in the order of the dataclasses they fill.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_SEARCH = ("length_penalty", "length_normalization", "coverage_penalty", "num_groups", "diversity_penalty",
           "early_stopping", "n_best")  # fmt: skip
_FLAGS = {"num_groups": "--beam-groups", "temperature": "--temperature or --greedy"}  # not named after their field


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.generate", description="Let a run's model continue prompts.", allow_abbrev=False
    )
    add_run(parser)
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="Continue TEXT; repeatable.")
    parser.add_argument(
        "--prompt-file",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="Continue the text of FILE, without its last line end; repeatable. No prompt: the empty one.",
    )
    parser.add_argument("--max-new-tokens", type=int, default=200, help="Tokens of each text; default 200.")
    parser.add_argument("--min-new-tokens", type=int, default=0, metavar="N", help="No end before N tokens.")
    parser.add_argument("--no-repeat-ngram", type=int, default=0, metavar="N", help="No N-gram is written twice.")
    parser.add_argument("--first-token", metavar="TOKEN", help="Begin each text with this token: mBART's language.")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="End before TEXT is written; repeatable."
    )
    parser.add_argument("--json", action="store_true", help="Print a JSON list, one object for each text.")
    sampling = parser.add_argument_group("sampling, without --beam-size")
    add_sampling(sampling)
    sampling.add_argument("--samples", type=int, help="Texts for each prompt; default 1.")
    _add_search(parser.add_argument_group("beam search"))
    _add_files(parser.add_argument_group("a file of prompts"))
    return parser.parse_args(argv)


def _add_search(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--beam-size", type=int, metavar="N", help="Search with N hypotheses for the best text.")
    group.add_argument("--n-best", type=int, metavar="N", help="Texts for each prompt, best first; default 1.")
    group.add_argument("--length-penalty", type=float, metavar="ALPHA", help="More favours longer texts; default 0.")
    group.add_argument(
        "--length-normalization", choices=("gnmt", "power"), help="Divide by ((5 + length) / 6)^ALPHA or length^ALPHA."
    )
    group.add_argument("--coverage-penalty", type=float, metavar="BETA", help="For source tokens without attention.")
    group.add_argument("--beam-groups", type=int, dest="num_groups", metavar="N", help="Diverse beam search.")
    group.add_argument("--diversity-penalty", type=float, metavar="LAMBDA", help="For tokens of the groups before.")
    group.add_argument(
        "--early-stopping",
        choices=("first", "bound", "never"),
        help="Stop at N ended texts, when none can become better (default), or never.",
    )


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--input", type=Path, metavar="FILE", help="Prompts: the lines of a file, or of .jsonl a field.")
    group.add_argument("--field", metavar="NAME", help="The field of a .jsonl file; default prompt.")
    group.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="The texts, a line each; as .jsonl the records of --input, with the text or list of texts added.",
    )
    group.add_argument("--output-field", metavar="NAME", help="The field that is added; default generated.")


def main(argv: list[str]) -> int:
    options = parse(argv)
    print_anything()
    with user_errors():
        try:
            _generate(options)
        except KeyboardInterrupt:
            print()
            return 130
    return 0


def _generate(options: argparse.Namespace) -> None:
    _check(options)
    prompts, records = options.prompt + [_read(path) for path in options.prompt_file] or [""], []
    output_field = options.output_field or "generated"
    if options.input:
        prompts, records = read_prompts(options.input, options.field or "prompt", output_field)

    from eval.completion import generate, token_of
    from eval.source_reader import reads_sources
    from model.decoding import Constraints
    from train.run import load_run

    try:
        method = _method(options)
        constraints = Constraints(no_repeat_ngram=options.no_repeat_ngram, min_new_tokens=options.min_new_tokens)
    except ValueError as error:
        raise UserError(str(error)) from error
    run = load_run(options.run, options.step)
    if options.first_token is not None:
        constraints = replace(constraints, first_token=token_of(run.tokenizer, options.first_token))
    each = options.n_best or options.samples or 1
    is_live = not options.json and not options.input and len(prompts) == each == 1
    not_shown = [printable(prompts[0])] if is_live else []  # until the first text comes: a mistake may be found before

    def show(_: int, text: str) -> None:
        print(not_shown.pop() if not_shown else "", printable(text), sep="", end="", flush=True)

    started = time.monotonic()
    completions = generate(
        run.model,
        run.params,
        run.tokenizer,
        _sources(run, prompts, options.max_new_tokens) if reads_sources(run) else prompts,
        sampling=method,
        constraints=constraints,
        seed=options.seed or 0,
        max_new_tokens=options.max_new_tokens,
        samples=1 if options.samples is None else options.samples,
        stop=options.stop,
        is_prefix=run.reads_prefixes,
        on_text=show if is_live else None,
    )
    completions = [replace(completion, prompt=prompts[i // each]) for i, completion in enumerate(completions)]
    rate = sum(completion.tokens for completion in completions) / (time.monotonic() - started)
    if options.input:
        texts = [completion.text for completion in completions]
        write_texts(options.output, [texts[i : i + each] for i in range(0, len(texts), each)], records, output_field)
        print(f"{options.output}: {len(texts)} texts, {rate:.1f} tokens a second")
    elif options.json:
        shared = {
            "run": str(run.directory),
            "step": run.step,
            "seed": options.seed or 0,
            "beam_search" if options.beam_size else "sampling": asdict(method),
            "constraints": asdict(constraints),
            "tokens_per_second": round(rate, 1),
        }
        texts = [{**asdict(completion), "sample": i % each, **shared} for i, completion in enumerate(completions)]
        print(json.dumps(texts, indent=2))
    elif is_live:
        print(*not_shown)
    else:
        for i, completion in enumerate(completions):
            print(f"--- prompt {i // each + 1}, sample {i % each + 1} ---")
            print(printable(completion.prompt + completion.text))


def _sources(run: Run, texts: Sequence[str], max_new_tokens: int) -> list[Prompt]:
    """What a model that writes texts from texts reads of each."""
    from eval.completion import print_notes
    from eval.source_reader import SourceReader

    reader = SourceReader(run)
    found = [reader.read(text, max_new_tokens) for text in texts]
    cut = [(i, left_out) for i, (_, left_out) in enumerate(found, 1) if left_out]
    print_notes([f"the last {left_out:,} tokens of prompt {i} do not fit and are not read" for i, left_out in cut])
    return [prompt for prompt, _ in found]


def _check(options: argparse.Namespace) -> None:
    """Refuse flags that have nothing to act on."""

    def given(names: Sequence[str]) -> str:
        """The flags of these fields that were given."""
        flags = [
            _FLAGS.get(name, f"--{name.replace('_', '-')}") for name in names if getattr(options, name) is not None
        ]
        return ", ".join(flags)

    problems = []
    if options.beam_size is None and (flags := given(_SEARCH)):
        problems.append(f"{flags}: for a beam search only; give a --beam-size")
    if options.beam_size is not None and (flags := given([*_SAMPLING, "seed", "samples"])):
        problems.append(f"{flags}: for sampling only; a beam search (--beam-size) draws nothing")
    if (options.input is None) != (options.output is None):
        problems.append("--input and --output belong together: one file is read, the other written")
    if options.input and (options.prompt or options.prompt_file or options.json):
        problems.append("--input: takes the place of --prompt, --prompt-file and --json")
    if options.field and not _is_jsonl(options.input):
        problems.append("--field: only the lines of a .jsonl --input have fields")
    if options.output_field and not _is_jsonl(options.output):
        problems.append("--output-field: only the lines of a .jsonl --output have fields")
    if options.output and not _is_jsonl(options.output) and (options.n_best or options.samples or 1) > 1:
        problems.append(f"--output: a line of {options.output} holds one text, not several; name it .jsonl")
    if problems:
        raise UserError(*problems)


def _is_jsonl(path: Path | None) -> bool:
    return path is not None and path.suffix == ".jsonl"


def _method(options: argparse.Namespace) -> Any:
    """`Sampling` or `BeamSearch`; raises ValueError."""
    from model.beam_search import BeamSearch
    from model.decoding import Sampling

    names = _SAMPLING if options.beam_size is None else ("beam_size", *_SEARCH)
    fields = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return Sampling(**fields) if options.beam_size is None else BeamSearch(**fields)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").removesuffix("\n")
    except OSError as error:
        raise UserError(f"--prompt-file: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt-file: {path} is not UTF-8 at byte {error.start}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
