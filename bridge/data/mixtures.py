"""What a model is fine-tuned on: rows of one set, or of one contaminated with a share of another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bridge.data.chat import ChatFormat
from bridge.data.encode import EncodedRows, encode_rows
from bridge.data.rows import RowSet, load_rows
from bridge.data.samples import Sample
from commands.errors import UserError

# Streams of the seed. The data's own rows are drawn with the seed alone, as `encode_rows` draws them elsewhere.
_MIX, _SHUFFLE = 1, 2


@dataclass(frozen=True)
class Part:
    """One set's part of a selection: the chosen lines in file order, and the share they make up."""

    name: str
    sha256: str
    rows: list[int]
    share: float


@dataclass(frozen=True)
class Selection:
    """Samples in training order, where they come from, and one line for each bad row that was passed over."""

    samples: tuple[Sample, ...]
    parts: tuple[Part, ...]
    skipped: tuple[str, ...]


def select_samples(
    data: str | RowSet,
    fmt: ChatFormat,
    *,
    count: int | None,
    max_length: int,
    seed: int,
    mix: str | RowSet | None = None,
    share: float = 0.0,
    skip_bad_rows: bool = False,
) -> Selection:
    """Choose and tokenise `count` rows of the set `data`, of which a share may come from the set `mix`.

    Of the count rows, exactly round(share * count) are of `mix`: a contamination of 20 % is 20 % of the
    mixture, not 20 % on top. Each part is drawn by seed without replacement, then the whole is shuffled by
    seed. Without a mixture, count None takes all rows; with one, the largest number that both sets allow. With
    skip_bad_rows, another row is drawn in place of one that cannot be used, so that the share stays exact.
    `Sample.set` names the set that a sample is from.

    Raises UserError for a share outside [0, 1), a share without `mix`, sets that are the same, too few rows in
    either, a share that leaves one of them without a row, an empty selection, and as `load_rows` and
    `encode_rows` do.
    """
    _check_request(mix, share)
    if count is not None and count < 1:
        raise UserError(f"at least one row of {data if isinstance(data, str) else data.name} is needed, got {count}")
    own = _rows(data, skip_bad_rows)
    if mix is None or share == 0.0:
        encoded = [encode_rows(own, fmt, count, max_length, seed, skip_bad_rows)]
        return _selection([own], encoded, seed)
    other = _other(own, _rows(mix, skip_bad_rows))
    if count is None:
        usable, usable_other = (_usable(rows, fmt, max_length, skip_bad_rows) for rows in (own, other))
        count = largest_mixture(usable, usable_other, share)
    from_mix = _rows_of_mix(own, other, count, share)
    encoded = [
        encode_rows(own, fmt, count - from_mix, max_length, seed, skip_bad_rows),
        encode_rows(other, fmt, from_mix, max_length, (seed, _MIX), skip_bad_rows),
    ]
    return _selection([own, other], encoded, seed)


def largest_mixture(own: int, other: int, share: float) -> int:
    """The largest n with n - round(share * n) <= own and round(share * n) <= other, for 0 < share < 1."""
    count = own + other
    while count and (count - round(share * count) > own or round(share * count) > other):
        # Neither part shrinks as n grows, so n may fall by as much as one of them is over, at once.
        count -= max(1, count - round(share * count) - own, round(share * count) - other)
    return count


def _rows(given: str | RowSet, skip_bad_rows: bool) -> RowSet:
    return given if isinstance(given, RowSet) else load_rows(given, skip_bad_rows=skip_bad_rows)


def _check_request(mix: str | RowSet | None, share: float) -> None:
    if not 0.0 <= share < 1.0:
        raise UserError(f"the share of the rows mixed in must be at least 0 and below 1, got {share:g}")
    if mix is None and share > 0.0:
        raise UserError(f"a share of {share:g} is to be mixed in, but no set to take it from is given")


def _other(own: RowSet, other: RowSet) -> RowSet:
    """The set to mix in, under a name that tells it from the first."""
    if own.sha256 == other.sha256:
        raise UserError(f"{own.name} is to be mixed with itself: give another set to mix in")
    return replace(other, name=f"{other.name} (mixed in)") if own.name == other.name else other


def _usable(rows: RowSet, fmt: ChatFormat, max_length: int, skip_bad_rows: bool) -> int:
    """Number of rows that can be drawn; where bad ones are an error, drawing one tells."""
    if not skip_bad_rows:
        return len(rows.rows)
    return len(encode_rows(rows, fmt, None, max_length, 0, skip_bad_rows).samples)


def _rows_of_mix(own: RowSet, other: RowSet, count: int, share: float) -> int:
    from_mix = round(share * count)
    for rows, number in ((own, count - from_mix), (other, from_mix)):
        if number < 1:
            raise UserError(
                f"a share of {share:g} of {count} rows leaves no row of {rows.name}: "
                "ask for more rows or change the share"
            )
    return from_mix


def _selection(sets: list[RowSet], encoded: list[EncodedRows], seed: int) -> Selection:
    total = sum(len(part.samples) for part in encoded)
    samples: list[Sample] = []
    first_group = 0
    for rows, part in zip(sets, encoded, strict=True):
        # Groups are line numbers: those of another set must not look like more draws at the same prompt.
        samples += [replace(sample, group=first_group + sample.group) for sample in part.samples]
        first_group += max(row.line for row in rows.rows)
    order = np.random.default_rng((seed, _SHUFFLE)).permutation(total).tolist()
    parts = tuple(
        Part(
            name=rows.name,
            sha256=rows.sha256,
            rows=[row.line for row in part.rows],
            share=len(part.rows) / total,
        )
        for rows, part in zip(sets, encoded, strict=True)
    )
    skipped = tuple(line for part in encoded for line in part.skipped)
    return Selection(tuple(samples[i] for i in order), parts, skipped)
