"""`python -m eval.report RUN`: one page about a run that needs nothing else, `RUN/report/index.html`."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.storage import write_atomically
from eval.command_line import run_config
from eval.report_scores import scores_sections
from eval.text_stream import escaped
from train.command_line import user_errors
from train.config import Experiment

if TYPE_CHECKING:
    from eval.completion import Completion

_ENDINGS = {
    "stop": "stopped at a stop text",
    "end": "ended by itself",
    "length": "cut at the length asked for, or the longest of the model",
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.report",
        description="Write RUN/report/index.html from what is in the run directory.",
    )
    parser.add_argument("run", metavar="RUN", help="A run directory, finished or not.")
    options = parser.parse_args(argv)
    with user_errors():
        print(write_report(Path(options.run), None))
    return 0


def write_report(run_directory: Path, samples: Sequence[Completion] | None) -> Path:
    """Write the page and return its path. Samples are kept, so that None shows those of the last time.

    Works at any time of a run; what is not there is left out. Raises UserError where there is no run.
    """
    run_directory = Path(run_directory)
    config = run_config(run_directory)
    folder = run_directory / "report"
    folder.mkdir(exist_ok=True)
    kept = folder / "samples.json"
    if samples is not None:
        write_atomically(kept, json.dumps([asdict(sample) for sample in samples], indent=1).encode())
    texts = json.loads(kept.read_text("utf-8")) if kept.exists() else []
    page = folder / "index.html"
    # A lone surrogate, which no tokenizer should make, must not cost the page.
    write_atomically(page, _page(run_directory, config, texts).encode("utf-8", "backslashreplace"))
    return page


def _page(run_directory: Path, config: Experiment, samples: list[dict[str, Any]]) -> str:
    from train.metrics import is_out_of_patience, read_metrics

    lines = read_metrics(run_directory)
    train = [line for line in lines if "loss" in line]
    validations = [{"step": line["step"]} | line["validation"] for line in lines if "validation" in line]
    last_step = max((line["step"] for line in lines), default=0)
    progress = "finished" if last_step >= config.num_steps else f"{last_step:,} of {config.num_steps:,} steps so far"
    history = [line[config.evaluation.metric] for line in validations if config.evaluation.metric in line]
    if is_out_of_patience(config.evaluation, history):
        progress = f"finished early, after {last_step:,} steps"
    parts = [
        f"<h1>{escaped(config.name)}</h1>",
        f'<p class="subtitle">{escaped(str(run_directory))} · {progress}</p>',
        _numbers(config, train, validations),
        *scores_sections(run_directory),
        *_pictures(config, train, validations),
        *_samples(samples),
        "<h2>Details</h2>",
        _fields("Config", dict(_flat(config.model_dump(mode="json")))),
    ]
    environment = run_directory / "environment.json"
    if environment.exists():
        parts.append(_fields("Environment", dict(_flat(json.loads(environment.read_text("utf-8"))))))
    style = Path(__file__).with_name("report.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Whatever a model wrote, the page loads nothing and runs nothing.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escaped(config.name)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


# Parts of the page ------------------------------------------------------------------------------------------


def _numbers(config: Experiment, train: list[dict], validations: list[dict]) -> str:
    """The summary: a name, a number and a remark each."""
    found: list[tuple[str, str, str]] = []
    scored = [line for line in validations if math.isfinite(line["loss"])]
    unit = _unit(config)
    if scored:
        last, best = scored[-1], min(scored, key=lambda line: line["loss"])
        found.append(("Validation loss", f"{last['loss']:.4f}", f"{unit}, at step {last['step']:,}"))
        found.append(("Best validation loss", f"{best['loss']:.4f}", f"at step {best['step']:,}"))
        for name, title, remark in (
            ("perplexity", "Perplexity", "per token"),
            ("word_perplexity", "Word perplexity", "line ends are words too"),
            ("bits_per_byte", "Bits per byte", "of UTF-8"),
        ):
            if name in last:
                found.append((title, _number(last[name]), remark))
    elif train:
        found.append(("Training loss", f"{train[-1]['loss']:.4f}", f"{unit}, at step {train[-1]['step']:,}"))
    found.append(("Parameters", f"{_count_parameters(config):,}", f"stored as {config.model.param_dtype}"))
    if train:
        last = train[-1]
        tokens = last["step"] * config.batch_size * config.data.length
        if not config.is_task:  # whose examples are of unequal length
            found.append(("Tokens seen", f"{tokens:,}", f"{last['step']:,} steps"))
        found.append(("Time", _duration(last["elapsed_seconds"]), "evaluation and saving included"))
        for name, title, form, remark in (
            ("tokens_per_second", "Tokens per second", ",.0f", "median, in training"),
            ("mfu", "Model FLOPs utilization", ".1%", "median, of the devices' peak"),
        ):
            if values := [line[name] for line in train if name in line]:
                found.append((title, format(statistics.median(values), form), remark))
    cards = (f"<div><dt>{name}</dt><dd>{value}<small>{remark}</small></dd></div>" for name, value, remark in found)
    return '<dl class="numbers">\n' + "\n".join(cards) + "\n</dl>"


def _count_parameters(config: Experiment) -> int:
    import jax

    from model import tree
    from model.transformer import initialize
    from train.objective import make_model

    model = make_model(config)
    return tree.count(jax.eval_shape(lambda: initialize(model, jax.random.key(0))))


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= value < 1e9 else f"{value:,.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02} h" if minutes >= 60 else f"{minutes}:{seconds:02} min"


def _unit(config: Experiment) -> str:
    """Of the loss."""
    kinds = {"regression": "squared error", "classification": "nats per example", "span_answering": "nats per example"}
    return kinds.get(config.objective.kind, "nats per token")


def _pictures(config: Experiment, train: list[dict], validations: list[dict]) -> Iterator[str]:
    from eval import curves

    def series(lines: list[dict], name: str) -> curves.Series:
        lines = [line for line in lines if name in line]
        return [line["step"] for line in lines], [line[name] for line in lines]

    if not train and not validations:
        return
    yield "<h2>Curves</h2>"
    uri = curves.loss_curves(series(train, "loss"), series(validations, "loss"), _unit(config))
    yield f'<div class="panel"><img alt="Training and validation loss over steps" src="{uri}"></div>'
    titles = {
        "learning_rate": "learning rate",
        "grad_norm": "gradient norm (before clipping)",
        "tokens_per_second": "tokens per second",
    }
    small = [(title, series(train, name)) for name, title in titles.items()]
    if small := [(title, points) for title, points in small if points[0]]:
        uri = curves.small_curves(small)
        yield f'<div class="panel"><img alt="{", ".join(title for title, _ in small)}" src="{uri}"></div>'


def _samples(samples: list[dict[str, Any]]) -> Iterator[str]:
    if samples:
        yield "<h2>Samples</h2>"
    for sample in samples:
        prompt, text = escaped(sample["prompt"]), escaped(sample["text"])
        remark = f"{sample['tokens']:,} new tokens, {_ENDINGS[sample['finish']]}"
        if not prompt.strip():  # it cannot be seen
            remark += f"; the prompt was {escaped(json.dumps(sample['prompt']))}"
        shown = f"<mark>{prompt}</mark>{text}" if prompt.strip() else text
        yield f'<div class="sample"><pre>{shown}</pre><p>{remark}</p></div>'


def _fields(title: str, fields: dict[str, str]) -> str:
    rows = "\n".join(f"<tr><td>{escaped(name)}</td><td>{escaped(value)}</td></tr>" for name, value in fields.items())
    return f"<details><summary>{title}</summary>\n<table>\n{rows}\n</table></details>"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted paths and values of nested JSON."""
    if isinstance(value, dict) or isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(part, f"{path}.{name}" if path else str(name))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
