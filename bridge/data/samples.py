"""Tokenised samples with their response masks: what the estimators take, and one line of samples.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Int64

from commands.errors import UserError


@dataclass(frozen=True)
class Sample:
    """Token ids (T,) of one sample, and a mask (T,) that is 1 on the response tokens.

    The response tokens are those whose log-probabilities, each given all tokens before it, make up
    l = log pi(y given x). `group` is shared by samples that are not independent of each other: several
    responses drawn at one prompt. Raises ValueError unless the mask holds 0 and 1 only, is as long as
    input_ids, marks some token, and leaves out the first, which nothing predicts.
    """

    set: str
    id: str
    input_ids: tuple[int, ...]
    response_mask: tuple[int, ...]
    group: int

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.response_mask):
            raise ValueError(f"sample {self.id}: {len(self.input_ids)} ids but {len(self.response_mask)} mask entries")
        if any(value not in (0, 1) for value in self.response_mask):
            raise ValueError(f"sample {self.id}: response_mask holds other values than 0 and 1")
        if 1 not in self.response_mask or self.response_mask[0]:
            raise ValueError(f"sample {self.id}: no prompt token before the response, or no response token")

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The ids before the first response token."""
        return self.input_ids[: self.response_mask.index(1)]

    @property
    def response_ids(self) -> tuple[int, ...]:
        """The ids of the response tokens."""
        return tuple(i for i, kept in zip(self.input_ids, self.response_mask, strict=True) if kept)

    def to_json(self) -> str:
        """The sample as one line of JSON (no line end)."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Sample:
        """The sample that `to_json` wrote; raises UserError when the line is not one."""
        try:
            fields = json.loads(line)
            return cls(
                set=str(fields["set"]),
                id=str(fields["id"]),
                input_ids=tuple(int(i) for i in fields["input_ids"]),
                response_mask=tuple(int(i) for i in fields["response_mask"]),
                group=int(fields["group"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"not a line of samples.jsonl ({error!r}): {line[:60]}") from None


def with_response(
    prompt_ids: Sequence[int], response_ids: Sequence[int], *, set_name: str, sample_id: str, group: int
) -> Sample:
    """A sample whose response was drawn from a model: all of response_ids are response tokens."""
    mask = (0,) * len(prompt_ids) + (1,) * len(response_ids)
    return Sample(set_name, sample_id, (*prompt_ids, *response_ids), mask, group)


def collate(samples: Sequence[Sample], pad_id: int) -> dict[str, Int64[np.ndarray, "batch length"]]:
    """input_ids, attention_mask and response_mask of the samples, padded on the right to the longest.

    Padding has id pad_id and 0 in both masks.
    """
    shape = (len(samples), max(len(sample.input_ids) for sample in samples))
    ids = np.full(shape, pad_id, dtype=np.int64)
    attention, response = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, sample in enumerate(samples):
        length = len(sample.input_ids)
        ids[row, :length] = sample.input_ids
        attention[row, :length] = 1
        response[row, :length] = sample.response_mask
    return {"input_ids": ids, "attention_mask": attention, "response_mask": response}
