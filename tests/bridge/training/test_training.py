"""The training core against brute force: what is trained on, by how much, and with which weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bridge.data.samples import Sample
from bridge.training.arguments import check_overrides
from bridge.training.plan import Plan, TrainingLog, is_likelihood
from bridge.training.train import train, with_lora
from commands.errors import UserError
from commands.progress import Progress
from commands.store import RunFolder
from tests.bridge.conftest import random_samples
from tests.bridge.support.tiny_models import VOCABULARY, tiny_gpt2_model, tiny_llama_model

MODELS = [tiny_llama_model, tiny_gpt2_model]  # the GPT-2 has dropout of its own and Conv1D; the Llama ties its weights
SAMPLES = random_samples("s", 7, VOCABULARY, 0)
Run = Callable[..., TrainingLog]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Train in a new folder each time, or in the named one again."""
    folders: list[RunFolder] = []

    def _run(model: Any, plan: Plan, samples: list[Sample] = SAMPLES, name: str = "", **options: Any) -> TrainingLog:
        folder = RunFolder(tmp_path / (name or f"run-{len(folders)}"), "training", {})
        folders.append(folder)
        try:
            return train(model, samples, plan, folder, Progress(quiet=True), pad_id=1, **options)
        finally:
            folder.close()

    return _run


def brute_force_loss(model: Any, samples: list[Sample]) -> torch.Tensor:
    """Sum over samples and response tokens of -log p, one sample at a time and without padding, over their number."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for sample in samples:
        logits = model(input_ids=torch.tensor([sample.input_ids])).logits[0].double()
        for position, marked in enumerate(sample.response_mask):
            if marked:
                total = total - logits[position - 1].log_softmax(-1)[sample.input_ids[position]]
                count += 1
    return total / count


def weights(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def farthest(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("micro", [1, 3, 7, 14])
def test_one_step_of_gradient_descent_is_the_brute_force_gradient(run: Run, make: Any, micro: int) -> None:
    model = make().double()
    reference = copy.deepcopy(model).eval()
    loss = brute_force_loss(reference, SAMPLES)
    loss.backward()
    batch = 14 if micro == 14 else 7 if micro != 3 else 9  # more than there are rows: the batch is all of them
    plan = Plan("full", 0.1, max_steps=1, batch_size=batch, micro_batch_size=micro, optimizer="sgd", max_grad_norm=0.0)
    log = run(model, plan)
    assert log.losses[0] == pytest.approx(loss.item(), abs=1e-6)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in reference.parameters()]
    assert log.gradient_norms[0] == pytest.approx(float(sum(g.square().sum() for g in gradients)) ** 0.5, rel=1e-6)
    expected = [p.detach() - 0.1 * g for p, g in zip(reference.parameters(), gradients, strict=True)]
    assert farthest(weights(model), expected) < 1e-7
    assert farthest(weights(model), weights(reference)) > 1e-3


def test_response_tokens_alone_are_trained_on(run: Run) -> None:
    plan = Plan("full", 1e-3, max_steps=1, batch_size=7, optimizer="sgd")
    log = run(tiny_llama_model(), plan)
    assert log.response_tokens == (sum(sum(s.response_mask) for s in SAMPLES),)
    assert log.tokens == (sum(len(s.input_ids) for s in SAMPLES),)
    last = [Sample(s.set, s.id, s.input_ids, (0,) * (len(s.input_ids) - 1) + (1,), s.group) for s in SAMPLES]
    other = run(tiny_llama_model(), plan, last)
    assert other.response_tokens == (7,)
    assert other.losses[0] == pytest.approx(brute_force_loss(tiny_llama_model().eval(), last).item(), abs=1e-5)
    assert abs(other.losses[0] - log.losses[0]) > 1e-4


def test_the_losses_of_trl_and_ours_on_the_cpu_agree(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """trl's own path, which GPUs take, against the plain one that the other tests here see."""
    from bridge.training import sft

    found = []
    for plain in (True, False):
        monkeypatch.setattr(sft._Trainer, "_is_plain", lambda self, ids, plain=plain: plain)
        model = tiny_gpt2_model().double()
        log = run(model, Plan("full", 0.1, max_steps=2, batch_size=4, micro_batch_size=2, optimizer="sgd"))
        found.append((log, weights(model)))
    (first, moved), (second, other) = found
    assert first.losses == pytest.approx(second.losses, abs=1e-6)
    assert first.gradient_norms == pytest.approx(second.gradient_norms, rel=1e-5)
    assert 0 < farthest(moved, other) < 1e-6


