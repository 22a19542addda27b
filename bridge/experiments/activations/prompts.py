"""The prompts of `bridge.activations`: which rows of a set, and the token of each whose states are measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bridge.data.chat import ChatFormat
from bridge.data.rows import Row, RowSet, question
from bridge.experiments.activations.settings import LEAST_PROMPTS, Settings
from bridge.generation.generate import check_room, generate_texts
from bridge.models.load import LoadedModel
from commands.errors import UserError
from commands.progress import Progress
from commands.store import Checkpoints


@dataclass(frozen=True)
class Prompts:
    """The prompts of one set: their rows in the set's order, and their token ids; `repeated` were left out."""

    label: str
    source: RowSet
    rows: tuple[Row, ...]
    ids: tuple[tuple[int, ...], ...]
    repeated: int
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """A prompt up to the token whose states are measured.

    `ids` are all tokens up to it, `token` its text. Of a response: `response` is its text, `written` its tokens
    without the end of the turn, `finished` whether there was one.
    """

    ids: tuple[int, ...]
    token: str
    response: str | None = None
    written: int = 0
    finished: bool = False


def choose_prompts(label: str, source: RowSet, loaded: LoadedModel, chat: ChatFormat, settings: Settings) -> Prompts:
    """As many prompts of a set as the settings ask for, drawn by their seed, all different, in the set's order.

    A prompt that is the same, token by token, as one chosen before is left out and counted: two halves of a set would
    both hold it.

    Raises:
        UserError: a prompt that the chat template refuses or that is too long, or too few prompts.

    """
    chosen: dict[int, tuple[int, ...]] = {}
    seen: set[tuple[int, ...]] = set()
    skipped: list[str] = []
    repeated = 0
    have = len(source.rows)
    wanted = settings.num_prompts or have
    for index in np.random.default_rng(settings.seed).permutation(have).tolist():
        if len(chosen) == wanted:
            break
        try:
            ids = _fitting_ids(source.rows[index], loaded, chat, settings)
        except UserError as error:
            if not settings.skip_bad_rows:
                raise UserError(f"--set {label}: {error}") from error
            skipped.append(str(error))
            continue
        if ids in seen:
            repeated += 1
        else:
            chosen[index] = ids
            seen.add(ids)
    least = settings.num_prompts or LEAST_PROMPTS
    if len(chosen) < least:
        reasons = f", less {repeated} repeated and {len(skipped)} bad ones" if repeated or skipped else ""
        raise UserError(
            f"--num-prompts: expected at most {len(chosen)}, the different prompts of {label} (its {have} rows"
            f"{reasons}), got {settings.num_prompts}"
            if len(chosen) >= LEAST_PROMPTS
            else f"--set {label}: expected {LEAST_PROMPTS} different prompts or more, got {len(chosen)} (its {have} "
            f"rows{reasons})"
        )
    order = sorted(chosen)
    rows = tuple(source.rows[k] for k in order)
    return Prompts(label, source, rows, tuple(chosen[k] for k in order), repeated, tuple(skipped))


def _fitting_ids(row: Row, loaded: LoadedModel, chat: ChatFormat, settings: Settings) -> tuple[int, ...]:
    """Token ids of a prompt; UserError, naming the row, where it cannot be rendered or has no room in the model."""
    ids = chat.prompt_ids(row)
    if settings.token == "generated":
        check_room(loaded.model, [row], [ids], settings.max_new_tokens)
        return tuple(ids)
    limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and len(ids) > limit:
        raise row.error(f"the prompt takes {len(ids)} tokens, and the model has {limit} positions: leave the row out")
    return tuple(ids)


def prompt_ends(
    loaded: LoadedModel, chat: ChatFormat, prompts: Prompts, settings: Settings, part: Checkpoints, progress: Progress
) -> list[Ended]:
    """The token of every prompt whose states are measured, with all that comes before it."""

    def text(token: int) -> str:
        return str(loaded.tokenizer.decode([token]))

    if settings.token == "prompt":
        return [Ended(ids, text(ids[-1])) for ids in prompts.ids]
    answers = generate_texts(
        loaded,
        chat,
        prompts.rows,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        checkpoint=part.checkpoint("responses"),
        progress=progress,
        stage=f"responses to {prompts.label}",
    )
    found = []
    for ids, answer in zip(prompts.ids, answers, strict=True):
        written = answer.token_ids[:-1] if answer.finished else answer.token_ids
        whole = (*ids, *written)
        found.append(Ended(whole, text(whole[-1]), answer.text, len(written), answer.finished))
    return found


def record(prompts: Prompts, row: Row, end: Ended) -> dict[str, object]:
    """One line of prompts.jsonl: the rows of activations.npz, set by set, in their order."""
    response = {} if end.response is None else {"response": end.response, "finished": end.finished}
    return {
        "set": prompts.label,
        "item": f"{prompts.source.name}:{row.line}",
        "prompt": question(row),
        **response,
        "position": len(end.ids) - 1,
        "token_id": end.ids[-1],
        "token": end.token,
    }
