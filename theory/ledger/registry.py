"""The ledger itself: every claim by its key, in the paper's order, then our own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache

from theory.ledger.claim import Claim


class UnknownClaimError(ValueError):
    """A key that the ledger does not have; the message names the nearest ones."""


@cache
def ledger() -> dict[str, Claim]:
    """Every claim by its key.

    Raises:
        ValueError: if two claims have one key.
    """
    from theory.ledger import (
        appendix_a2,
        appendix_a4,
        appendix_b,
        appendix_c,
        extensions,
        onset_law,
        section3,
        section4,
        section5,
        section6,
        section7,
    )

    paper = (section3, section4, section5, section6, section7, appendix_a2, appendix_a4, appendix_b, appendix_c)
    claims = [claim for section in (*paper, onset_law, extensions) for claim in section.CLAIMS]
    by_key = {claim.key: claim for claim in claims}
    if len(by_key) != len(claims):
        raise ValueError("two claims of the ledger have one key")
    return by_key


def find(keys: Iterable[str]) -> list[Claim]:
    """The claims with these keys, in the order given; all of them for no keys.

    Raises:
        UnknownClaimError: for an unknown key.
    """
    claims = ledger()
    by_folded = {key.casefold(): claim for key, claim in claims.items()}
    wanted = [key.strip() for key in keys]
    for key in wanted:
        if key.casefold() not in by_folded:
            near = difflib.get_close_matches(key.casefold(), by_folded, n=4, cutoff=0.3)
            names = [by_folded[name].key for name in near] or [*list(claims)[:4], "..."]
            raise UnknownClaimError(f"no claim {key!r} in the ledger; the nearest keys are {', '.join(names)}")
    return [by_folded[key.casefold()] for key in wanted] if wanted else list(claims.values())
