"""The onset law beyond gradient flow: optimisers (E1-E4), low-rank adapters (E5), projected updates (E6-E8)."""

from __future__ import annotations

from theory.ledger import lora, optimizers, projections, sign_step

CLAIMS = (*optimizers.CLAIMS, *sign_step.CLAIMS, *lora.CLAIMS, *projections.CLAIMS)
