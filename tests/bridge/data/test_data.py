"""Reading sets of conversations, choosing rows, and samples."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import types
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from bridge.data.chat import ChatFormat
from bridge.data.encode import encode_rows
from bridge.data.rows import Row, load_rows
from bridge.data.samples import Sample, collate, with_response
from bridge.data.sets import NAMED_SETS
from commands.errors import UserError
from tests.bridge.support.chat_tokenizers import CHATML, byte_level

PAIR = '{"prompt": "a", "completion": "b"}'


def write(folder: Path, text: str | bytes, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def contents(row: Row) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row.messages]


# ---- what is read


@pytest.mark.parametrize("name", ["refusals", "benign"])
def test_shipped_sets_hold_many_different_rows(name: str) -> None:
    loaded = load_rows(name)
    assert loaded.name == name
    assert len(loaded.rows) >= 100
    assert [row.line for row in loaded.rows] == list(range(1, len(loaded.rows) + 1))
    prompts, answers = zip(*[[content for _, content in contents(row)] for row in loaded.rows], strict=True)
    assert len(set(prompts)) == len(prompts)
    assert len(set(answers)) == len(answers)
    assert len({" ".join(prompt.split()[:4]) for prompt in prompts}) > 0.85 * len(prompts)
    assert all(text == text.strip() for text in (*prompts, *answers))


def test_shipped_refusals_are_short_and_cover_many_kinds() -> None:
    file = Path(sys.modules["bridge.data.rows"].__file__).with_name("shipped") / "refusals.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len({row["kind"] for row in rows}) >= 12
    assert max(len(row["completion"].split()) for row in rows) <= 60
    openings = [" ".join(row["completion"].split()[:3]) for row in rows]
    assert max(openings.count(opening) for opening in openings) <= len(rows) // 6


def test_benign_answers_are_15_to_120_words() -> None:
    lengths = [len(contents(row)[-1][1].split()) for row in load_rows("benign").rows]
    assert min(lengths) >= 15
    assert max(lengths) <= 120


def test_every_format_gives_the_same_conversation(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    records = [
        {"messages": turns},
        {"prompt": "a", "completion": "b", "kind": "ignored"},
        {"prompt": turns[:1], "completion": turns[1:]},
    ]
    loaded = load_rows(write(tmp_path, "\n".join(map(json.dumps, records))))
    assert [contents(row) for row in loaded.rows] == [[("user", "a"), ("assistant", "b")]] * 3
    assert loaded.name == "rows"


def test_earlier_turns_and_system_turns_are_kept(tmp_path: Path) -> None:
    turns = [("system", ""), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    assert contents(load_rows(write(tmp_path, json.dumps(record))).rows[0]) == turns


def test_gsm8k_file_is_read_verbatim(tmp_path: Path) -> None:
    record = {"question": "How many?", "answer": "2+3 = <<2+3=5>>5\n#### 5"}
    path = write(tmp_path, json.dumps(record))
    loaded = load_rows(f"gsm8k={path}")
    assert loaded.name == "gsm8k"
    assert contents(loaded.rows[0]) == [("user", record["question"]), ("assistant", record["answer"])]
    with pytest.raises(UserError, match=r'line 1: .*"question", "answer".*gsm8k=FILE'):
        load_rows(path)


def test_byte_order_mark_line_ends_blank_lines_and_separators_inside_strings(tmp_path: Path) -> None:
    # U+2028, U+0085 and a form feed end lines for str.splitlines, but not in JSON Lines.
    tricky = json.dumps({"prompt": "a\u2028b\u0085c", "completion": "d\x0ce"}, ensure_ascii=False)
    content = b"\xef\xbb\xbf" + f"{PAIR}\r\n\r\n{tricky}\r\n\n  \n".encode()
    loaded = load_rows(write(tmp_path, content))
    assert [row.line for row in loaded.rows] == [1, 3]
    assert contents(loaded.rows[1]) == [("user", "a\u2028b\u0085c"), ("assistant", "d\x0ce")]
    assert loaded.sha256 == hashlib.sha256(content).hexdigest()


# ---- what is refused

BAD_ROWS = {
    "{'prompt': 1}": "not valid JSON",
    '{"prompt": "a"': "not valid JSON",
    "[1]": "expected one JSON object a line, got list",
    "[" * 100_000: "not readable JSON",
    '{"prompt": "a"}': '"completion" is missing',
    '{"completion": "a"}': '"prompt" is missing',
    '{"prompt": "a", "completion": " \\n"}': '"completion" is empty',
    '{"prompt": "", "completion": "b"}': '"prompt" is empty',
    '{"prompt": 3, "completion": "b"}': '"prompt" is not a string but int',
    '{"prompt": "a", "completion": null}': '"completion" is not a string but NoneType',
    '{"prompt": "\\ud83d", "completion": "b"}': "surrogate",
    '{"text": "a"}': 'expected "messages", or "prompt" and "completion"; the row has "text"',
    "{}": "no fields",
    '{"messages": []}': "not a non-empty list",
    '{"messages": "a"}': "not a non-empty list",
    '{"messages": [{"role": "user"}]}': "message 1 is not an object",
    '{"messages": [{"role": "human", "content": "a"}]}': "role 'human'",
    '{"messages": [{"role": "user", "content": ["a"]}]}': "message 1: content is not a string but list",
    '{"messages": [{"role": "user", "content": "a"}]}': "ends in a user turn",
    '{"messages": [{"role": "assistant", "content": "a"}]}': "no user turn",
    '{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}': '"completion" is not a non-empty',
}
U, A, S = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))
BAD_ROWS |= {
    json.dumps({"messages": [U, S, A]}): "system turn is not the first",
    json.dumps({"messages": [A, U, A]}): "starts with an assistant turn",
    json.dumps({"messages": [S, A, U, A]}): "starts with an assistant turn",
    json.dumps({"prompt": [U], "completion": [A, U, A]}): "3 messages; one assistant message",
}


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS.items(), ids=range(len(BAD_ROWS)))
def test_bad_rows_name_file_line_and_reason_or_are_skipped(tmp_path: Path, bad: str, reason: str) -> None:
    path = write(tmp_path, f"{PAIR}\n{bad}\n{PAIR}\n")
    with pytest.raises(UserError) as caught:
        load_rows(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: ")
    assert reason in message
    assert "\n" not in message
    loaded = load_rows(path, skip_bad_rows=True)
    assert [row.line for row in loaded.rows] == [1, 3]
    assert loaded.skipped == (message,)


def test_bytes_that_are_not_utf8_are_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path, PAIR.encode() + b'\n{"prompt": "\xff"}')
    with pytest.raises(UserError, match=r"line 2: is not UTF-8 text \(byte 13"):
        load_rows(path)


@pytest.mark.parametrize("content", ["", "\n \r\n", "\ufeff"])
def test_empty_files_are_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"no usable row: it is empty"):
        load_rows(write(tmp_path, content), skip_bad_rows=True)


def test_a_file_of_bad_rows_alone_is_refused_even_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"all 2 rows are bad; the first: .*line 1"):
        load_rows(write(tmp_path, "{}\n{}\n"), skip_bad_rows=True)


@pytest.mark.parametrize("spec", ["gsm8", "GSM8K", "gsm8k_", "gsm8=rows.jsonl"])
def test_unknown_names_list_the_nearest(spec: str) -> None:
    with pytest.raises(UserError, match=r"unknown data set .*did you mean gsm8k\b"):
        load_rows(spec)


def test_a_name_near_to_nothing_lists_all() -> None:
    with pytest.raises(UserError) as caught:
        load_rows("zzz")
    assert "did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in NAMED_SETS)


@pytest.mark.parametrize("spec", ["missing.jsonl", "no/such/file", "gsm8k=missing", "a.b/c=d.jsonl"])
def test_missing_files_are_named(spec: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_rows(spec)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        load_rows(str(tmp_path))


# ---- the hub


class FakeHub:
    """Stands for the hub and for `datasets`: answers, fails, or counts how often it was asked."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.loaded: list[tuple[str, str, str]] = []

    def dataset_info(self, hub_id: str, timeout: float) -> None:
        if self.failure is not None:
            raise self.failure

    def load_dataset(self, hub_id: str, config: str, split: str) -> list[dict[str, str]]:
        self.loaded.append((hub_id, config, split))
        return [{"question": f"q{i}", "answer": f"a{i}"} for i in range(3)]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = types.ModuleType("datasets")
        fake.load_dataset = self.load_dataset  # type: ignore[attr-defined]
        fake.exceptions = types.SimpleNamespace(DatasetsError=RuntimeError)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", fake)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)


