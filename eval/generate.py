"""`python -m eval.generate RUN --prompt TEXT`: let a run's model write."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from eval.command_line import add_run, print_anything
from eval.text_stream import printable
from train.command_line import user_errors
from train.config import UserError


def __getattr__(name: str):
    """`generate` and `Completion`; JAX is imported only when one of them is asked for."""
    if name in ("Completion", "generate"):
        from eval import completion

        return getattr(completion, name)
    raise AttributeError(f"module 'eval.generate' has no attribute {name!r}")


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
    parser.add_argument("--temperature", type=float, default=1.0, help="Divides the logits; default 1, 0 is greedy.")
    parser.add_argument("--greedy", action="store_true", help="Always the most likely token: --temperature 0.")
    parser.add_argument("--top-k", type=int, metavar="K", help="Only the K most likely tokens.")
    parser.add_argument("--top-p", type=float, metavar="P", help="Only the most likely tokens, up to mass P.")
    parser.add_argument("--min-p", type=float, metavar="P", help="Only tokens P times as likely as the likeliest.")
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="More than 1 makes tokens of the text less likely.",
    )
    parser.add_argument("--seed", type=int, default=0, help="The same seed gives the same texts; default 0.")
    parser.add_argument("--samples", type=int, default=1, help="Texts for each prompt; default 1.")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="Tokens of each text; default 200.")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="End before TEXT is written; repeatable."
    )
    parser.add_argument("--json", action="store_true", help="Print a JSON list, one object for each text.")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    print_anything()
    with user_errors():
        try:
            _generate(options)
        except BrokenPipeError:  # the reader has seen enough; stdout must not be flushed into the pipe at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            print()
            return 130
    return 0


def _generate(options: argparse.Namespace) -> None:
    prompts = options.prompt + [_read(path) for path in options.prompt_file] or [""]

    from eval.completion import generate
    from model.decoding import Sampling
    from train.run import load_run

    try:
        sampling = Sampling(
            temperature=0.0 if options.greedy else options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    run = load_run(options.run, options.step)
    is_live = not options.json and len(prompts) == options.samples == 1
    not_shown = [printable(prompts[0])]  # until the first text comes, because a mistake may be found before

    def show(_: int, text: str) -> None:
        print(not_shown.pop() if not_shown else "", printable(text), sep="", end="", flush=True)

    started = time.monotonic()
    completions = generate(
        run.model,
        run.params,
        run.tokenizer,
        prompts,
        sampling=sampling,
        seed=options.seed,
        max_new_tokens=options.max_new_tokens,
        samples=options.samples,
        stop=options.stop,
        is_prefix=run.reads_prefixes,
        on_text=show if is_live else None,
    )
    rate = sum(completion.tokens for completion in completions) / (time.monotonic() - started)
    if options.json:
        shared = {
            "run": str(run.directory),
            "step": run.step,
            "seed": options.seed,
            "sampling": asdict(sampling),
            "tokens_per_second": round(rate, 1),
        }
        texts = [
            {**asdict(completion), "sample": i % options.samples, **shared} for i, completion in enumerate(completions)
        ]
        print(json.dumps(texts, indent=2))
    elif is_live:
        print(*not_shown)
    else:
        for i, completion in enumerate(completions):
            print(f"--- prompt {i // options.samples + 1}, sample {i % options.samples + 1} ---")
            print(printable(completion.prompt + completion.text))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").removesuffix("\n")
    except OSError as error:
        raise UserError(f"--prompt-file: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt-file: {path} is not UTF-8 at byte {error.start}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
