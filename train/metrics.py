"""What a run writes about itself while it runs: metrics.jsonl, TensorBoard events, a progress display."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tensorboardX import SummaryWriter

from data.storage import write_atomically
from model import tree
from model.config import TransformerConfig
from train.config import Evaluation, lower_is_better

# Dense bfloat16 TFLOP/s by the makers' data sheets; the first name found in the device's own name counts.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100": 989.4,
    "A100": 312.0,
    "L4": 121.0,
    "TPU v6 lite": 918.0,
    "TPU v5p": 459.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,
    "TPU v4": 275.0,
}


def flops_per_token(params: Any, config: TransformerConfig, length: int, target_length: int = 0) -> float:
    """Model FLOPs of one training token, forward and backward: 6 per weight used in a product, plus attention.

    Attention counts 12 * layers * heads * head_dim * length, causality not deducted (PaLM, appendix B; nanoGPT).
    Tables that are only looked up do not count; a tied table counts once, as the output projection. Weights count
    as often as they are used: shared layers at every depth, of a mixture's experts those a token is sent to. In an
    encoder–decoder a token is one of `length` in the encoder or of `target_length` in the decoder.
    """
    source = length / (length + target_length) if config.stack == "encoder_decoder" else 1.0
    target = 1.0 - source if config.stack == "encoder_decoder" else 1.0

    def uses(name: str) -> float:
        if name.endswith("/embedding"):
            return target * (name == "token_embedding/embedding" and config.tie_embeddings)
        count = source if name.startswith("encoder/") else target
        if config.share_encoder_decoder and "/layers/" in name and "cross_attention" not in name:
            count += source
        if config.share_layers and "/layers/" in name:
            count *= config.num_layers
        if config.num_experts and re.search(r"/feed_forward/(up|gate|down)/", name):
            count *= config.experts_per_token / config.num_experts
        return count

    weights = sum(uses(name) * tree.count(x) for name, x in tree.named_leaves(params).items())
    seen = config.num_layers * target * min(target_length or length, config.sliding_window or length)
    if config.stack == "encoder_decoder":
        seen += config.num_layers * target * length + config.count_of_encoder_layers * source * length
    return 6.0 * weights + 12.0 * config.num_heads * config.size_of_head * seen


def peak_flops(devices: list[jax.Device], tflops: float | None) -> float | None:
    """Peak FLOP/s of all `devices`: `tflops` each when given, else by name, None when the name is unknown."""
    kind = devices[0].device_kind
    found = tflops or next((peak for name, peak in PEAK_TFLOPS.items() if name in kind), None)
    return None if found is None else found * 1e12 * len(devices)


class Metrics:
    """Appends lines to metrics.jsonl and mirrors their numbers to TensorBoard.

    A training line is {"step", "loss", …}, an evaluation {"step", "<evaluator>": {…}}; `step` counts completed
    steps. Opening at `next_step` drops the lines of later steps, which a resumed run writes again.
    """

    def __init__(self, directory: Path, next_step: int):
        self.path = directory / "metrics.jsonl"
        kept = [line for line in read_metrics(directory) if line["step"] <= next_step]
        self.elapsed_seconds = max((line.get("elapsed_seconds", 0.0) for line in kept), default=0.0)
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=next_step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"step": step} | dict(values)) + "\n")
        self._file.flush()
        for name, value in values.items():
            nested = value if isinstance(value, Mapping) else {"": value}
            for part, number in nested.items():
                self._board.add_scalar(f"{name}/{part}" if part else f"train/{name}", number, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line cut off by a crash is left out."""
    path = directory / "metrics.jsonl"
    lines = []
    for text in path.read_text("utf-8").split("\n") if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def evaluations_since_best(values: Sequence[float], lower: bool) -> int:
    """How many of the latest `values` are no better than the best before them; a tie or NaN is no better."""
    best, count = math.inf, 0
    for value in values:
        value = value if lower else -value
        best, count = (value, 0) if value < best else (best, count + 1)
    return count


def is_out_of_patience(evaluation: Evaluation, history: Sequence[float]) -> bool:
    """Whether the values of `evaluation.metric` so far end a run before its last step."""
    if evaluation.patience is None:
        return False
    return evaluations_since_best(history, lower_is_better(evaluation.metric)) >= evaluation.patience


class Display:
    """Progress for a person: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, num_steps: int, next_step: int):
        self.num_steps = num_steps
        self._console = Console(stderr=False)
        self._started, self._first = time.monotonic(), next_step
        self._bar = None
        if sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}")
            )
            self._task = self._bar.add_task("compiling", total=num_steps, completed=next_step)
            self._bar.start()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def update(self, step: int, values: Mapping[str, Any]) -> None:
        left = (time.monotonic() - self._started) / max(step - self._first, 1) * (self.num_steps - step)
        parts = [f"loss {values['loss']:.4f}", f"lr {values['learning_rate']:.2e}"]
        if "tokens_per_second" in values:
            parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
        if "mfu" in values:
            parts.append(f"MFU {values['mfu']:.1%}")
        if values.get("skipped_steps"):
            parts.append(f"skipped {values['skipped_steps']}")
        parts.append(f"{_clock(left)} left")
        if self._bar:
            self._bar.update(self._task, completed=step, description="  ".join(parts))
        else:
            print(f"step {step}/{self.num_steps}  " + "  ".join(parts), flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
