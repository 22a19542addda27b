"""Mathematics as terminal text."""

from __future__ import annotations

import pytest

from theory.ledger.plain_text import plain


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
        (r"$\frac{a}{b c} \frac{1+x}{1-p}$", "a/(b c) (1+x)/(1-p)"),
        (r"$\frac{t^2}{2}\ell'' + \frac{\gamma_\star^2}{8} t^4$", "t^2/2 ℓ′′ + γ_⋆^2/8 t^4"),
        (r"$\frac{t^{2k}}{2 (k!)^2}\mathbb{E}[x]$", "t^(2k)/(2 (k!)^2) 𝔼[x]"),
        (r"$\frac{2 \frac{a}{b+1}}{n!}$", "(2 a/(b+1))/n!"),
        (r"$\sqrt{1 - \frac{D}{3}}$", "√(1 - D/3)"),
        (r"$\Delta u(\theta)$ of", "Δu(θ) of"),
        ("it's a_{bc} outside", "it's a_{bc} outside"),
    ],
)
def test_nothing_is_lost(latex: str, text: str) -> None:
    assert plain(latex) == text
