"""One paper = one file; a variant = a function in it that returns an `Experiment`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from data.config import DataConfig, Pretrained
from data.task_config import Task, num_outputs
from model.config import TransformerConfig
from train.command_line import read_config
from train.config import AdamW, Checkpointing, Evaluation, Experiment, Linear, UserError

ENCODER = "runs/minilm"  # glue.py says how it is made


def dataset(name: str) -> str:
    """Path of a dataset below the folder named by QUIRE_DATA (default: datasets/)."""
    return str(Path(os.environ.get("QUIRE_DATA", "datasets")) / name)


def start_from(run: str, **changes: Any) -> TransformerConfig:
    """The architecture of the run that an experiment's `init_from` names, with `changes`: heads, num_labels, dropout.

    Call it inside the variant, so that only who asks for the variant needs the run. Raises UserError where it is not.
    """
    path = Path(run) / "config.json"
    if not path.is_file():
        raise UserError(
            f"there is no run {run} to start from; train it, or import a published model, as experiments/glue.py says: "
            f"python -m model.pretrained import FOLDER {run}"
        )
    return TransformerConfig.model_validate(read_config(path).model.model_dump() | changes)


def fine_tune(
    name: str,
    objective: Task,
    head: str,
    data: dict[str, Any],
    *,
    num_steps: int,
    batch_size: int,
    peak_learning_rate: float,
    warmup_steps: int | None = None,
    **changes: Any,
) -> Experiment:
    """The encoder of `ENCODER` under a new head, all of it trained as BERT is (Devlin et al. 2019, appendix A.3).

    Args:
      data: fields of the DataConfig but for the tokenizer.
      warmup_steps: none = a tenth of all steps.
      changes: other fields of the experiment.
    """
    outputs = num_outputs(objective)
    labels = {} if outputs is None else {"num_labels": outputs}
    schedule = Linear(warmup_steps=num_steps // 10 if warmup_steps is None else warmup_steps)
    fields = dict(
        name=name,
        num_steps=num_steps,
        batch_size=batch_size,
        model=start_from(ENCODER, heads=(head,), dropout_rate=0.1, attention_dropout_rate=0.1, **labels),
        init_from=ENCODER,
        objective=objective,
        data=DataConfig(**data, tokenizer=Pretrained(path=f"{ENCODER}/tokenizer")),
        optimizer=AdamW(peak_learning_rate=peak_learning_rate, schedule=schedule, b2=0.999, weight_decay=0.01),
        evaluation=Evaluation(every=num_steps),
        checkpoint=Checkpointing(every=num_steps),
        log_every=25,
    )
    return Experiment(**fields | changes)
