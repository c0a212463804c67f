"""Pictures of classification scores, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eval.fonts import fonts, shown
from eval.scores import f1
from eval.scores.classification import Labels, binned_confidences, confusion_matrix

_MOST_NUMBERS = 25  # classes, beyond which a number no longer fits into its cell


def draw_confusion_matrix(predictions: Labels, references: Labels, path: str | Path) -> None:
    """How many examples of each class were taken for each, coloured by the fraction of the right class.

    Chinese labels need one of the usual Chinese fonts; a label that no font here can show appears as its number.
    """
    labels, matrix = confusion_matrix(predictions, references)
    fractions = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    size = 2.5 + 0.45 * min(len(labels), 60)
    with fonts():
        figure = Figure(figsize=(size + 1, size), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        names = [shown(str(label), f"class {i}") for i, label in enumerate(labels)]
        axes.set_xticks(range(len(labels)), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(len(labels)), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("right")
        if len(labels) <= _MOST_NUMBERS:
            for (row, column), count in np.ndenumerate(matrix):
                color = "white" if fractions[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=8)
        figure.colorbar(image, label="fraction of the right class")
        _save(figure, path)


def draw_reliability(
    confidences: Sequence[float], correct: Sequence[bool], path: str | Path, *, bins: int = 15
) -> None:
    """Accuracy over confidence (Guo et al. 2017, figure 1): bars on the diagonal are calibrated."""
    sums = np.asarray(binned_confidences(confidences, correct, bins).sum(0))
    count, right, confidence = f1.by_class(sums)
    filled = count > 0
    accuracy, middle = right[filled] / count[filled], (np.arange(bins)[filled] + 0.5) / bins
    with fonts():
        figure = Figure(figsize=(4.5, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.bar(middle, accuracy, width=1 / bins, edgecolor="black", color="#3f86e0", label="accuracy")
        axes.plot(confidence[filled] / count[filled], accuracy, "o", color="#e8793a", label="mean confidence")
        axes.plot([0, 1], [0, 1], "--", color="#888c94")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
        axes.legend(loc="upper left")
        _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})
