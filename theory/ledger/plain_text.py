"""Markdown with LaTeX as Unicode text for a terminal, by pylatexenc, with nothing of the mathematics lost."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

# a numerator or denominator that needs no parentheses: one symbol or number, with primes, index and exponent
_ATOM = re.compile(r"[^\W_]+[!′]*([_^](\w+|\([^()]*\)|⋆))*")

_WITH_ARGUMENT = "(?:hat|bar|tilde|dot|sqrt|frac|mathbb|mathrm|mathcal|text|operatorname|left|right|quad|ne|Delta) "


def plain(text: str) -> str:
    """``$\\frac{\\gamma_\\star^2}{8 n} \\|F^{1/2} v\\|$`` becomes ``γ_⋆^2/(8 n) ‖F^(1/2) v‖``; only within dollars."""
    pieces = text.split("$")
    return "".join(_math(piece) if i % 2 else piece for i, piece in enumerate(pieces))


def _math(latex: str) -> str:
    """One formula: the converter, helped where it loses norm bars, primes, or the extent of exponents and indices."""
    grouped = re.sub(r"([_^])\{(?!\\\w+\})([^{}]{2,})\}", r"\1(\2)", latex)
    spaced = re.sub(rf"(\\(?!{_WITH_ARGUMENT})[A-Za-z]+) ", r"\1{}~", grouped)  # TeX eats the space after a name
    marked = spaced.replace(r"\|", "‖").replace("'", "′").replace(r"\ne ", r"\neq{}~").replace(r"\Delta u", "Δu")
    text = re.sub(r"\s+", " ", _converter().latex_to_text(marked))
    return re.sub(r"(?<=[(\[]) | (?=[)\],.])", "", text).strip()


@cache
def _converter() -> Any:
    from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db

    context = get_default_latex_context_db()
    # the converter looks at the names of the arguments
    fraction = MacroTextSpec("frac", simplify_repl=lambda node, l2tobj: _fraction(node, l2tobj))
    context.add_context_category("fractions", prepend=True, macros=[fraction])
    return LatexNodes2Text(latex_context=context, math_mode="text", strict_latex_spaces="based-on-source")


def _fraction(node: Any, converter: Any) -> str:
    above, below = (converter.nodelist_to_text([argument]).strip() for argument in node.nodeargs)
    return f" {_grouped(above)}/{_grouped(below)} "


def _grouped(text: str) -> str:
    return text if _ATOM.fullmatch(text) else f"({text})"
