"""The papers' ways to decode the responses that they evaluate, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from commands.errors import UserError


@dataclass(frozen=True)
class Decoding:
    """How responses are decoded.

    With `greedy` the most likely token is taken each time and the other settings must be left alone. Else tokens are
    drawn from the softmax at `temperature`, cut in this order to the `top_k` most likely tokens (0: all), to the
    fewest that hold a share `top_p` of the probability, and to those of at least `min_p` times the likeliest one's.
    """

    greedy: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Raise UserError, naming the option, for settings that decode nothing or contradict each other."""
        wanted: list[tuple[bool, str, str, object]] = [
            (0 < self.temperature < float("inf"), "temperature", "a positive number", self.temperature),
            (self.top_k >= 0, "top-k", "0 (all tokens) or more", self.top_k),
            (0 < self.top_p <= 1, "top-p", "a share in (0, 1]", self.top_p),
            (0 <= self.min_p <= 1, "min-p", "a share in [0, 1]", self.min_p),
            (self.seed >= 0, "seed", "0 or more", self.seed),
        ]
        for holds, option, expected, got in wanted:
            if not holds:
                raise UserError(f"--{option}: expected {expected}, got {got}")
        if self.greedy and (self.temperature, self.top_k, self.top_p, self.min_p) != (1.0, 0, 1.0, 0.0):
            raise UserError("--temperature, --top-k, --top-p and --min-p shape sampling, but decoding is greedy")


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
