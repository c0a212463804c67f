"""Pictures of what the other calls find: a matplotlib figure each, which a notebook shows and `savefig` writes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from eval.fonts import fonts, shown
from eval.interpret.attribution import Attribution
from eval.interpret.causes import Effects
from eval.interpret.lenses import Lens
from train.run import Run

_MOST_CELLS = 400  # beyond which words no longer fit into the cells


class Picture(Figure):
    """A figure that a notebook shows by itself, as pyplot's are shown."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def draw_attention(
    maps: Float[np.ndarray, "heads query key"], queries: Sequence[str], keys: Sequence[str] | None = None
) -> Picture:
    """One layer's maps, a panel for each head: rows attend to columns."""
    keys = queries if keys is None else keys
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    size = 1.2 + 0.16 * max(len(queries), len(keys))
    with fonts():
        figure = Picture(figsize=(columns * size, rows * size), layout="constrained")
        for head, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            if head >= len(maps):
                axes.axis("off")
                continue
            axes.imshow(maps[head], cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"head {head}", fontsize=9)
            axes.set_xticks(range(len(keys)), _labels(keys) if head // columns == rows - 1 else [], rotation=90)
            axes.set_yticks(range(len(queries)), _labels(queries) if head % columns == 0 else [])
            axes.tick_params(labelsize=7)
    return figure


def draw_attribution(attribution: Attribution) -> Picture:
    """A bar for each token: to the right it speaks for the output."""
    count = len(attribution.pieces)
    with fonts():
        figure = Picture(figsize=(5, 0.8 + 0.24 * count), layout="constrained")
        axes = figure.add_subplot()
        colors = ["#3f86e0" if score > 0 else "#d8574a" for score in attribution.scores]
        axes.barh(range(count), attribution.scores, color=colors)
        axes.set_yticks(range(count), _labels(attribution.pieces), fontsize=8)
        axes.invert_yaxis()
        axes.axvline(0, color="#888c94", linewidth=0.8)
        error = "" if attribution.error is None else f"; completeness error {attribution.error:.2%}"
        axes.set_title(f"for {shown(attribution.explained, 'the output')}{error}", fontsize=9)
    return figure


def draw_lens(lens: Lens, run: Run) -> Picture:
    """The likeliest word of each layer at each place, coloured by its probability."""
    best = np.exp(lens.log_probabilities.max(axis=-1))
    words = [[place[0] for place in layer] for layer in lens.top(run)]
    return _table(best, words, _labels(lens.pieces), _layers(lens.addresses), "probability", "Blues", (0, 1))


def draw_effects(effects: Effects) -> Picture:
    """What the score changes by without each head, or each layer."""
    changes = effects.changes if effects.changes.ndim == 2 else effects.changes[:, None]
    columns = [f"head {i}" for i in range(changes.shape[1])] if effects.changes.ndim == 2 else [""]
    most = max(float(np.abs(changes).max()), 1e-9)
    cells = [[f"{value:+.3g}" for value in row] for row in changes]
    label = f"change of the score, {effects.score:.3g} with all"
    return _table(changes, cells, columns, _layers(effects.parts), label, "RdBu", (-most, most))


def draw_similarity(first: Sequence[str], second: Sequence[str], table: Float[np.ndarray, "first second"]) -> Picture:
    """CKA of each layer of one model with each of another."""
    cells = [[f"{value:.2f}" for value in row] for row in table]
    return _table(table, cells, _layers(second), _layers(first), "linear CKA", "viridis", (0, 1))


def draw_map(points: Float[np.ndarray, "words 2"], words: Sequence[str]) -> Picture:
    """Words at their places on a plane."""
    with fonts():
        figure = Picture(figsize=(6, 6), layout="constrained")
        axes = figure.add_subplot()
        axes.scatter(*np.asarray(points).T, s=8, color="#3f86e0")
        for (x, y), word in zip(points, _labels(words), strict=True):
            axes.annotate(word, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=8)
        axes.set(xticks=[], yticks=[])
    return figure


def _table(
    values: np.ndarray,
    cells: Sequence[Sequence[str]],
    columns: Sequence[str],
    rows: Sequence[str],
    label: str,
    colors: str,
    limits: tuple[float, float],
) -> Picture:
    with fonts():
        figure = Picture(figsize=(2.2 + 0.62 * len(columns), 1.2 + 0.32 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(values, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        if values.size <= _MOST_CELLS:
            for (row, column), value in np.ndenumerate(values):
                color = image.cmap(image.norm(value))
                is_dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 0.5
                text = shown(cells[row][column], "")
                axes.text(
                    column, row, text, ha="center", va="center", fontsize=7, color="white" if is_dark else "black"
                )
        axes.set_title(label, fontsize=9, loc="left")
        figure.colorbar(image)
    return figure


def _labels(pieces: Sequence[str]) -> list[str]:
    return [shown(piece, f"token {i}") for i, piece in enumerate(pieces)]


def _layers(addresses: Sequence[str]) -> list[str]:
    return [address.replace("/layers/", " ").removesuffix("/output") for address in addresses]
