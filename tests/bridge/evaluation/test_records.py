"""Records of an evaluation: what is written comes back, and what a killed process left half-written does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.evaluation.records import Journal, Record, read_records, write_records
from commands.errors import UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
RECORD = st.builds(
    Record, item=TEXT, prompt=TEXT, response=TEXT, prompt_tokens=st.integers(0), response_tokens=st.integers(0),
    finished=st.booleans(), latency=st.floats(0, 1e6), judge=TEXT, judge_text=TEXT,
    score=st.none() | st.integers(1, 5), status=st.sampled_from(["generated", "scored", "failed"]),
    details=st.dictionaries(TEXT, st.none() | st.booleans() | TEXT),
)  # fmt: skip
SMALL = [Record(f"set:{k}", f"ä\u2028{k}\n", "{<b>}", 3, 4, True, 0.5) for k in range(3)]


@given(RECORD)
def test_a_record_survives_its_line(record: Record) -> None:
    assert "\n" not in record.to_json()
    assert Record.from_json(record.to_json()) == record


def test_written_at_once_or_one_by_one_is_the_same(tmp_path: Path) -> None:
    write_records(tmp_path / "whole.jsonl", SMALL)
    with Journal(tmp_path / "appended.jsonl") as journal:
        for record in SMALL:
            journal.append(record)
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "appended.jsonl").read_bytes()
    assert read_records(tmp_path / "whole.jsonl") == SMALL


def test_every_torn_end_is_dropped_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, SMALL)
    content = path.read_bytes()
    ends = [k + 1 for k, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(ends[1], len(content) + 1):
        path.write_bytes(content[:cut])
        whole = sum(end <= cut for end in ends)
        assert read_records(path) == SMALL[:whole]
        with Journal(path) as journal:
            journal.append(SMALL[2])
        assert read_records(path) == [*SMALL[:whole], SMALL[2]]


def test_what_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    for line, reason in [
        ("{", "line 1: expected a record"),
        ("[]", "expected a JSON object, got list"),
        ('{"item": "a"}', "a field is missing"),
        (SMALL[0].to_json().replace("finished", "finish"), "unknown field 'finish'"),
        (SMALL[0].to_json().replace("generated", "born"), "unknown status 'born'"),
    ]:
        path.write_text(line + "\n")
        with pytest.raises(UserError, match=reason):
            read_records(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_records(tmp_path / "none.jsonl")
