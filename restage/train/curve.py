"""Draws the losses of a training as a picture, for the report and for the eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float64

from restage.diffusion.training import read_metrics
from restage.records import write_atomically

__all__ = ["draw_losses", "running_mean"]


def running_mean(values: Float64[np.ndarray, " steps"], width: int) -> Float64[np.ndarray, " steps"]:
    """Return the mean of the last `width` values at each place; at the start there are fewer."""
    totals = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (totals[ends] - totals[starts]) / (ends - starts)


def draw_losses(folder: Path) -> Path:
    """Draw `loss.png` from the metrics of a training folder, each term with its running mean; returns the path."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder)
    terms = [name for name in (rows[0] if rows else {}) if name not in ("step", "loss")]
    figure = Figure(figsize=(3.2 * max(len(terms), 1), 2.6), dpi=120, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, max(len(terms), 1)))
    steps = np.array([row["step"] for row in rows])
    for panel, term in zip(panels, terms, strict=False):
        values = np.array([row[term] for row in rows], dtype=np.float64)
        panel.plot(steps, values, color="0.8", linewidth=0.6)
        panel.plot(steps, running_mean(values, max(len(values) // 20, 1)), color="tab:blue", linewidth=1.4)
        panel.set(title=f"{term} loss", xlabel="step", ylim=(0, float(np.quantile(values, 0.98)) * 1.1 + 1e-6))
        panel.spines[["top", "right"]].set_visible(False)
    path = folder / "loss.png"
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return path
