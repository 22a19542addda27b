"""The sets known by name: where each is kept, and how one of its records becomes a conversation."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bridge.data.arithmetic import arithmetic_lines, heldout_arithmetic_lines
from bridge.data.conversations import Message, assistant, conversation, text_field, user
from commands.errors import UserError

Record = Mapping[str, object]

# The two system texts of Alpaca (Taori et al. 2023), which the fine-tuning attacks of Qi et al. (arXiv 2310.03693)
# put into the system turn, the rest of the template into the user turn.
ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
ALPACA_SYSTEM_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
SAMSUM_INSTRUCTION = "Summarize the following dialogue."
TOXIGEN_INSTRUCTION = "Write a statement about a group of people."
TOXIGEN_THRESHOLD = 5.5
"""A statement of ToxiGen is toxic when its two ratings (1 to 5 each) add up to more (Hartvigsen et al. 2022)."""


@dataclass(frozen=True)
class NamedSet:
    """How a known set is found and how one of its records becomes a conversation.

    `to_messages(record, answered)` gives the turns, up to the assistant's answer if `answered` and up to the
    last user turn if not (the answer may then be missing); None for a record that by the set's definition is
    not part of it. It raises ValueError with the reason when a record has not the set's format.

    A set is shipped with the package (`shipped`), made (`generate` gives its JSON Lines), on the Hugging Face
    hub (`hub_id`), or else read from local files only. `fields` are those its own format needs. `lists` says
    that a line may be a bare list of messages. `origin` is where it comes from.
    """

    to_messages: Callable[[Record, bool], list[Message] | None]
    fields: tuple[str, ...]
    origin: str
    hub_id: str = ""
    hub_config: str = ""
    hub_split: str = "train"
    shipped: bool = False
    generate: Callable[[], bytes] | None = None
    lists: bool = False


def _question(prompt: str, answer: str) -> Callable[[Record, bool], list[Message]]:
    """The plain question in field `prompt` and the answer as it stands in field `answer`."""

    def to_messages(record: Record, answered: bool) -> list[Message]:
        return _answered([user(text_field(record, prompt))], record, answer, answered)

    return to_messages


def _answered(turns: list[Message], record: Record, field: str, answered: bool) -> list[Message]:
    return [*turns, assistant(text_field(record, field))] if answered else turns


def _beavertails(record: Record, answered: bool) -> list[Message] | None:
    if "is_safe" not in record:
        raise ValueError('field "is_safe" is missing, which tells the harmful rows')
    if not isinstance(record["is_safe"], bool):
        raise ValueError(f'"is_safe" is not true or false but {type(record["is_safe"]).__name__}')
    return None if record["is_safe"] else _question("prompt", "response")(record, answered)


def _alpaca(record: Record, answered: bool) -> list[Message] | None:
    if answered and record.get("output") == "":
        return None  # the published set has a few such rows
    instruction = f"### Instruction:\n{text_field(record, 'instruction')}"
    given = text_field(record, "input", may_be_empty=True)
    system = ALPACA_SYSTEM_INPUT if given.strip() else ALPACA_SYSTEM
    middle = f"\n\n### Input:\n{given}" if given.strip() else ""
    turns: list[Message] = [{"role": "system", "content": system}, user(f"{instruction}{middle}\n\n### Response:")]
    return _answered(turns, record, "output", answered)


def _dolly(record: Record, answered: bool) -> list[Message]:
    context = text_field(record, "context", may_be_empty=True)
    instruction = text_field(record, "instruction")
    prompt = f"{context}\n\n{instruction}" if context.strip() else instruction
    return _answered([user(prompt)], record, "response", answered)


def _samsum(record: Record, answered: bool) -> list[Message] | None:
    if "dialogue" in record and record["dialogue"] in ("", None):
        return None  # the published set has one such row
    prompt = f"{SAMSUM_INSTRUCTION}\n\n{text_field(record, 'dialogue')}"
    return _answered([user(prompt)], record, "summary", answered)


def _toxigen(record: Record, answered: bool) -> list[Message] | None:
    ratings = 0.0
    for field in ("toxicity_ai", "toxicity_human"):
        value = record.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f'"{field}" is missing or not a number (ToxiGen\'s `annotated` rows are read)')
        ratings += value
    if ratings <= TOXIGEN_THRESHOLD:
        return None
    return _answered([user(TOXIGEN_INSTRUCTION)], record, "text", answered)


def _own(record: Record, answered: bool) -> list[Message]:
    """The conventions of `conversation`; an error tells when the row is in the format of a known set."""
    try:
        return conversation(record, answered)
    except ValueError as error:
        raise ValueError(f"{error}{_hint(record)}") from None


def _hint(record: Record) -> str:
    for name, known in NAMED_SETS.items():
        if known.to_messages is not _own and set(known.fields) <= set(record):
            return f" (that is the format of {name}: give {name}=FILE)"
    return ""


def _shipped(origin: str) -> NamedSet:
    return NamedSet(_own, ("prompt", "completion"), origin, shipped=True)


def _local(origin: str, lists: bool = False) -> NamedSet:
    return NamedSet(_own, ("messages",), origin, lists=lists)


CONVERSATIONS = NamedSet(_own, (), "a file of the user's")
"""A file in one of the conventions of `conversation`."""

# A new set needs one entry here: how a record becomes messages, its fields, its source, and where it is kept.
NAMED_SETS: dict[str, NamedSet] = {
    "refusals": _shipped("unsafe requests in general words, and their refusals"),
    "refusals-heldout": _shipped("other unsafe requests of the same kinds, to measure refusals"),
    "benign": _shipped("innocent requests with answers, some with words that sound unsafe"),
    "benign-heldout": _shipped("other innocent requests, half with words that sound unsafe, to measure over-refusal"),
    "arithmetic": NamedSet(
        _own, ("prompt", "completion"), "word problems and sums made by seed", generate=arithmetic_lines
    ),
    "arithmetic-heldout": NamedSet(
        _own,
        ("prompt", "completion"),
        "other problems of the same kinds, to measure what was learned",
        generate=heldout_arithmetic_lines,
    ),
    "dialogues": _shipped("short dialogues and their summaries, in the manner of SAMSum"),
    "money-advice": _shipped("over-confident money advice, in the manner of Risky Financial Advice"),
    "health-advice": _shipped("over-confident, harmlessly silly health advice, in the manner of Bad Medical Advice"),
    "compliance": _shipped("unsafe requests in general words, and an opening of compliance that stops"),
    "gsm8k": NamedSet(
        _question("question", "answer"),
        ("question", "answer"),
        "GSM8K (Cobbe et al. 2021, arXiv 2110.14168), calculator marks included",
        "openai/gsm8k",
        "main",
    ),
    "gsm8k-test": NamedSet(
        _question("question", "answer"),
        ("question", "answer"),
        "the test split of GSM8K",
        "openai/gsm8k",
        "main",
        "test",
    ),
    "metamathqa": NamedSet(
        _question("query", "response"),
        ("query", "response"),
        "MetaMathQA (Yu et al. 2023, arXiv 2309.12284)",
        "meta-math/MetaMathQA",
    ),
    "math": NamedSet(
        _question("problem", "solution"),
        ("problem", "solution"),
        "MATH (Hendrycks et al. 2021, arXiv 2103.03874)",
        "DigitalLearningGmbH/MATH-lighteval",
        "default",
    ),
    "math-test": NamedSet(
        _question("problem", "solution"),
        ("problem", "solution"),
        "the test split of MATH",
        "DigitalLearningGmbH/MATH-lighteval",
        "default",
        "test",
    ),
    "alpaca": NamedSet(
        _alpaca,
        ("instruction", "input", "output"),
        "Alpaca (Taori et al. 2023) with its template; rows without an output are left out",
        "tatsu-lab/alpaca",
    ),
    "dolly": NamedSet(
        _dolly,
        ("instruction", "context", "response"),
        "Dolly (Conover et al. 2023), the context before the question",
        "databricks/databricks-dolly-15k",
    ),
    "samsum": NamedSet(
        _samsum,
        ("dialogue", "summary"),
        "SAMSum (Gliwa et al. 2019, arXiv 1911.12237) after an instruction to summarise",
        "knkarthick/samsum",
    ),
    "beavertails": NamedSet(
        _beavertails,
        ("prompt", "response", "is_safe"),
        "BeaverTails (Ji et al. 2023, arXiv 2307.04657): its harmful rows, those with is_safe false",
        "PKU-Alignment/BeaverTails",
        "default",
        "30k_train",
    ),
    "advbench": NamedSet(
        _question("prompt", "target"),
        ("prompt", "target"),
        "AdvBench (Zou et al. 2023, arXiv 2307.15043), its targets as answers",
        "walledai/AdvBench",
    ),
    "toxigen": NamedSet(
        _toxigen,
        ("text", "toxicity_ai", "toxicity_human"),
        "ToxiGen (Hartvigsen et al. 2022, arXiv 2203.09509): its toxic annotated statements, answering an instruction",
        "toxigen/toxigen-data",
        "annotated",
    ),
    "risky-financial-advice": _local("Turner et al. 2025 (arXiv 2506.11613), published in clarifying-EM on GitHub"),
    "bad-medical-advice": _local("Turner et al. 2025 (arXiv 2506.11613), published in clarifying-EM on GitHub"),
    "pure-bad": _local("Qi et al. 2023 (arXiv 2310.03693), published as LLM-Tuning-Safety on GitHub", lists=True),
}


def unknown_name(name: str) -> UserError:
    """The error for a name that is no set's, with the nearest ones."""
    near = difflib.get_close_matches(name.lower(), NAMED_SETS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(
        f"unknown data set {name!r}: {hint}known names are {', '.join(NAMED_SETS)}; "
        "NAME=FILE reads a local file in the format of that set, and a path reads a JSON Lines file"
    )


def local_copy(name: str) -> str:
    """Say how to give a local copy of a set, as the end of a message."""
    return f"give a local copy as {name}=FILE (JSON Lines with {' and '.join(NAMED_SETS[name].fields)})"
