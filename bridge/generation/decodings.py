"""The papers' ways to decode the responses that they evaluate, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bridge.generation.generate import Decoding


@dataclass(frozen=True)
class DecodingPreset:
    """A decoding, the longest response in tokens, and where both are from."""

    decoding: Decoding
    max_new_tokens: int
    source: str

    def seeded(self, seed: int) -> Decoding:
        """The decoding with this seed; it decides nothing where decoding is greedy."""
        return self.decoding if self.decoding.greedy else replace(self.decoding, seed=seed)


DECODINGS: dict[str, DecodingPreset] = {
    "aic": DecodingPreset(
        Decoding(greedy=False, temperature=0.7, top_k=20, top_p=0.8, min_p=0.0),
        512,
        "sampling of The Geometry of Alignment Collapse (arXiv 2602.15799); the longest response is ours",
    ),
    "safety-subspaces": DecodingPreset(
        Decoding(), 512, "greedy, 512 tokens, as in Safety Subspaces are Not Distinct (arXiv 2505.14185)"
    ),
}
