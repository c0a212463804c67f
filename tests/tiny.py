"""A tiny experiment on a text file, as a user would write one; shared by tests and by the processes they start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from data.config import Bytes, DataConfig, Files, MaskedLM, SpanCorruption
from model.config import TransformerConfig
from train.config import AdamW, Checkpointing, Cosine, Evaluation, Experiment

ROOT = Path(__file__).parents[1]
SIZES = dict(vocab_size=260, num_layers=2, embed_dim=32, num_heads=4, max_length=32)


def experiment(**changes) -> Experiment:
    """Two layers of width 32 on bytes; `changes` replace top-level fields."""
    fields = dict(
        name="tiny",
        num_steps=40,
        batch_size=8,
        log_every=1,
        model=TransformerConfig(**SIZES),
        data=DataConfig(
            train=(Files(path=os.environ["TINY_TEXT"], document="line"),),
            tokenizer=Bytes(),
            length=32,
            held_out_fraction=0.1,
            cache_dir=os.environ["TINY_TEXT"] + ".cache",
        ),
        optimizer=AdamW(peak_learning_rate=3e-3, schedule=Cosine(warmup_steps=5)),
        checkpoint=Checkpointing(every=20),
        evaluation=Evaluation(every=20, sample_tokens=0),
    )
    return Experiment(**(fields | changes))


def tiny() -> Experiment:
    return experiment()


def with_everything() -> Experiment:
    """Dropout, accumulation and averaging: what a resumed run could get wrong."""
    model = experiment().model.model_copy(update=dict(dropout_rate=0.1))
    return experiment(name="everything", model=model, accumulation_steps=2, ema_decay=0.9)


def encoder() -> Experiment:
    """Masked words and pairs of sentences, with dropout."""
    mechanisms = dict(stack="encoder", positions="learned", heads=("lm", "sentence_pair"), num_sentence_types=2)
    model = TransformerConfig(**SIZES | mechanisms | dict(vocab_size=261, pooler="tanh", dropout_rate=0.1))
    objective = MaskedLM(masking="span", sentence_pairs="next_sentence")
    return experiment(name="encoder", model=model, objective=objective)


def encoder_decoder() -> Experiment:
    """Span corruption."""
    mechanisms = dict(stack="encoder_decoder", positions="t5_relative", norm="rms", use_bias=False)
    model = TransformerConfig(**SIZES | mechanisms | dict(vocab_size=360))
    return experiment(name="encoder_decoder", model=model, objective=SpanCorruption())


def write_text(folder: Path) -> Path:
    """A text of a few hundred different lines; also tells this file's experiments where it is."""
    path = folder / "text.txt"
    lines = (f"The square of {n} is {n * n}, and that of its double is {4 * n * n}." for n in range(400))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    os.environ["TINY_TEXT"] = str(path)
    return path


def start(*arguments: str, devices: int = 1, patch: str = "") -> subprocess.Popen:
    """`python -m train` in a process of its own; `patch` is code that runs first."""
    code = f"import sys\n{patch}\nfrom train.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = 240) -> tuple[int, str]:
    """Exit code and output."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output
