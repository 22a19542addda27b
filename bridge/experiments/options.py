"""Options that several commands have: each with its type, range, default and help, in groups that settings inherit.

A group is a settings class; a command's settings inherit the groups that it needs. A command whose default differs
gives the option's type here another default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from bridge.generation.decodings import DECODINGS, Decoding
from commands.options import require
from commands.paths import expanded
from commands.settings import Option, Settings

Seed = Annotated[int, Option("Seed of the choice of rows, of what is drawn, and of resamples."), Ge(0)]
Model = Annotated[str, Option("The model: alias, hub name, local folder, GGUF file, or random:ALIAS.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16", "float64"] | None,
    Option("Type of the weights: float32, bfloat16, float16 or float64. (default: float32)"),
]
Delta = Annotated[
    str | None,
    Option(
        "A change of the model's weights: a run folder of bridge.finetune, an adapter, a delta.safetensors, or the "
        "folder of the changed model."
    ),
]
Device = Annotated[str | None, Option("Where to compute: cpu, cuda, cuda:N. (default: the GPU if there is one)")]
Skill = Annotated[str, Option("What to protect: refusals, NAME=FILE or FILE.jsonl.")]
Optimizer = Annotated[
    Literal["sgd", "adamw"], Option("Optimizer of the fine-tune: gradient flow, or AdamW's preconditioned flow.")
]
AdamBatchSize = Annotated[
    int,
    Option("Rows in a batch of AdamW, whose gradients' squares scale it; fewer in a set of few rows."),
    Ge(1),
]
SkipBadRows = Annotated[bool, Option("Leave out bad rows and say so.", flag=True)]
Rank = Annotated[int, Option("d, the number of sharp directions."), Ge(1)]
Bootstrap = Annotated[int, Option("Resamples for the intervals; 0 for none."), Ge(0)]


@dataclass(frozen=True, kw_only=True)
class OfModel(Settings):
    """The model."""

    model: Model = "smollm2-135m"
    modules: Annotated[
        str | None,
        Option("Regular expression for the linear modules that make up theta. (default: all in the blocks)"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Answers(Settings):
    """The model, and how it answers."""

    model: Model = "smollm2-135m"
    delta: Delta = None
    preset: Annotated[str, Option(f"How answers are decoded: {', '.join(DECODINGS)}.")] = "aic"
    max_new_tokens: Annotated[int | None, Option("Longest answer, in tokens. (default: preset)"), Ge(1)] = None
    dtype: Dtype = None
    device: Device = None
    batch_size: Annotated[int, Option("Prompts answered at a time."), Ge(1)] = 16
    seed: Seed = 0
    skip_bad_rows: SkipBadRows = False

    @property
    def longest(self) -> int:
        """The longest answer, in tokens."""
        return DECODINGS[self.preset].max_new_tokens if self.max_new_tokens is None else self.max_new_tokens

    @property
    def decoding(self) -> Decoding:
        """How the answers are decoded."""
        return DECODINGS[self.preset].seeded(self.seed)

    def identity(self) -> dict[str, object]:
        """The options as the manifest of a run holds them."""
        return super().identity() | {"max_new_tokens": self.longest}

    def check_together(self) -> None:
        """Raise UserError for a preset or a change of weights that there is none of."""
        require(self.preset in DECODINGS, "preset", f"one of {', '.join(DECODINGS)}", repr(self.preset))
        if self.delta is not None:
            require(expanded(self.delta).exists(), "delta", "a change of weights that exists", self.delta)


@dataclass(frozen=True, kw_only=True)
class Responses(Settings):
    """The skill: its rows, and the responses drawn at their prompts."""

    num_skill: Annotated[int, Option("Rows of each skill (the paper takes 100)."), Ge(1)] = 64
    draws: Annotated[int, Option("Responses drawn at each prompt (sampled Fisher)."), Ge(1)] = 1
    max_new_tokens: Annotated[int, Option("Longest response drawn, in tokens."), Ge(1)] = 64

    @property
    def num_samples(self) -> int:
        """N: rows of the skill times draws."""
        return self.num_skill * self.draws


@dataclass(frozen=True, kw_only=True)
class SkillSampling(Responses):
    """The Fisher information."""

    fisher: Annotated[
        Literal["sampled", "empirical"],
        Option("Whose responses: drawn from the model (what the theory means), or the data's (the paper's)."),
    ] = "sampled"

    def check_together(self) -> None:
        """Raise UserError for several responses a prompt where the data has one."""
        if self.fisher == "empirical":
            require(self.draws == 1, "draws", "1 with --fisher empirical (its responses are the data's)", self.draws)
        super().check_together()

    def check_rank(self, rank: int | None) -> None:
        """Raise UserError for more directions than the samples can show."""
        if rank is not None:
            most = f"at most {self.num_samples}, the number of samples (rows × draws)"
            require(rank <= self.num_samples, "rank", f"{most}: F has no more directions", rank)


@dataclass(frozen=True, kw_only=True)
class Compute(Settings):
    """The computation."""

    dtype: Dtype = None
    device: Device = None
    batch_size: Annotated[int, Option("Rows computed at a time."), Ge(1)] = 4
    memory: Annotated[
        float, Option("GiB for what is kept between passes.", wanted="a positive number of GiB"), Gt(0)
    ] = 4.0


@dataclass(frozen=True, kw_only=True)
class Rows(Settings):
    """The rows of every set."""

    max_length: Annotated[int, Option("Longest row in tokens; longer ones are cut on the right."), Ge(2)] = 512
    seed: Seed = 0
    skip_bad_rows: SkipBadRows = False


@dataclass(frozen=True, kw_only=True)
class Resampling(Settings):
    """The intervals."""

    bootstrap: Bootstrap = 200
