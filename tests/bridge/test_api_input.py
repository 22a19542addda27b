"""Rows that a caller has in memory, and wrong input: one clear line, in the names of the keywords."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bridge
from tests.bridge.support.tiny_interface import SHORT, make_interface_workplace
from tests.bridge.support.tiny_runs import SKILL_ROWS

PAIRS: list[dict[str, Any]] = [{"prompt": prompt, "completion": answer} for prompt, answer in SKILL_ROWS]
PROMPTS = [prompt for prompt, _ in SKILL_ROWS]


def _turns(prompt: str, answer: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": "user", "content": prompt}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_interface_workplace(tmp_path_factory.mktemp("input"))


@pytest.fixture(scope="module")
def model(workplace: Path) -> Any:
    return bridge.Model(workplace / "model", device="cpu")


@pytest.fixture(scope="module")
def skill(model: Any, workplace: Path) -> Any:
    return model.samples(workplace / "skill.jsonl", 6, **SHORT)


@pytest.fixture(scope="module")
def rows(model: Any, workplace: Path) -> Any:
    return model.samples(workplace / "finetune.jsonl", 5, responses="rows", max_length=64)


def _dataset() -> Any:
    from datasets import Dataset

    return Dataset.from_list(PAIRS)


FORMS: dict[str, Callable[[], Any]] = {
    "pairs": lambda: PAIRS,
    "conversations": lambda: [_turns(prompt, answer) for prompt, answer in SKILL_ROWS],
    "messages": lambda: [{"messages": _turns(prompt, answer)} for prompt, answer in SKILL_ROWS],
    "a dataset": _dataset,
    "prompts": lambda: PROMPTS,
    "prompts as rows": lambda: [{"prompt": prompt} for prompt in PROMPTS],
    "questions": lambda: [_turns(prompt) for prompt in PROMPTS],
    "prompts of messages": lambda: [{"prompt": _turns(prompt)} for prompt in PROMPTS],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_rows_in_memory_are_those_of_a_file(form: Any, model: Any, workplace: Path, skill: Any) -> None:
    given = model.samples(form(), 6, **SHORT)
    assert [s.input_ids for s in given.samples] == [s.input_ids for s in skill.samples]
    found, read = (model.spectrum(samples, rank=3).to_dict() for samples in (given, skill))
    ours, theirs = (json.dumps(result["skills"]) for result in (found, read))
    assert ours.replace(given.name, "skill") == theirs.replace(str(workplace / "skill.jsonl"), "skill")


def test_answers_in_memory_are_those_of_a_file(model: Any, workplace: Path) -> None:
    read = model.samples(workplace / "skill.jsonl", 6, responses="rows", max_length=64)
    for name in ("pairs", "conversations", "messages", "a dataset"):
        given = model.samples(FORMS[name](), 6, responses="rows", max_length=64)
        assert list(given) == list(read), name


def test_prompts_in_memory_are_asked(model: Any, workplace: Path) -> None:
    prompts = [json.loads(line)["prompt"] for line in (workplace / "prompts.jsonl").read_text().splitlines()]
    given, read = (model.harmfulness(source, max_new_tokens=4) for source in (prompts, workplace / "prompts.jsonl"))
    assert given.judges == read.judges


def test_bad_rows_may_be_left_out(model: Any) -> None:
    bad = [PAIRS[0], {"completion": "x"}, *PAIRS[1:], [{"role": "bot", "content": "x"}]]
    samples = model.samples(bad, 8, skip_bad_rows=True, **SHORT)
    assert len(samples.rows.skipped) == 2
    assert "row 2" in samples.rows.skipped[0]
    assert model.spectrum(samples, rank=3).to_dict()


BAD_ROWS = [
    ([], "data: rows in memory has no usable row: it is empty"),
    ([PAIRS[0], {"prompt": 3}], 'row 2: "prompt" is not a string but int'),
    ([PAIRS[0], []], 'row 2: "messages" is not a non-empty list'),
    ([[{"role": "bot", "content": "x"}]], "row 1: .* role 'bot'; known roles are"),
    ([PAIRS[0], {"prompt": "\ud800"}], "row 2: .* not valid text"),
    ([PAIRS[0], {"question": "x"}], 'row 2: expected "messages", or "prompt"'),
    (["x" * 80], "row 1: no response token is left within .* 64 tokens"),
    (["refusals", "benign"], "got a list with 'refusals', the name of a set"),
]


@pytest.mark.parametrize(("bad", "wanted"), BAD_ROWS)
def test_a_bad_row_is_told_by_its_number(bad: Any, wanted: str, model: Any) -> None:
    with pytest.raises(bridge.UserError, match=wanted):
        model.samples(bad, 1, **SHORT)


def test_rows_without_answers_are_no_rows_to_train_on(model: Any, skill: Any) -> None:
    for call in (
        lambda: model.samples(PROMPTS, 4, responses="rows"),
        lambda: model.estimate_aic(skill, PROMPTS, num_finetune=4),
    ):
        with pytest.raises(bridge.UserError, match='row 1: field "completion" is missing'):
            call()


WRONG: dict[str, tuple[Callable[..., Any], str]] = {
    # misspelt, out of range, of another type
    "misspelt": (
        lambda m, s, r, w: m.estimate_aic(s, r, bootstrapp=3),
        "unknown option 'bootstrapp'; did you mean bootstrap?",
    ),
    "samples misspelt": (
        lambda m, s, r, w: m.samples(w / "skill.jsonl", 2, max_newtokens=3),
        "unknown option 'max_newtokens'; did you mean max_new_tokens or max_length?",
    ),
    "not of samples": (lambda m, s, r, w: m.samples("refusals", 2, num_skill=3), "unknown option 'num_skill'.*count"),
    "out of range": (lambda m, s, r, w: m.spectrum(s, rank=0), "^rank: expected a whole number from 1, got 0$"),
    "count": (lambda m, s, r, w: m.samples("refusals", 0), "^count: expected a whole number from 1, got 0$"),
    "type": (lambda m, s, r, w: m.risk(s, {"a": r}, bootstrap="x"), "^bootstrap: expected a whole number .*'x'$"),
    "renamed on the line": (
        lambda m, s, r, w: m.activations({"a": w / "useful.jsonl"}),
        "^sets: expected at least two sets",
    ),
    "renamed override": (
        lambda m, s, r, w: m.finetune(r, folder=w / "none", override={"no_such": 1}),
        "^override no_such: no field of TrainingArguments",
    ),
    "too many rows": (lambda m, s, r, w: m.samples("refusals", 10**6, **SHORT), "^data: refusals has 200 usable rows"),
    "unknown set": (lambda m, s, r, w: m.estimate_aic("refusal", r), "^skill: unknown data set 'refusal': did you"),
    "unknown model": (lambda m, s, r, w: bridge.Model("smolm2"), "did you mean smollm2-135m"),
    "unknown device": (lambda m, s, r, w: bridge.Model(w / "model", device="gpu"), "unknown device 'gpu'"),
    "unknown dtype": (lambda m, s, r, w: bridge.Model(w / "model", dtype="int8"), "^dtype: expected float32 or"),
    # what contradicts the samples or the model
    "max_length": (
        lambda m, s, r, w: m.estimate_aic(s, r, max_length=32),
        "^max_length: expected 64, as the samples have it, got 32$",
    ),
    "seed": (
        lambda m, s, r, w: m.estimate_aic(s, r, seed=3),
        "^seed: expected 0, as the samples have it, got 3$",
    ),
    "two samples": (
        lambda m, s, r, w: m.risk(s, {"a": m.samples(w / "a.jsonl", 5, responses="rows", max_length=32)}),
        "^max_length: expected 32, as the samples have it, got 64$",
    ),
    "the model's own": (lambda m, s, r, w: m.spectrum(s, model="gpt2"), "^model: expected the model's own, "),
    "dtype of the model": (lambda m, s, r, w: m.spectrum(s, dtype="float64"), "^dtype: expected the model's own"),
    "samples of another": (
        lambda m, s, r, w: bridge.Model("random:smollm2-135m").spectrum(s, rank=2),
        "^skill: expected samples of random:smollm2-135m, got samples of .*model$",
    ),
    "samples of another dtype": (
        lambda m, s, r, w: bridge.Model(w / "model", device="cpu", dtype="float64").spectrum(s, rank=2),
        "^skill: the model has changed since it answered these samples",
    ),
    "trained on own answers": (
        lambda m, s, r, w: m.estimate_aic(s, s),
        '^finetune: expected samples with responses="rows", got the model\'s own responses$',
    ),
    "candidates of own answers": (lambda m, s, r, w: m.risk(s, {"a": s}), '^candidates: .*responses="rows"'),
    "skill of the data's answers": (lambda m, s, r, w: m.onset(r, r), '^skill: .*responses="model"'),
    "samples where none fit": (lambda m, s, r, w: m.utility(r), "^data: expected a set or rows, got samples"),
    # changes and folders
    "no change": (lambda m, s, r, w: m.overlap(s), "^delta: expected a change of weights"),
    "no such change": (lambda m, s, r, w: m.overlap(s, w / "none", rank=2), "^delta: no such change of weights"),
    "change of another": (
        lambda m, s, r, w: m.overlap(s, w / "updates" / "full.safetensors", rank=2),
        "is a change of another model than",
    ),
    "no loss without change": (lambda m, s, r, w: m.utility_loss(s), "^delta: expected the path of a weight change"),
    "another's folder": (
        lambda m, s, r, w: (m.spectrum(s, rank=2, folder=w / "run"), m.spectrum(s, rank=3, folder=w / "run")),
        "^folder: .* holds another run .*rank: 2 there, 3 now",
    ),
    "foreign folder": (lambda m, s, r, w: m.spectrum(s, rank=2, folder=w), "^folder: expected a new or empty folder"),
    "rescore": (lambda m, s, r, w: m.harmfulness(rescore="x"), "^rescore: expected none"),
    "no run": (lambda m, s, r, w: bridge.load_result(w), "expected the folder of a run, with its manifest.json"),
    "no folder": (lambda m, s, r, w: bridge.load_result(w / "none"), "expected the folder of a run"),
    "one update": (
        lambda m, s, r, w: bridge.mso({"a": w / "full.safetensors"}, folder=w / "none"),
        "^update: expected two updates or more",
    ),
    "no alignment": (lambda m, s, r, w: bridge.energy(w / "adapter", folder=w / "none"), "^alignment: expected"),
    "misspelt alignment": (
        lambda m, s, r, w: bridge.project(w / "adapter", alignmen="x", folder=w / "none"),
        "unknown option 'alignmen'; did you mean alignment",
    ),
}


@pytest.mark.parametrize(("call", "wanted"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_line_with_keywords(
    call: Any, wanted: str, model: Any, skill: Any, rows: Any, workplace: Path
) -> None:
    with pytest.raises(bridge.UserError, match=wanted) as error:
        call(model, skill, rows, workplace)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("rescore") or not re.search(r"(?<![\w-])--[a-z]", text)
    assert not (workplace / "none").exists()


def test_a_run_that_is_not_complete_or_not_ours_is_not_read(tmp_path: Path) -> None:
    for manifest, wanted in (
        ({"command": "bridge.spectrum", "status": "running"}, "not complete"),
        ({"command": "sim.grid", "status": "complete"}, "expected a run of .*bridge.spectrum.*, got one of sim.grid"),
        ({"command": "bridge.spectrum", "status": "complete"}, "spectrum.json cannot be read"),
        ({"status": "complete"}, "no manifest of a run"),
        ([], "no manifest of a run"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(bridge.UserError, match=wanted):
            bridge.load_result(tmp_path)


# The tests' import hook checks types before the interface can: here it is as a notebook has it.
TYPES = """
import json, random, sys
from pathlib import Path
import bridge

