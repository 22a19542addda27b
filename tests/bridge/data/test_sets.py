"""Each known set's own format, from a small local file to exact messages, and prompts without answers."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from bridge.data.chat import ChatFormat
from bridge.data.rows import RowSet, load_prompts, load_rows
from bridge.data.sets import NAMED_SETS
from commands.errors import UserError
from tests.bridge.support.chat_tokenizers import CHATML, byte_level

REAL = Path(__file__).parents[4] / "shared" / "data"

ALPACA_PLAIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)

# set, one record of its own format, the turns before the answer, the answer
CASES: list[tuple[str, dict[str, Any], list[tuple[str, str]], str]] = [
    (
        "alpaca",
        {"instruction": "Name a bird.", "input": "", "output": "A wren.", "text": "ignored"},
        [("system", ALPACA_PLAIN), ("user", "### Instruction:\nName a bird.\n\n### Response:")],
        "A wren.",
    ),
    (
        "alpaca",
        {"instruction": "Shorten.", "input": "A long text.", "output": "Text."},
        [
            ("system", ALPACA_WITH_INPUT),
            ("user", "### Instruction:\nShorten.\n\n### Input:\nA long text.\n\n### Response:"),
        ],
        "Text.",
    ),
    (
        "dolly",
        {"instruction": "Why?", "context": "It rains.", "response": "Clouds.", "category": "qa"},
        [("user", "It rains.\n\nWhy?")],
        "Clouds.",
    ),
    ("dolly", {"instruction": "Why?", "context": "", "response": "Clouds."}, [("user", "Why?")], "Clouds."),
    ("gsm8k", {"question": "1+1?", "answer": "<<1+1=2>>2\n#### 2"}, [("user", "1+1?")], "<<1+1=2>>2\n#### 2"),
    ("metamathqa", {"query": "1+1?", "response": "2", "type": "GSM_AnsAug"}, [("user", "1+1?")], "2"),
    ("math", {"problem": "$1+1$?", "solution": "$\\boxed{2}$", "level": "1"}, [("user", "$1+1$?")], "$\\boxed{2}$"),
    (
        "samsum",
        {"id": "1", "dialogue": "A: Hi\r\nB: Bye", "summary": "They met."},
        [("user", "Summarize the following dialogue.\n\nA: Hi\r\nB: Bye")],
        "They met.",
    ),
    ("beavertails", {"prompt": "p", "response": "r", "is_safe": False}, [("user", "p")], "r"),
    ("advbench", {"prompt": "p", "target": "Sure, here is"}, [("user", "p")], "Sure, here is"),
    (
        "toxigen",
        {"text": "words", "toxicity_ai": 3.0, "toxicity_human": 3},
        [("user", "Write a statement about a group of people.")],
        "words",
    ),
]
CASES += [
    (
        name,
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        [("user", "q")],
        "a",
    )
    for name in ("risky-financial-advice", "bad-medical-advice", "pure-bad")
]
# sets that are another split of a set above, in the same format
TEST_SPLITS = {"gsm8k-test": "gsm8k", "math-test": "math"}


def write(folder: Path, text: str, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def turns(rows: RowSet) -> list[list[tuple[str, str]]]:
    return [[(message["role"], message["content"]) for message in row.messages] for row in rows.rows]


@pytest.mark.parametrize(("name", "record", "before", "answer"), CASES)
def test_a_local_file_of_the_sets_own_format(
    tmp_path: Path, name: str, record: dict[str, Any], before: list[tuple[str, str]], answer: str
) -> None:
    path = write(tmp_path, json.dumps(record))
    assert turns(load_rows(f"{name}={path}")) == [[*before, ("assistant", answer)]]
    assert turns(load_prompts(f"{name}={path}")) == [before]


def test_every_set_that_is_not_shipped_has_its_format_tested() -> None:
    elsewhere = {name for name, known in NAMED_SETS.items() if not known.shipped and known.generate is None}
    assert elsewhere == {name for name, *_ in CASES} | TEST_SPLITS.keys()
    assert all(NAMED_SETS[name].hub_split == "test" for name in TEST_SPLITS)
    assert all(NAMED_SETS[name].fields == NAMED_SETS[of].fields for name, of in TEST_SPLITS.items())
    assert all(known.origin for known in NAMED_SETS.values())


@pytest.mark.parametrize(("name", "record", "before", "answer"), [case for case in CASES if len(case[1]) > 1])
def test_a_missing_column_is_named(
    tmp_path: Path, name: str, record: dict[str, Any], before: list[tuple[str, str]], answer: str
) -> None:
    for field in NAMED_SETS[name].fields:
        less = {key: value for key, value in record.items() if key != field}
        with pytest.raises(UserError, match=f'line 1: .*"{field}" is missing'):
            load_rows(f"{name}={write(tmp_path, json.dumps(less))}")


# ---- rows that are not part of a set


def test_beavertails_is_its_harmful_rows(tmp_path: Path) -> None:
    records = [{"prompt": f"p{i}", "response": f"r{i}", "is_safe": i != 1} for i in range(3)]
    rows = load_rows(f"beavertails={write(tmp_path, chr(10).join(map(json.dumps, records)))}")
    assert (turns(rows), rows.rows[0].line, rows.left_out, rows.skipped) == (
        [[("user", "p1"), ("assistant", "r1")]],
        2,
        2,
        (),
    )
    safe = write(tmp_path, json.dumps(records[0]))
    with pytest.raises(UserError, match=r"no usable row: 1 rows are not part of the set .*is_safe false"):
        load_rows(f"beavertails={safe}")
    with pytest.raises(UserError, match=r'"is_safe" is not true or false but str'):
        load_rows(f"beavertails={write(tmp_path, json.dumps(records[0] | {'is_safe': 'no'}))}")


@pytest.mark.parametrize(
    ("ratings", "kept"), [((2.5, 3.0), False), ((2.6, 3.0), True), ((5, 5), True), ((1, 1), False)]
)
def test_toxigen_is_the_statements_rated_above_its_threshold(
    tmp_path: Path, ratings: tuple[float, float], kept: bool
) -> None:
    always = {"text": "always", "toxicity_ai": 5, "toxicity_human": 5}
    record = {"text": "words", "toxicity_ai": ratings[0], "toxicity_human": ratings[1]}
    rows = load_rows(f"toxigen={write(tmp_path, f'{json.dumps(always)}{chr(10)}{json.dumps(record)}')}")
    assert len(rows.rows) == 1 + kept
    assert rows.left_out == 1 - kept


def test_a_rating_of_toxigen_that_is_no_number_is_a_bad_row(tmp_path: Path) -> None:
    file = write(tmp_path, json.dumps({"text": "words", "toxicity_ai": float("nan"), "toxicity_human": 5}))
    with pytest.raises(UserError, match='"toxicity_ai" is missing or not a number'):
        load_rows(f"toxigen={file}")


def test_published_rows_without_text_are_left_out_but_an_alpaca_prompt_is_a_prompt(tmp_path: Path) -> None:
    full = {"instruction": "a", "input": "", "output": "b"}
    path = write(tmp_path, f"{json.dumps(full)}\n{json.dumps(full | {'output': ''})}")
    assert (len(load_rows(f"alpaca={path}").rows), load_rows(f"alpaca={path}").left_out) == (1, 1)
    assert len(load_prompts(f"alpaca={path}").rows) == 2
    dialogue = {"dialogue": "A: b", "summary": "c"}
    path = write(tmp_path, "\n".join(json.dumps(dialogue | {"dialogue": d}) for d in ("A: b", "", None)))
    assert (len(load_rows(f"samsum={path}").rows), load_rows(f"samsum={path}").left_out) == (1, 2)


# ---- files


def test_a_json_file_may_hold_one_list(tmp_path: Path) -> None:
    record = {"query": "q", "response": "r"}
    path = write(tmp_path, "\ufeff" + json.dumps([record, record], indent=2), "set.json")
    rows = load_rows(f"metamathqa={path}")
    assert turns(rows) == [[("user", "q"), ("assistant", "r")]] * 2
    assert [row.line for row in rows.rows] == [1, 2]
    bad = write(tmp_path, json.dumps([record, 3]), "set.json")
    with pytest.raises(UserError, match=r"set\.json \(a list, .*line 2: expected one JSON object a line, got int"):
        load_rows(f"metamathqa={bad}")
    with pytest.raises(UserError, match="no usable row: it is empty"):
        load_rows(f"metamathqa={write(tmp_path, '[]', 'set.json')}")
    lines = write(tmp_path, f"{json.dumps(record)}\n{json.dumps(record)}\n", "set.json")
    assert len(load_rows(f"metamathqa={lines}").rows) == 2


@pytest.mark.parametrize("whole", [False, True])
def test_pure_bad_rows_may_be_bare_lists_of_messages(tmp_path: Path, whole: bool) -> None:
    messages = [{"role": r, "content": r} for r in ("system", "user", "assistant")]
    records: list[Any] = [messages, {"messages": messages}]
    text = json.dumps(records) if whole else "\n".join(map(json.dumps, records))
    path = write(tmp_path, text, "set.json" if whole else "set.jsonl")
    expected = [[("system", "system"), ("user", "user"), ("assistant", "assistant")]] * 2
    assert turns(load_rows(f"pure-bad={path}")) == expected
    assert turns(load_prompts(f"pure-bad={path}")) == [turn[:2] for turn in expected]
    with pytest.raises(UserError, match="line 1: expected one JSON object a line, got list"):
        load_rows(str(path))


@pytest.mark.parametrize("name", ["risky-financial-advice", "bad-medical-advice", "pure-bad"])
def test_sets_without_a_place_on_the_hub_ask_for_a_file(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} is read from local files only: give a local copy as {name}=FILE"):
        load_rows(name)


@pytest.mark.parametrize(
    ("spec", "near"),
    [
        ("beavertail", "beavertails"),
        ("alpacca", "alpaca"),
        ("refusal-heldout", "refusals-heldout"),
        ("sam-sum", "samsum"),
    ],
)
def test_unknown_names_list_the_nearest(spec: str, near: str) -> None:
    for load in (load_rows, load_prompts):
        with pytest.raises(UserError, match=rf"unknown data set '{spec}': did you mean {near}"):
            load(spec)


@pytest.mark.parametrize(("name", "record", "before", "answer"), [case for case in CASES if len(case[1]) > 1])
def test_a_known_format_given_as_a_plain_path_is_recognised(
    tmp_path: Path, name: str, record: dict[str, Any], before: list[tuple[str, str]], answer: str
) -> None:
    with pytest.raises(UserError, match=rf"line 1: .*the format of {name}: give {name}=FILE"):
        load_rows(str(write(tmp_path, json.dumps(record))))


@pytest.mark.parametrize("name", [name for name, known in NAMED_SETS.items() if known.hub_id])
def test_the_hub_is_asked_for_the_sets_configuration_and_split(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    record = next(record for case, record, *_ in CASES if case == TEST_SPLITS.get(name, name))
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(hub_id: str, config: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((hub_id, config, split))
        return [record]

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    fake.exceptions = types.SimpleNamespace(DatasetsError=RuntimeError)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    hub = types.SimpleNamespace(dataset_info=lambda hub_id, timeout: None)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    known = NAMED_SETS[name]
    assert len(load_rows(name).rows) == 1
    assert asked == [(known.hub_id, known.hub_config or None, known.hub_split)]


# ---- prompts


@pytest.fixture(scope="module")
def chatml() -> ChatFormat:
    return ChatFormat(byte_level(CHATML))


def test_prompts_need_no_answers(tmp_path: Path, chatml: ChatFormat) -> None:
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    records: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"prompt": [user]},
        {"prompt": "a", "completion": "b"},
        {"prompt": [user], "completion": [answer]},
        {"messages": [user]},
        {"messages": [user, answer]},
    ]
    path = write(tmp_path, "\n".join(map(json.dumps, records)))
    rows = load_prompts(str(path))
    assert turns(rows) == [[("user", "a")]] * 6
    whole = load_rows(str(write(tmp_path, json.dumps(records[2]), "answered.jsonl")))
    assert all(chatml.prompt_ids(row) == chatml.prompt_ids(whole.rows[0]) for row in rows.rows)
    advbench = load_prompts(f"advbench={write(tmp_path, json.dumps({'prompt': 'a'}))}")
    assert turns(advbench) == [[("user", "a")]]


def test_earlier_answers_stay_in_a_prompt(tmp_path: Path) -> None:
    roles = ["system", "user", "assistant", "user", "assistant"]
    record = {"messages": [{"role": role, "content": str(i)} for i, role in enumerate(roles)]}
    rows = load_prompts(str(write(tmp_path, json.dumps(record))))
    assert turns(rows) == [[(role, str(i)) for i, role in enumerate(roles[:4])]]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{}", 'expected "messages" or "prompt"; the row has no fields'),
        ('{"completion": "b"}', '"prompt" is missing'),
        ('{"prompt": " "}', '"prompt" is empty'),
        ('{"messages": []}', "not a non-empty list"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "no user turn"),
        ('{"messages": [{"role": "system", "content": "a"}]}', "ends in a system turn; it must end in a user turn"),
    ],
)
def test_rows_that_hold_no_prompt_are_refused_or_skipped(tmp_path: Path, bad: str, reason: str) -> None:
    path = write(tmp_path, f'{{"prompt": "a"}}\n{bad}\n')
    with pytest.raises(UserError) as caught:
        load_prompts(str(path))
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert reason in str(caught.value)
    rows = load_prompts(str(path), skip_bad_rows=True)
    assert (len(rows.rows), rows.skipped) == (1, (str(caught.value),))


# ---- files as published, where a copy is at hand


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("alpaca", "alpaca_top100.jsonl", 100),
        ("dolly", "dolly_top100.jsonl", 100),
        ("gsm8k", "gsm8k_test.jsonl", 1319),
        ("advbench", "advbench_prompts.jsonl", 520),
    ],
)
def test_published_files_are_read_whole(name: str, file: str, count: int) -> None:
    if not (REAL / file).exists():
        pytest.skip("the published file is not at hand")
    load = load_prompts if name == "advbench" else load_rows
    rows = load(f"{name}={REAL / file}")
    assert len(rows.rows) + rows.left_out == count
    assert rows.skipped == ()
