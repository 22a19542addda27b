"""Prompts and responses for the estimators: sets of conversations read, chosen, and tokenised with masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bridge.data.chat import ChatFormat
from bridge.data.rows import Row, RowSet
from bridge.data.samples import Sample
from commands.errors import UserError
from commands.progress import Progress
from commands.store import short_hash


@dataclass(frozen=True)
class EncodedRows:
    """The chosen rows of a set in file order, their samples, and one line for each row that was left out."""

    rows: tuple[Row, ...]
    samples: tuple[Sample, ...]
    skipped: tuple[str, ...]


def encode_rows(
    rowset: RowSet,
    fmt: ChatFormat,
    count: int | None,
    max_length: int,
    seed: int | Sequence[int],
    skip_bad_rows: bool = False,
) -> EncodedRows:
    """Choose `count` rows (None: all) at random, without replacement, and tokenise them.

    The rows follow from seed and the number of rows alone; a larger count with the same seed adds rows to
    those of a smaller one. With skip_bad_rows, a row that cannot be encoded is reported and another drawn in
    its place. Raises UserError if there are fewer rows than asked for, or at a row that cannot be encoded.
    """
    wanted = len(rowset.rows) if count is None else count
    if wanted < 1:
        raise UserError(f"at least one row of {rowset.name} is needed, got {wanted}")
    if wanted > len(rowset.rows):
        raise _too_few(rowset.name, len(rowset.rows), wanted, rowset.skipped)
    chosen: dict[int, Sample] = {}
    skipped = list(rowset.skipped)
    for index in np.random.default_rng(seed).permutation(len(rowset.rows)).tolist():
        if len(chosen) == wanted:
            break
        try:
            chosen[index] = fmt.encode(rowset.rows[index], rowset.name, max_length)
        except UserError as error:
            if not skip_bad_rows:
                raise
            skipped.append(str(error))
    if len(chosen) < (1 if count is None else wanted):
        raise _too_few(rowset.name, len(chosen), 1 if count is None else wanted, skipped)
    order = sorted(chosen)
    return EncodedRows(tuple(rowset.rows[i] for i in order), tuple(chosen[i] for i in order), tuple(skipped))


def _too_few(name: str, have: int, count: int, skipped: Sequence[str]) -> UserError:
    bad = f" (and {len(skipped)} bad ones, the first: {skipped[0]})" if skipped else ""
    return UserError(
        f"{name} has {have} usable rows{bad}, but {count} were asked for: ask for fewer or give a larger set"
    )


def token_hash(samples: Sequence[Sample]) -> str:
    """Hash of what the tokenizer and its chat template made of the rows: it is part of what is measured."""
    return short_hash([[s.id, s.input_ids, s.response_mask, s.group] for s in samples])


def choose(
    option: str,
    rows: RowSet,
    chat: ChatFormat,
    *,
    count: int | None,
    max_length: int,
    seed: int,
    skip_bad_rows: bool,
    progress: Progress,
) -> EncodedRows:
    """Choose and tokenise rows; errors name the option that gave them, and skipped rows are told."""
    try:
        encoded = encode_rows(rows, chat, count, max_length, seed, skip_bad_rows)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
    for line in encoded.skipped:
        progress.say(f"left out: {line}")
    return encoded


def check_positions(limit: int | None, whole: Sequence[Sample], answered: Sequence[Sample], new_tokens: int) -> None:
    """Refuse rows beyond the model's last position: learned positions end there, others are untrained.

    Args:
        limit: how many positions the model has; None where nothing limits them.
        whole: samples that are measured as they are.
        answered: samples of which the prompt alone is used.
        new_tokens: how many tokens are drawn after those prompts.

    """
    if limit is None:
        return
    for sample in whole:
        if len(sample.input_ids) > limit:
            raise UserError(
                f"--max-length: expected at most {limit}, the positions that the model has, got {sample.id} of "
                f"{len(sample.input_ids)} tokens"
            )
    longest = max((len(sample.prompt_ids) for sample in answered), default=0)
    if answered and longest + new_tokens > limit:
        raise UserError(
            f"--max-new-tokens: expected at most {max(limit - longest, 0)}, since the model has {limit} positions and "
            f"the longest prompt {longest} tokens, got {new_tokens}"
        )
