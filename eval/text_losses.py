"""What `python -m eval RUN` measures of a run that is no task's: its loss on validation data or on any text."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from data.config import Files
from train.config import Mesh, UserError

if TYPE_CHECKING:
    from data.token_cache import TokenCache
    from train.run import Run


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """What the table shows, by name."""
    import jax

    from eval.evaluators import loss_evaluator
    from train import sharding
    from train.run import load_run

    run = load_run(options.run, options.step)
    config = run.config
    length = config.data.length if options.length is None else options.length
    stride = length if options.stride is None else options.stride
    batch_size = options.batch_size
    if batch_size is None:
        batch_size = config.evaluation.batch_size or config.batch_size
    _check(run, length, stride, batch_size)
    source, cache = _cache(run, options.text or [], options.detokenize)
    # A copy of the parameters on every device; the batch is split.
    mesh = sharding.make_mesh(Mesh())
    ways = sharding.batch_ways(mesh, config.mesh.rules)
    evaluator = loss_evaluator(
        config,
        cache,
        run.tokenizer,
        mesh=mesh,
        length=length,
        batch_size=-(-batch_size // ways) * ways,
        stride=None if stride == length else stride,
    )
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    measured = evaluator(jax.device_put(run.params, everywhere))
    return {
        "run": str(run.directory),
        "step": run.step,
        "objective": config.objective.kind,
        "data": source,
        "documents": cache.num_documents,
        "words": cache.num_words,
        "bytes": cache.num_bytes,
        **measured,
        "tokens": int(measured["tokens"]),
        "length": length,
        "stride": stride,
        "detokenized": options.detokenize or run.config.data.cleaning.detokenize,
    }


def _check(run: Run, length: int, stride: int, batch_size: int) -> None:
    problems = []
    if length < 2:
        problems.append(f"--length must be at least 2, not {length}")
    limit = run.config.model.max_length
    if run.config.model.positions == "learned" and length > limit:
        problems.append(f"--length must be at most {limit}, the number of learned positions, not {length}")
    if not 0 < stride <= max(length, 1):
        problems.append(f"--stride must be from 1 to the length {length}, not {stride}")
    if batch_size < 1:
        problems.append(f"--batch-size must be at least 1, not {batch_size}")
    if problems:
        raise UserError(*problems)


def _cache(run: Run, texts: list[str], detokenize: str | None) -> tuple[str, TokenCache]:
    """What is measured, in words and in tokens."""
    from data.cache import build
    from data.pipeline import prepare

    def report(line: str) -> None:
        print(line, file=sys.stderr)

    data = run.config.data
    if detokenize is not None:
        data = data.model_copy(update={"cleaning": data.cleaning.model_copy(update={"detokenize": detokenize})})
    if texts:
        sources = tuple(Files(path=text) for text in texts)
        return ", ".join(texts), build(sources, data.cleaning, run.tokenizer, data.cache_dir, report=report)
    corpus = prepare(data, tokenizer=run.tokenizer, objective=run.config.objective, report=report)
    if corpus.validation is None:
        raise UserError(f"{run.directory} held out no validation data; name a text with --text FILE")
    return "validation", corpus.validation


def table(result: dict[str, Any]) -> str:
    """Aligned lines for a person."""
    windows = f"windows of {result['length']} tokens" + (
        f", one every {result['stride']}" if result["stride"] < result["length"] else ", one after the other"
    )
    if result["detokenized"] != "none":
        windows += f"; {result['detokenized']} text detokenized after its words and bytes were counted"
    ends = "  (ends of documents included)" if result["objective"] == "causal_lm" else ""
    lines = [
        ("run", result["run"]),
        ("step", f"{result['step']:,}"),
        ("objective", result["objective"]),
        ("data", result["data"]),
        ("documents", f"{result['documents']:,}"),
        ("predicted tokens", f"{int(result['tokens']):,}{ends}"),
        ("words", f"{result['words']:,}  (each line end is one)"),
        ("bytes", f"{result['bytes']:,}"),
        *(_measured(result, name) for name in result if name in _FORMS or name.endswith(("_loss", "_accuracy"))),
        ("protocol", windows),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


# Measure → its form, with the unit.
_FORMS = {
    "loss": "{:.4f}  nats per token",
    "perplexity": "{:,.3f}  per token",
    "word_perplexity": "{:,.3f}  per word",
    "bits_per_byte": "{:.4f}",
}


def _measured(result: dict[str, Any], name: str) -> tuple[str, str]:
    form = _FORMS.get(name, "{:.2%}" if name.endswith("accuracy") else "{:.4f}")
    return name.replace("_", " "), form.format(result[name])
