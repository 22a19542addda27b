"""Batches: every sample once, similar lengths together, and the token cap."""

from __future__ import annotations

import pytest
import torch

from bridge.estimators.batches import log_probabilities, make_batches, response_logits, sum_by_row
from tests.bridge.conftest import random_samples
from tests.oracles.tiny_transformer import TinyTransformer

SAMPLES = random_samples("s", 11, 13, seed=4)


@pytest.mark.parametrize("batch_size", [1, 3, 11, 50])
@pytest.mark.parametrize("max_tokens", [None, 1, 12, 20])
def test_every_sample_once_within_the_caps(batch_size: int, max_tokens: int | None) -> None:
    batches = make_batches(SAMPLES, batch_size, 0, "cpu", max_tokens)
    assert sorted(i for b in batches for i in b.indices) == list(range(11))
    for batch in batches:
        assert len(batch.indices) <= batch_size
        assert max_tokens is None or batch.input_ids.numel() <= max_tokens or len(batch.indices) == 1
    if max_tokens is None:
        assert len(batches) == -(-11 // batch_size)
    if max_tokens == 20 and batch_size == 50:
        assert any(len(b.indices) > 1 for b in batches)


def test_padding_and_batching_leave_log_probabilities_alone(tiny: TinyTransformer) -> None:
    alone, together = torch.zeros(11, dtype=torch.float64), torch.zeros(11, dtype=torch.float64)
    for out, size in ((alone, 1), (together, 4)):
        for batch in make_batches(SAMPLES, size, 7, "cpu"):
            tokens = log_probabilities(response_logits(tiny, batch), batch)
            out[list(batch.indices)] = sum_by_row(tokens, batch)
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)
    first = SAMPLES[0]
    logits = tiny(torch.tensor([first.input_ids]), torch.ones(1, len(first.input_ids))).logits[0]
    wanted = sum(
        float(torch.log_softmax(logits[t - 1], -1)[y]) for t, y in enumerate(first.input_ids) if first.response_mask[t]
    )
    assert float(alone[0]) == pytest.approx(wanted, rel=1e-12)
