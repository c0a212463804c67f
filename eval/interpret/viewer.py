"""A page on which a person clicks through a run's attention: layer, head, token. It loads nothing from elsewhere."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np

from data.storage import write_atomically
from eval.interpret.attention import attention, rollout
from eval.interpret.reading import Reading
from eval.text_stream import printable
from train.run import Run


def write_attention_page(run: Run, reading: Reading, path: str | Path) -> Path:
    """Write a page with every head's attention over the reading, and with their rollout; returns its path.

    A click on a token shows what it attends to (blue) and what attends to it (orange); layers and heads are buttons.
    Of an encoder–decoder, also the attention to the source.
    """
    parts = {"self": (reading.pieces, reading.pieces, attention(run, reading))}
    if reading.source:
        parts["source"] = (reading.pieces, reading.source, attention(run, reading, "cross"))
        parts["within the source"] = (reading.source, reading.source, attention(run, reading, "encoder"))
    shown = {
        name: {
            "queries": list(map(printable, queries)),
            "keys": list(map(printable, keys)),
            "maps": _rounded(maps),
            "rollout": _rounded(rollout(maps)) if maps.shape[2] == maps.shape[3] else None,
        }
        for name, (queries, keys, maps) in parts.items()
    }
    # A piece of text may hold </script>.
    data = json.dumps(shown, ensure_ascii=False).replace("<", "\\u003c")
    title = html.escape(printable(f"attention of {run.config.name}, step {run.step}"))
    folder = Path(__file__).parent
    page = (folder / "viewer.html").read_text("utf-8")
    page = page.replace("TITLE", title).replace("/* DATA */", f"const PARTS = {data};")
    write_atomically(Path(path), page.encode())
    return Path(path)


def _rounded(array: np.ndarray) -> list:
    return np.round(array.astype(np.float64), 3).tolist()