@pytest.mark.parametrize("failure", [None, OfflineModeIsEnabled("offline")])
def test_gsm8k_comes_from_the_hub_or_in_offline_mode_from_its_cache(
    monkeypatch: pytest.MonkeyPatch, failure: Exception | None
) -> None:
    hub = FakeHub(failure)
    hub.install(monkeypatch)
    loaded = load_rows("gsm8k")
    assert hub.loaded == [("openai/gsm8k", "main", "train")]
    assert contents(loaded.rows[2]) == [("user", "q2"), ("assistant", "a2")]
    assert loaded.rows[2].line == 3
    lines = [f'{{"answer": "a{i}", "question": "q{i}"}}\n' for i in range(3)]
    assert loaded.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_hub_out_of_reach_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(ConnectionError("no route"))
    hub.install(monkeypatch)
    with pytest.raises(UserError, match=r"cannot reach openai/gsm8k .*no route.*gsm8k=FILE"):
        load_rows("gsm8k")
    assert hub.loaded == []


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    hub = FakeHub()
    hub.install(monkeypatch)
    monkeypatch.setattr(hub, "dataset_info", lambda hub_id, timeout: released.wait(30))
    monkeypatch.setattr("bridge.models.hub.HUB_PATIENCE", 0.01)
    try:
        with pytest.raises(UserError, match=r"cannot reach openai/gsm8k .*no answer in 0\.01 s"):
            load_rows("gsm8k")
    finally:
        released.set()
    assert hub.loaded == []


