"""One paper = one file; a variant = a function in it that returns an `Experiment`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.config import TransformerConfig


def dataset(name: str) -> str:
    """Path of a dataset below the folder named by QUIRE_DATA (default: datasets/)."""
    return str(Path(os.environ.get("QUIRE_DATA", "datasets")) / name)


def start_from(run: str, **changes: Any) -> TransformerConfig:
    """The architecture of the run that an experiment's `init_from` names, with `changes`: heads, num_labels, dropout.

    Call it inside the variant, so that only who asks for the variant needs the run. Raises UserError where it is not.
    """
    from model.config import TransformerConfig
    from train.command_line import read_config
    from train.config import UserError

    path = Path(run) / "config.json"
    if not path.is_file():
        raise UserError(
            f"there is no run {run} to start from; train it, or import a published model: "
            f"python -m model.pretrained import {Path(run).name} {run}"
        )
    return TransformerConfig.model_validate(read_config(path).model.model_dump() | changes)
