"""The onset law beyond gradient flow: optimisers (E1-E4), low-rank adapters (E5), projected updates (E6-E8)."""

from __future__ import annotations

from theory.ledger import lora, optimizers, projections, sign_step, tracked

_SECTIONS = (optimizers, sign_step, lora, projections, tracked)
CLAIMS = tuple(sorted((claim for section in _SECTIONS for claim in section.CLAIMS), key=lambda claim: claim.key))