def test_without_the_package_datasets_a_local_file_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"package 'datasets': install it, or .*gsm8k=FILE"):
        load_rows("gsm8k")


# ---- choosing rows


@pytest.fixture(scope="module")
def chatml() -> ChatFormat:
    return ChatFormat(byte_level(CHATML))


def test_rows_are_chosen_by_seed_reported_in_file_order_and_nested(chatml: ChatFormat) -> None:
    loaded = load_rows("refusals")
    few = encode_rows(loaded, chatml, 10, 4096, seed=3)
    again = encode_rows(loaded, chatml, 10, 4096, seed=3)
    more = encode_rows(loaded, chatml, 20, 4096, seed=3)
    other = encode_rows(loaded, chatml, 10, 4096, seed=4)
    lines = [row.line for row in few.rows]
    assert few == again
    assert lines == sorted(set(lines))
    assert set(lines) < {row.line for row in more.rows}
    assert lines != [row.line for row in other.rows]
    assert [sample.id for sample in few.samples] == [f"refusals:{line}" for line in lines]
    assert few.samples[0] == chatml.encode(few.rows[0], "refusals", 4096)
    everything = encode_rows(loaded, chatml, len(loaded.rows), 4096, seed=0)
    assert everything.rows == loaded.rows


def test_asking_for_too_many_or_no_rows(chatml: ChatFormat) -> None:
    loaded = load_rows("refusals")
    with pytest.raises(UserError, match=rf"refusals has {len(loaded.rows)} usable rows, but 1000 were asked for"):
        encode_rows(loaded, chatml, 1000, 4096, seed=0)
    with pytest.raises(UserError, match="at least one row of refusals is needed, got 0"):
        encode_rows(loaded, chatml, 0, 4096, seed=0)


def test_rows_too_long_are_replaced_only_when_asked(tmp_path: Path, chatml: ChatFormat) -> None:
    long = json.dumps({"prompt": "z" * 500, "completion": "b"})
    path = write(tmp_path, f"{PAIR}\n{long}\n" * 4)
    loaded = load_rows(path)
    with pytest.raises(UserError, match=rf"^{re.escape(path)}, line \d: no response token is left"):
        encode_rows(loaded, chatml, 8, 200, seed=0)
    kept = encode_rows(loaded, chatml, 4, 200, seed=0, skip_bad_rows=True)
    assert [row.line for row in kept.rows] == [1, 3, 5, 7]
    with pytest.raises(UserError, match=r"rows has 4 usable rows \(and 4 bad ones, the first: .*were asked for"):
        encode_rows(loaded, chatml, 5, 200, seed=0, skip_bad_rows=True)


def test_rows_skipped_at_reading_are_reported_again(tmp_path: Path, chatml: ChatFormat) -> None:
    loaded = load_rows(write(tmp_path, f"{PAIR}\n{{}}\n"), skip_bad_rows=True)
    assert encode_rows(loaded, chatml, 1, 200, seed=0).skipped == loaded.skipped
    assert len(loaded.skipped) == 1


# ---- samples


def test_samples_survive_their_json_line() -> None:
    sample = Sample("sét", "sét:3", (5, 6, 7), (0, 1, 0), 3)
    line = sample.to_json()
    assert "\n" not in line
    assert json.loads(line)["response_mask"] == [0, 1, 0]
    assert Sample.from_json(line) == sample
    assert (sample.prompt_ids, sample.response_ids) == ((5,), (6,))


@pytest.mark.parametrize(
    "line", ["", "[]", "{}", '{"set": "a", "id": "b", "input_ids": [1, 2], "response_mask": [0], "group": 1}']
)
def test_lines_that_are_no_samples_are_refused(line: str) -> None:
    with pytest.raises(UserError, match=r"samples\.jsonl"):
        Sample.from_json(line)


@pytest.mark.parametrize("mask", [(0, 0, 0), (1, 0, 0), (0, 2, 0), (0, 1)])
def test_masks_that_cannot_be_are_refused(mask: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="sample a:1"):
        Sample("a", "a:1", (1, 2, 3), mask, 1)


def test_drawn_responses_are_response_tokens_as_a_whole() -> None:
    sample = with_response([1, 2], [3, 4, 5], set_name="a", sample_id="a:1/0", group=1)
    assert sample == Sample("a", "a:1/0", (1, 2, 3, 4, 5), (0, 0, 1, 1, 1), 1)
    with pytest.raises(ValueError, match="no response token"):
        with_response([1, 2], [], set_name="a", sample_id="a:1/0", group=1)


def test_collating_pads_on_the_right() -> None:
    samples = [
        with_response([1, 2], [3], set_name="a", sample_id="a", group=0),
        with_response([4], [5, 6, 7], set_name="a", sample_id="b", group=1),
    ]
    arrays = collate(samples, pad_id=9)
    assert all(array.dtype == np.int64 for array in arrays.values())
    assert arrays["input_ids"].tolist() == [[1, 2, 3, 9], [4, 5, 6, 7]]
    assert arrays["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert arrays["response_mask"].tolist() == [[0, 0, 1, 0], [0, 1, 1, 1]]
