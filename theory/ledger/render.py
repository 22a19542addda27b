"""Claims and the outcomes of their checks as terminal text, Markdown and JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from theory.ledger.claim import Claim, Example, Outcome, Point, Slack
from theory.ledger.plain_text import plain

_INDENT = "    "


def point_text(point: Point) -> str:
    """The parameters of a case as ``name=value`` words, exact enough to build it again."""
    return " ".join(f"{name}={value!r}" for name, value in point.items())


def table(claims: Sequence[Claim], width: int) -> str:
    """One line a claim: key, verdict, title, and why, wrapped to the width."""
    keys = max(len("claim"), *(len(claim.key) for claim in claims))
    words = max(len(claim.verdict.words) for claim in claims)
    titles = max(len(plain(claim.title)) for claim in claims)
    rows = [("claim", "verdict", "title", "why")]
    rows += [(claim.key, claim.verdict.value, plain(claim.title), plain(claim.why)) for claim in claims]
    keys, words, titles = (max(len(row[i]) for row in rows) for i in range(3))
    lines = []
    for key, verdict, title, why in rows:
        head = f"{key:<{keys}}  {verdict:<{words}}  {title:<{titles}}  "
        beside = width - len(head) >= 40  # else the reason goes under the title
        indent = " " * (len(head) if beside else keys + 2)
        start = head if beside else f"{head.rstrip()}\n{indent}"
        lines.append(start + _wrapped(why, width, indent).lstrip())
    return "\n".join(lines)


def entry(claim: Claim, width: int) -> str:
    """Everything on one claim, for a terminal."""
    verdict = f"Verdict: {claim.verdict.words}. {plain(claim.why)}"
    parts = [f"{claim.key}  {plain(claim.title)}", claim.source, textwrap.fill(verdict, width)]
    for heading, text in _sections(claim):
        parts += ["", heading, _paragraphs(plain(text), width)]
    for heading, examples in (("Counterexample", claim.counterexamples), ("Tight on", claim.boundary)):
        for example in examples:
            parts += ["", f"{heading}: {example.name}", _paragraphs(plain(example.text), width)]
            parts += [f"{_INDENT}{line}" for line in _findings(claim, example)]
    return "\n".join(parts)


def _findings(claim: Claim, example: Example) -> list[str]:
    """What the checks say on a named case, computed now."""
    case = example.case()
    lines = [f"-> {_sentence('true statement', claim.check(case))}"]
    if claim.printed is not None:
        lines.append(f"-> {_sentence('printed statement', claim.printed(case))}")
    return lines


def _sentence(name: str, slack: Slack) -> str:
    verdict = "holds" if slack.holds else "fails"
    return f"{name} {verdict}: slack {slack.value:.3g}, tolerance {slack.tolerance:.3g}"


def _sections(claim: Claim) -> list[tuple[str, str]]:
    hypotheses = "\n\n".join(f"- {hypothesis}" for hypothesis in claim.hypotheses)
    sections = [
        ("Statement", claim.statement),
        ("Hypotheses", hypotheses),
        ("Correction", claim.correction),
        ("Derivation", claim.derivation),
        ("Evidence", claim.evidence),
    ]
    return [(heading, text) for heading, text in sections if text]


def _paragraphs(text: str, width: int) -> str:
    blocks = [" ".join(block.split()) for block in text.split("\n\n")]
    return "\n".join(_wrapped(block, width, _INDENT) for block in blocks)


def _wrapped(text: str, width: int, indent: str) -> str:
    width = max(width, len(indent) + 20)
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def outcome_line(outcome: Outcome) -> str:
    """What the check of one claim found, in one line, with the case that came nearest to failing."""
    slack, part = outcome.worst, f" ({outcome.worst.part})" if outcome.worst.part else ""
    verdict = "holds" if outcome.failures == 0 else f"FAILS on {outcome.failures} of {outcome.examples}"
    found = f"{verdict:<7} worst slack {slack.value:< 10.3g} tolerance {slack.tolerance:<8.2g}"
    return f"{outcome.claim.key:<6} {found} {point_text(outcome.point)}{part}"


def markdown_table(claims: Sequence[Claim]) -> str:
    """The table of verdicts in Markdown."""
    rows = [f"| {claim.key} | {claim.title} | {claim.verdict.words} | {claim.why} |" for claim in claims]
    return "\n".join(["| claim | title | verdict | why |", "| --- | --- | --- | --- |", *rows])


def markdown_entry(claim: Claim) -> str:
    """Everything on one claim in Markdown."""
    parts = [f"## {claim.key} {claim.title}", f"*{claim.source}.* **Verdict: {claim.verdict.words}.** {claim.why}"]
    for heading, text in _sections(claim):
        parts += [f"**{heading}.** {text}" if not text.startswith("- ") else f"**{heading}.**\n\n{text}"]
    parts += [f"**Counterexample: {example.name}.** {example.text}" for example in claim.counterexamples]
    parts += [f"**Tight on: {example.name}.** {example.text}" for example in claim.boundary]
    return "\n\n".join(parts)


def markdown_document(claims: Sequence[Claim]) -> str:
    """The table and every entry, as the documentation has them."""
    title = "# The ledger\n\nWritten by `python -m theory show --markdown`; do not edit."
    return "\n\n".join([title, markdown_table(claims), *(markdown_entry(claim) for claim in claims)])


def markdown_outcomes(outcomes: Sequence[Outcome]) -> str:
    """The outcomes of checks as a Markdown table."""
    head = ["| claim | examples | failures | worst slack | tolerance | case |", "| --- | --- | --- | --- | --- | --- |"]
    rows = [
        f"| {o.claim.key} | {o.examples} | {o.failures} | {o.worst.value:.3g} | {o.worst.tolerance:.2g} "
        f"| `{point_text(o.point)}` |"
        for o in outcomes
    ]
    return "\n".join(head + rows)


def claim_record(claim: Claim) -> dict[str, Any]:
    """A claim as JSON has it."""
    return {
        "key": claim.key,
        "title": claim.title,
        "source": claim.source,
        "verdict": claim.verdict.value,
        "why": claim.why,
        "statement": claim.statement,
        "hypotheses": list(claim.hypotheses),
        "correction": claim.correction or None,
        "derivation": claim.derivation,
        "evidence": claim.evidence,
        "counterexamples": [{"name": e.name, "text": e.text} for e in claim.counterexamples],
        "tight_on": [{"name": e.name, "text": e.text} for e in claim.boundary],
    }


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """The outcome of a check as JSON has it."""
    claim = outcome.claim
    return {
        "key": claim.key,
        "title": claim.title,
        "source": claim.source,
        "verdict": claim.verdict.value,
        "examples": outcome.examples,
        "failures": outcome.failures,
        "worst_slack": outcome.worst.value if math.isfinite(outcome.worst.value) else None,
        "tolerance": outcome.worst.tolerance,
        "reason": outcome.worst.reason,
        "part": outcome.worst.part or None,
        "case": outcome.point,
    }
