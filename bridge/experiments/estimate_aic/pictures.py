"""The pictures of an `estimate_aic` run, drawn from its result alone. Readable in greyscale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bridge.experiments.estimate_aic.result import AicResult, WholeEstimate
from bridge.models.blocks import block_of
from bridge.reports.drawing import DARK, MID, new_figure, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def spectrum(result: AicResult) -> bytes:
    """spectrum.png: eigenvalues of F beside the decay that the score norms alone would give, where these are known."""
    whole, rank = result.whole_model, result.rank
    values = np.array(whole.eigenvalues)
    order = np.arange(1, len(values) + 1)
    figure, (left, right) = new_figure(1, 2, (10.0, 4.0))
    shown = values > values.max(initial=0.0) * 1e-12
    left.semilogy(order[shown], values[shown], "o-", color=DARK, ms=3, label="measured")
    left.set(xlabel="k", ylabel="eigenvalue $\\lambda_k$ of F")
    trace = values.sum() or 1.0
    right.plot(order, np.cumsum(values) / trace, "o-", color=DARK, ms=3, label="measured")
    if result.squared_norms is not None:
        norms_only = np.sort(result.squared_norms)[::-1] / len(result.squared_norms)
        look = {"ls": "--", "color": MID, "label": "same norms, orthogonal scores"}
        left.semilogy(order, np.maximum(norms_only, 1e-300), **look)
        right.plot(order, np.cumsum(norms_only) / (norms_only.sum() or 1.0), **look)
    right.set(xlabel="k", ylabel="share of the trace in the top k", ylim=(0, 1.03))
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.axvline(rank, color="0.5", lw=1, ls=":", label=f"d = {rank}")
        axis.legend(frameon=False, fontsize=8)
    left.set_title(f"Fisher ({result.fisher}), N = {result.num_samples}", fontsize=10)
    right.set_title(f"effective rank {whole.effective_rank:.1f} of at most {len(values)}", fontsize=10)
    return png_of(figure)


def coupling(result: AicResult) -> bytes:
    """coupling.png: coupling, leak and overlap of every module, blocks across and kinds of module down."""
    blocks = result.blocks
    layers = list(dict.fromkeys(block_of(name) for name in blocks))
    kinds = list(dict.fromkeys(_kind(name) for name in blocks))
    figure, axes = new_figure(3, 1, (max(6.0, 0.3 * len(layers) + 3), 1.2 + 3 * (0.28 * len(kinds) + 0.8)))
    titles = {
        "coupling": "coupling $\\gamma$ = |F$^{1/2}$ P a|",
        "leak": "leak = $\\sqrt{v^T F v}$",
        "overlap": "overlap $\\epsilon$ = |P v|",
    }
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        grid = np.full((len(kinds), len(layers)), np.nan)
        for name, block in blocks.items():
            grid[kinds.index(_kind(name)), layers.index(block_of(name))] = getattr(block, key)
        _heat(axis, grid, title)
        axis.set_yticks(range(len(kinds)), kinds, fontsize=7)
        step = max(1, len(layers) // 15)
        axis.set_xticks(range(0, len(layers), step), [_index(layers[i]) for i in range(0, len(layers), step)])
    axes[-1].set_xlabel("block")
    return png_of(figure)


def _kind(name: str) -> str:
    return name.removeprefix(block_of(name)).lstrip(".") or name


def _index(layer: str) -> str:
    return layer.rsplit(".", 1)[-1]


def _heat(axis: Axes, grid: np.ndarray, title: str) -> None:
    from matplotlib.colors import LogNorm

    positive = grid[np.isfinite(grid) & (grid > 0)]
    norm = LogNorm(positive.min(), positive.max()) if positive.size and positive.min() < positive.max() else None
    image = axis.imshow(np.where(grid > 0, grid, np.nan), aspect="auto", cmap="cividis", norm=norm)
    axis.figure.colorbar(image, ax=axis, pad=0.01)
    axis.set_title(title, fontsize=9)


def prediction(result: AicResult) -> bytes:
    """prediction.png: predicted utility loss against t, its leak and quartic parts, crossover and horizon."""
    whole = result.whole_model
    figure, axis = new_figure(1, 1, (8.0, 5.0))
    t = np.array([point.t for point in whole.predicted_loss_exact])
    exact = np.array([point.utility_loss or np.nan for point in whole.predicted_loss_exact])
    expansion = np.array([point.utility_loss or np.nan for point in whole.predicted_loss])
    axis.loglog(t, exact, "-", color=DARK, lw=2.2, label="predicted, from the output distributions")
    axis.loglog(
        t, expansion, "o", mfc="none", color=DARK, ms=4, label="from the scores, to second order (small leak only)"
    )
    axis.loglog(t, t**2 * whole.leak_exact**2 / 2, "--", color=MID, label="leak part, slope 2")
    axis.loglog(t, t**4 * whole.quartic_exact**2 / 8, ":", color=MID, lw=2, label="quartic part, slope 4")
    _marks(axis, whole, t)
    finite = exact[np.isfinite(exact) & (exact > 0)]
    if finite.size:
        axis.set_ylim(finite.min() / 3, finite.max() * 10)
    axis.set_xlim(t.min(), t.max())
    axis.set(xlabel="t = learning rate × steps", ylabel="utility loss  (nats of KL per response)")
    if result.plan is not None:
        rate = result.plan.learning_rate
        steps = axis.secondary_xaxis("top", functions=(lambda x: x / rate, lambda x: x * rate))
        steps.set_xlabel(f"steps at learning rate {rate:g}")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    return png_of(figure)


def _marks(axis: Axes, whole: WholeEstimate, t: np.ndarray) -> None:
    for key, style, label in (
        ("crossover", "-.", "crossover $t_c$ = 2 leak / $\\gamma_*$"),
        ("crossover_exact", (0, (1, 2)), "the two parts cross"),
        ("horizon", "-", "horizon of the run"),
    ):
        if (t_at := getattr(whole, key)) is not None:
            axis.axvline(t_at, color="0.35", lw=1.2, ls=style, label=f"{label}: {t_at:.2g}")
    if whole.window is not None and whole.window < t.max():
        axis.axvspan(whole.window, t.max(), color="0.9", zorder=0, label="outside the expansion's window")