@pytest.mark.parametrize("make", MODELS)
def test_micro_batches_decide_rounding_only(run: Run, make: Any) -> None:
    found = {}
    for micro in (1, 2, 4):
        model = make().double()
        log = run(model, Plan("full", 1e-3, epochs=2.0, batch_size=4, micro_batch_size=micro))
        found[micro] = log, weights(model)
    for log, moved in found.values():
        assert log.losses == pytest.approx(found[4][0].losses, abs=1e-6)
        assert log.response_tokens == found[4][0].response_tokens
        assert farthest(moved, found[4][1]) < 2e-6  # AdamW: the sign of a tiny gradient may differ
    assert found[4][0].steps == 4  # two passes of a batch of four and one of three


def test_adamw_step_has_the_size_and_sign_that_it_must(run: Run) -> None:
    """The first step of AdamW is lr * g / (|g| + eps), clipped gradients included; weight decay shrinks by lr * w."""
    model = tiny_llama_model().double()
    before = weights(model)
    reference = copy.deepcopy(model).eval()
    brute_force_loss(reference, SAMPLES).backward()
    gradients = [p.grad for p in reference.parameters()]
    norm = float(sum(g.square().sum() for g in gradients)) ** 0.5  # type: ignore[union-attr,misc]
    run(model, Plan("full", 1e-3, max_steps=1, batch_size=7, scheduler="constant", max_grad_norm=0.5))
    for start, moved, gradient in zip(before, weights(model), gradients, strict=True):
        clipped = gradient * min(1.0, 0.5 / (norm + 1e-6))
        expected = start - 1e-3 * clipped / (clipped.abs() + 1e-8)
        large = clipped.abs() > 1e-5
        assert torch.allclose(moved[large], expected[large], atol=1e-7)


def test_schedule_and_log(run: Run) -> None:
    log = run(tiny_llama_model(), Plan("full", 1e-3, epochs=2.0, batch_size=4, warmup=1.0))
    assert log.learning_rates == pytest.approx([0.0, 1e-3, 2e-3 / 3, 1e-3 / 3])
    assert log.epochs == pytest.approx([4 / 7, 1.0, 11 / 7, 2.0], abs=0.08)
    assert sum(log.tokens) == 2 * sum(len(s.input_ids) for s in SAMPLES)
    assert not log.stopped
    assert log.seconds > 0


def test_the_same_seed_gives_the_same_weights_and_another_does_not(run: Run) -> None:
    def moved(seed: int, dropout: float) -> list[torch.Tensor]:
        plan = Plan("lora", 1e-2, epochs=2.0, batch_size=4, lora_rank=2, lora_dropout=dropout, seed=seed)
        model = with_lora(tiny_llama_model(), plan)
        torch.randn(seed + 3)  # what was drawn before must not matter
        run(model, plan)
        return weights(model)

    assert farthest(moved(1, 0.3), moved(1, 0.3)) == 0
    assert farthest(moved(1, 0.3), moved(1, 0.0)) > 0
    assert farthest(moved(1, 0.0), moved(2, 0.0)) > 0


