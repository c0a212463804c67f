"""Pictures of a run's metrics, drawn to be read on a light and on a dark page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

_GRAY, _BLUE, _ORANGE = "#888c94", "#3f86e0", "#e8793a"
_MAX_POINTS = 2000  # per line; more cannot be seen
_STYLE = {
    "svg.hashsalt": "quire",  # the same run gives the same file
    "font.size": 10,
    "axes.edgecolor": _GRAY,
    "axes.labelcolor": _GRAY,
    "axes.titlecolor": _GRAY,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GRAY,
    "grid.alpha": 0.22,
    "xtick.color": _GRAY,
    "ytick.color": _GRAY,
    "text.color": _GRAY,
    "legend.frameon": False,
}

Series = tuple[Sequence[int], Sequence[float]]
"""Steps and values."""


def loss_curves(train: Series, validation: Series, unit: str) -> str:
    """Training loss (every logged value, and smoothed) and validation loss over steps, as an SVG data URI."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        axes = figure.add_subplot()
        steps, values = _finite(train)
        if len(steps):
            is_long = len(steps) > 20  # a short line is clear without being smoothed
            alpha = 0.35 if is_long else 1
            axes.plot(*_thinned(steps, values), color=_BLUE, alpha=alpha, linewidth=0.9, label="training")
            if is_long:
                smoothed = smooth(values, span=max(5, len(values) // 25))
                axes.plot(*_thinned(steps, smoothed), color=_BLUE, linewidth=1.8, label="training, smoothed")
        steps, values = _finite(validation)
        if len(steps):
            axes.plot(steps, values, color=_ORANGE, linewidth=1, alpha=0.6)
            axes.plot(steps, values, "o", color=_ORANGE, markersize=4.5, label="validation")
        axes.set_ylabel(f"loss ({unit})")
        _finish(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        return _data_uri(figure)


def small_curves(series: Sequence[tuple[str, Series]]) -> str:
    """One small picture per (title with unit, series), side by side, as an SVG data URI."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 2.6), layout="constrained")
        for axes, (title, points) in zip(np.atleast_1d(figure.subplots(1, len(series))), series, strict=True):
            axes.plot(*_thinned(*_finite(points)), color=_BLUE, linewidth=1.3)
            axes.set_title(title)
            _finish(axes)
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(_short)
        return _data_uri(figure)


def smooth(values: np.ndarray, span: int) -> np.ndarray:
    """The mean of the (about) `span` values around each one; of fewer at the ends."""
    window = np.ones(min(span, len(values)))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _finite(series: Series) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.asarray(series[0], float), np.asarray(series[1], float)
    return steps[np.isfinite(values)], values[np.isfinite(values)]


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    every = max(1, -(-len(steps) // _MAX_POINTS))
    return steps[::every], values[::every]


def _finish(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(_short)
    axes.margins(x=0.02)


def _short(value: float, _position: int) -> str:
    """0.0005, 12, 1.2k, 3M."""
    return EngFormatter(sep="")(value) if abs(value) >= 1000 else f"{value:g}"


def _data_uri(figure: Figure) -> str:
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode()
