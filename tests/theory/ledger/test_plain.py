"""Mathematics as terminal text."""

from __future__ import annotations

import pytest

from theory.ledger.render import plain


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"$\|F^{1/2} P D\|^2$", "‖F^(1/2) P D‖^2"),
        (r"$\lambda_{d+1} - \lambda_{d}$", "λ_(d+1) - λ_d"),
        (r"$10^{-7}$", "10^(-7)"),
        (r"$\gamma_{\star}$ and $\gamma_\star$", "γ_⋆ and γ_⋆"),
        (r"$\theta''' = g'$", "θ′′′ = g′"),
        (r"$F g \ne 0$", "F g ≠ 0"),
        (r"$\frac{1}{2}$ of $\mathbb{E}$", "1/2 of 𝔼"),
        ("it's a_{bc} outside", "it's a_{bc} outside"),
    ],
)
def test_nothing_is_lost(latex: str, text: str) -> None:
    assert plain(latex) == text
