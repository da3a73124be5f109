"""Figures, as PNG files, readable without colour. matplotlib is imported when one is drawn; no display is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GREY, _FAINT = "#1b3a57", "#767676", "#c9c9c9"
_MARKS = ("s", "^", "D", "v")


def _figure(width: float, height: float, **layout: Any) -> tuple[Figure, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib: pip install 'maxmin-kernels[report]'"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**layout)


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3, color=_GREY)


def held_out(
    path: str | PathLike[str],
    results: Sequence[Mapping[str, Any]],
    best: int,
    unit: str = "held-out comparison",
) -> None:
    """Held-out score against the number of groups, and what the controls gain.

    Args:
        path: the PNG.
        results: ``Selection.results_``.
        best: the number of groups chosen, which is ringed.
        unit: what the score is a mean of.
    """
    figure, axes = _figure(6.4, 4.0)
    sizes = np.array([r["n_groups"] for r in results])
    gain, low, high = (np.array([r[key] for r in results]) for key in ("gain", "gain_low", "gain_high"))  # fmt: skip
    axes.axhline(0, color=_FAINT, linewidth=1, zorder=0)
    axes.errorbar(
        sizes, gain, yerr=[gain - low, high - gain], fmt="o-", color=_INK, capsize=4, linewidth=1.2,
        label="held-out annotators, 95 % interval", zorder=3,
    )  # fmt: skip
    names = list(results[0]["control_gain"])
    for mark, name in zip(_MARKS, names, strict=False):
        control = [r["control_gain"][name] for r in results]
        axes.plot(
            sizes, control, linestyle="--", linewidth=1, color=_GREY, marker=mark,
            markerfacecolor="white", label=f"control: {name}", zorder=2,
        )  # fmt: skip
    at = int(np.flatnonzero(sizes == best)[0])
    axes.plot(
        sizes[at], gain[at], "o", markersize=15, markerfacecolor="none", markeredgecolor=_INK,
        markeredgewidth=1.2, label=f"chosen: {best}", linestyle="none", zorder=4,
    )  # fmt: skip
    axes.set_xticks(sizes)
    axes.set_xlabel("number of groups")
    axes.set_ylabel(f"gain over one group\n(nats a {unit})")
    alone = results[0]["score"]
    scores = axes.secondary_yaxis("right", functions=(lambda y: y + alone, lambda y: y - alone))
    scores.set_ylabel("score")
    scores.spines["right"].set_color(_FAINT)
    axes.margins(x=0.06, y=0.12)
    handles, names = axes.get_legend_handles_labels()
    order = [len(handles) - 1, *range(len(handles) - 1)]  # matplotlib puts error bars last
    axes.legend(
        [handles[i] for i in order], [names[i] for i in order],
        frameon=False, fontsize=9, labelspacing=0.8, loc="best",
    )  # fmt: skip
    _bare(axes)
    figure.savefig(path, dpi=160)


def tastes(
    path: str | PathLike[str],
    labels: Sequence[str],
    values: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    titles: Sequence[str],
    unit: str = "reward, log-odds",
) -> None:
    """What each group likes, a panel a group, on one scale.

    Args:
        path: the PNG.
        labels: ``(D,)`` names of the attributes.
        values, low, high: ``(K, D)`` estimates and their intervals. Those whose interval holds 0 are drawn hollow.
        titles: ``(K,)`` names of the groups.
        unit: of the values.
    """
    n_groups, n_labels = values.shape
    columns = min(3, n_groups)
    rows = -(-n_groups // columns)
    height = rows * (0.34 * n_labels + 0.75) + 0.6
    figure, grid = _figure(
        2.1 + 2.7 * columns, height, nrows=rows, ncols=columns, sharex=True, sharey=True, squeeze=False
    )  # fmt: skip
    panels = grid.ravel()
    position = np.arange(n_labels)
    for k, axes in enumerate(panels[:n_groups]):
        axes.axvline(0, color=_GREY, linewidth=1, zorder=0)
        axes.hlines(position, low[k], high[k], color=_INK, linewidth=1.4)
        sure = (low[k] > 0) | (high[k] < 0)
        for which, face in ((sure, _INK), (~sure, "white")):
            axes.plot(
                values[k, which], position[which], "o", color=_INK, markerfacecolor=face,
                markersize=6, linestyle="none",
            )  # fmt: skip
        axes.set_title(titles[k], fontsize=9.5, loc="left")
        axes.grid(axis="y", color=_FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        _bare(axes)
    for axes in panels[n_groups:]:
        axes.set_visible(False)
    for row in grid:
        row[0].set_yticks(position, labels, fontsize=9)
    panels[0].set_ylim(n_labels - 0.4, -0.6)
    for k in range(max(0, n_groups - columns), n_groups):
        panels[k].tick_params(labelbottom=True)
    figure.supxlabel(f"{unit}; bars: 95 % intervals, hollow: may be 0", fontsize=9)
    figure.savefig(path, dpi=160)