place = Path(sys.argv[1])
m = bridge.Model(place / "model", device="cpu")
state = random.getstate()
m.spectrum(place / "skill.jsonl", num_skill=4, rank=2, max_new_tokens=4, max_length=64)
assert random.getstate() == state
rows = [{"prompt": "a", "completion": "b"}]
calls = [
    lambda: bridge.Model(3), lambda: bridge.Model(place / "model", seed="x"), lambda: m.samples(3),
    lambda: m.samples(None), lambda: m.samples(rows[0]), lambda: m.samples(iter(rows)), lambda: m.samples([3], 1),
    lambda: m.samples([b"x"], 1), lambda: m.samples("refusals", "6"), lambda: m.samples("refusals", responses=3),
    lambda: m.spectrum(3), lambda: m.spectrum("refusals", folder=3), lambda: m.overlap("refusals", 3),
    lambda: m.overlap("refusals", {"a": 3}), lambda: m.utility_loss("refusals", {"a": place}),
    lambda: m.risk("refusals", 3), lambda: m.risk("refusals", [rows]), lambda: m.activations(3),
    lambda: m.finetune(rows, folder=None), lambda: bridge.load_result(3), lambda: bridge.energy(3, folder=place / "x"),
    lambda: bridge.project(place / "adapter", folder=None),
]
found = []
for call in calls:
    try:
        found.append(f"no error: {call()}")
    except bridge.UserError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_wrong_types_are_one_line_too(workplace: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TYPES, str(workplace)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert len(found) == 22
    for text in found:
        assert re.match(
            r"(model|seed|data|count|responses|skill|folder|delta|candidates|sets|task): .*expected", text
        ), text