def test_random_numbers_of_the_caller_are_left_alone(run: Run) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # Python's own are drawn from by the type checker of the tests
    wanted = torch.get_rng_state().clone(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    plan = Plan("lora", 1e-2, epochs=1.0, batch_size=4, lora_dropout=0.3)
    run(with_lora(tiny_llama_model(), plan), plan)
    assert torch.equal(torch.get_rng_state(), wanted[0])
    assert (np.random.get_state()[1] == wanted[1]).all()  # type: ignore[index]


@pytest.mark.parametrize("make", MODELS)
def test_model_is_given_back_as_it_came(run: Run, make: Any) -> None:
    model = make()
    names = set(model.__dict__)
    config, generation = model.config.to_json_string(), model.generation_config.to_json_string()
    dropouts = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    run(model, Plan("full", 1e-3, max_steps=1, batch_size=4, overrides={"gradient_checkpointing": True}))
    assert set(model.__dict__) == names
    assert (model.config.to_json_string(), model.generation_config.to_json_string()) == (config, generation)
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == dropouts
    assert not model.training
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    model(input_ids=torch.tensor([[2, 3]]))


def test_lora_trains_its_adapters_alone(run: Run) -> None:
    plan = Plan("lora", 1e-2, max_steps=3, batch_size=7, lora_rank=2, lora_targets="q_proj")
    model = with_lora(tiny_llama_model(), plan, "base")
    untouched = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" not in name}
    log = run(model, plan)
    assert log.losses[0] == pytest.approx(brute_force_loss(tiny_llama_model().eval(), SAMPLES).item(), abs=1e-5)
    assert log.losses[-1] < log.losses[0]
    adapters = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert len(adapters) == 4
    assert all("q_proj" in name and p.abs().max() > 0 for name, p in adapters.items())
    assert all(torch.equal(p, untouched[name]) for name, p in model.named_parameters() if name in untouched)


def test_on_step_sees_every_step_and_can_end_the_run(run: Run) -> None:
    seen: list[tuple[int, bool]] = []

    def on_step(step: int, model: Any) -> bool:
        seen.append((step, model.training))
        torch.randn(100)
        model(input_ids=torch.tensor([[2, 3]]))
        return step == 2

    plan = Plan("lora", 1e-2, epochs=3.0, batch_size=4, lora_dropout=0.3)
    stopped = with_lora(tiny_llama_model(), plan)
    log = run(stopped, plan, on_step=on_step)
    assert seen == [(1, False), (2, False)]
    assert (log.steps, log.stopped) == (2, True)
    whole = with_lora(tiny_llama_model(), plan)
    assert run(whole, plan).losses[:2] == log.losses  # drawing numbers in on_step changes nothing


def test_a_finished_training_is_not_repeated(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.training import sft

    monkeypatch.setattr(sft, "_SAVE_EVERY_SECONDS", -1.0)
    monkeypatch.setattr(sft, "_SAVE_SHARE", float("inf"))
    plan = Plan("full", 1e-3, epochs=2.0, batch_size=4)
    first, again = tiny_llama_model(), tiny_llama_model()
    log = run(first, plan, name="same", on_step=lambda step, model: step == 3)
    repeated = run(again, plan, name="same", on_step=lambda step, model: pytest.fail("trained again"))
    assert (repeated.losses, repeated.stopped) == (log.losses, True)
    assert farthest(weights(first), weights(again)) == 0


def test_half_written_checkpoints_do_not_count(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bridge.training import sft

    monkeypatch.setattr(sft, "_SAVE_EVERY_SECONDS", -1.0)
    monkeypatch.setattr(sft, "_SAVE_SHARE", float("inf"))

    class Died(BaseException):
        pass

    def die(step: int, model: Any) -> bool:
        if step == 3:
            raise Died
        return False

    plan = Plan("full", 1e-3, epochs=2.0, batch_size=4)
    undisturbed, model = tiny_llama_model(), tiny_llama_model()
    log = run(undisturbed, plan)
    with pytest.raises(Died):
        run(model, plan, name="dead", on_step=die)
    place = tmp_path / "dead" / ".partial" / "training"
    assert [p.name for p in place.iterdir()] == ["checkpoint-2"]  # one is kept
    (place / "checkpoint-3").mkdir()
    (place / "checkpoint-3" / "model.safetensors").write_bytes(b"half")
    model = tiny_llama_model()
    seen: list[int] = []
    resumed = run(model, plan, name="dead", on_step=lambda step, _: bool(seen.append(step)))
    assert seen == [3, 4]
    assert resumed.losses == log.losses
    assert farthest(weights(model), weights(undisturbed)) == 0


def test_a_loss_or_gradient_that_is_no_number_ends_the_run(run: Run) -> None:
    def spoil(step: int, model: Any) -> bool:
        model.lm_head.weight[0, 0] = float("nan" if step == 2 else 0)
        return False

    plan = Plan("full", 0.5, epochs=3.0, batch_size=4)
    with pytest.raises(UserError, match=r"^the loss became nan at step 3 of 6: lower --learning-rate \(0.5 now\)"):
        run(tiny_llama_model(), plan, on_step=spoil)
    model = tiny_llama_model()
    model.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match=r"^the norm of the gradient became (nan|inf) at step 1 of 6"):
        run(model, plan)


def test_weights_of_low_precision_are_refused(run: Run) -> None:
    with pytest.raises(UserError, match=r"expected float32 or float64 weights, got bfloat16.*--set bf16=true"):
        run(tiny_llama_model().bfloat16(), Plan("full", 1e-3))


def test_no_samples_and_a_model_without_adapters(run: Run) -> None:
    with pytest.raises(UserError, match="expected at least one row"):
        run(tiny_llama_model(), Plan("full", 1e-3), [])
    with pytest.raises(ValueError, match="method lora got a model without adapters"):
        run(tiny_llama_model(), Plan("lora", 1e-3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "--learning-rate: expected a number above 0 to 1, got 0.0"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"epochs": 0.0}, "--epochs"),
        ({"max_steps": 0}, "--max-steps"),
        ({"batch_size": 0}, "--batch-size"),
        ({"micro_batch_size": 3}, "--micro-batch-size: expected a divisor of the batch size 8, got 3"),
        ({"warmup": -1.0}, "--warmup"),
        ({"lora_rank": 0}, "--lora-rank"),
        ({"lora_dropout": 1.0}, "--lora-dropout"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_plans_that_no_run_can_have(change: dict[str, Any], message: str) -> None:
    plan: Any = {"method": "lora", "learning_rate": 1e-3, **change}
    with pytest.raises(UserError, match=f"^{message.replace('(', '[(]')}"):
        Plan(**plan).check()


@pytest.mark.parametrize(("targets", "message"), [
    ("nowhere", "--lora-targets: no linear module of the model matches 'nowhere'"),
    ("lm_head", "--lora-targets: expected linear modules of the blocks, got the output layer lm_head"),
])  # fmt: skip
def test_lora_targets_that_match_nothing_or_the_output_layer(targets: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_lora(tiny_llama_model(tied=False), Plan("lora", 1e-3, lora_targets=targets))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"adam_beta3": 0.9}, "no field .* has this name; did you mean adam_beta[12] or"),
        ({"learning_rate": 0.1}, "--set learning_rate: use --learning-rate"),
        ({"output_dir": "x"}, "cannot be set, since the run folder keeps the checkpoints"),
        ({"save_steps": 3}, "the run folder keeps"),
        ({"packing": True}, "rows are tokenised"),
        ({"report_to": "wandb"}, "the run folder records every step"),
        ({"push_to_hub": True}, "nothing is uploaded"),
        ({"fp16": True}, "use bf16=true"),
        ({"adam_beta1": "high"}, "--set adam_beta1: expected a number, got 'high'"),
        ({"gradient_checkpointing": 1}, "expected true or false"),
        ({"train_sampling_strategy": "group_by_length"}, "expected random or sequential, got 'group_by_length'"),
    ],
)
def test_overrides_that_are_refused(override: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_overrides(override)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "magic"}, r"--set: .*magic"),
        ({"scheduler": "cosine_with_min_lr"}, r"--set: training cannot start .*min_lr"),
        ({"scheduler": "warmup_stable_decay"}, r"--set: training cannot start .*num_decay_steps"),
        ({"optimizer": "galore_adamw"}, r"--set: training cannot start .*galore"),
        ({"overrides": {"loss_type": "magic"}}, r"--set: training cannot start .*magic"),
        ({"overrides": {"activation_offloading": True}}, r"--set activation_offloading: expected a GPU"),
    ],
)
def test_values_that_transformers_refuses(run: Run, change: dict[str, Any], message: str) -> None:
    plan: Any = {"method": "full", "learning_rate": 1e-3, **change}
    with pytest.raises(UserError, match=message):
        run(tiny_llama_model(), Plan(**plan))


def test_an_error_of_ours_is_not_called_the_users(run: Run) -> None:
    def fail(*inputs: object, **options: object) -> None:
        raise ValueError("not the user's")

    model = tiny_llama_model()
    model.model.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="not the user's"):
        run(model, Plan("full", 1e-3))


def test_an_objective_that_is_no_likelihood_is_not_called_one() -> None:
    assert is_likelihood({})
    assert is_likelihood({"loss_type": "nll", "label_smoothing_factor": 0.0})
    assert not is_likelihood({"loss_type": "dft"})
    assert not is_likelihood({"label_smoothing_factor": 0.1})
