"""`python -m bridge.utility`: which problems are asked, what is counted, and the run folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.data.arithmetic import arithmetic_lines, heldout_arithmetic_lines
from bridge.data.rows import Row, RowSet, load_rows
from bridge.evaluation.problems import Problem, choose_problems, with_shots
from bridge.evaluation.records import Record, read_records
from bridge.experiments.utility import run as utility_run
from bridge.experiments.utility.result import UtilityResult
from bridge.experiments.utility.run import checked, summary
from bridge.experiments.utility.settings import HELDOUT
from bridge.generation import generate as responses
from commands.errors import UserError
from tests.bridge.support.tiny_overlaps import make_changes
from tests.bridge.support.tiny_runs import SCRIPT, write_rows
from tests.in_process import run_module

ROWS = [(f"{k}+1?", f"it is\n#### {k + 1}") for k in range(8)] + [(SCRIPT, "#### 1"), ("who?", "nobody")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_changes(tmp_path_factory.mktemp("utility"))
    write_rows(folder / "sums.jsonl", ROWS)
    return folder


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return run_module("bridge.utility", *arguments).code


def options(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--model", str(folder / "model"), "--data", str(folder / "sums.jsonl"), "--num", "0", "--device", "cpu"),
        *("--max-new-tokens", "20", "--batch-size", "4", "--out", str(out), *more),
    ]


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, *options(place, place / "run")) == 0
    return place / "run"


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "utility.json").read_text())
    return found


# ------------------------------------------------------------------------------------------------ problems


def rowset(answers: list[str]) -> RowSet:
    rows = [
        Row(({"role": "user", "content": f"q{k}"}, {"role": "assistant", "content": text}), "here", k + 1)
        for k, text in enumerate(answers)
    ]
    return RowSet("set", tuple(rows), "0" * 64)


def test_problems_are_drawn_by_seed_and_shots_from_the_others() -> None:
    rows = rowset([f"#### {k}" for k in range(20)])
    plain = choose_problems(rows, 6, 0, 1)
    shot = choose_problems(rows, 6, 3, 1)
    lines = [problem.prompt.line for problem in plain.chosen]
    assert lines == sorted(lines) == [problem.prompt.line for problem in shot.chosen]
    assert not set(lines) & set(shot.shot_lines)
    assert len(set(shot.shot_lines)) == 3
    assert set(lines) <= {problem.prompt.line for problem in choose_problems(rows, 9, 0, 1).chosen}
    assert lines != [problem.prompt.line for problem in choose_problems(rows, 6, 0, 2).chosen]
    assert all(problem.expected == problem.prompt.line - 1 for problem in plain.chosen)
    rest = choose_problems(rows, 0, 3, 1)
    assert len(rest.chosen) == 17
    assert rest.shot_lines == shot.shot_lines


def test_shots_are_turns_before_the_question() -> None:
    rows = rowset([f"#### {k}" for k in range(5)])
    found = choose_problems(rows, 2, 2, 0)
    for problem in found.chosen:
        said = [(m["role"], m["content"]) for m in problem.prompt.messages]
        wanted = [("user", f"q{line - 1}") if k == 0 else ("assistant", f"#### {line - 1}")
                  for line in found.shot_lines for k in (0, 1)]  # fmt: skip
        assert said == [*wanted, ("user", f"q{problem.prompt.line - 1}")]


def asking(questions: list[str]) -> RowSet:
    rows = [
        Row(({"role": "user", "content": text}, {"role": "assistant", "content": f"#### {k}"}), "here", k + 1)
        for k, text in enumerate(questions)
    ]
    return RowSet("set", tuple(rows), "0" * 64)


def test_no_shot_solves_a_question_that_is_asked() -> None:
    passed = 0
    for seed in range(40):
        rows = asking([f"q {k % 6}?" + " \n" * (k % 2) for k in range(18)])
        for num in (2, 0):
            found = choose_problems(rows, num, 2, seed)
            assert len(found.shot_lines) == 2
            asked = {problem.question.strip() for problem in found.chosen}
            shots = [m["content"].strip() for m in found.chosen[0].prompt.messages[0:4:2]]
            assert len(set(shots)) == 2
            assert not asked & set(shots)
            if num == 0:
                assert (len(found.chosen), found.repeated) == (12, 4)
            else:
                assert [p.prompt.line for p in found.chosen] == [
                    p.prompt.line for p in choose_problems(rows, 2, 0, seed).chosen
                ]
                passed += found.repeated
    assert passed > 0
    assert choose_problems(rowset([f"#### {k}" for k in range(20)]), 6, 3, 1).repeated == 0
    with pytest.raises(UserError, match=r"--shots: expected at most 1, the solved rows of set .* got 2"):
        choose_problems(asking(["a?", "b?"] * 4), 1, 2, 0)
    with pytest.raises(UserError, match="--shots: expected shots that leave questions of set to ask, got 1"):
        choose_problems(asking(["a?"] * 4), 0, 1, 0)


def test_a_system_turn_stays_first() -> None:
    turns = [("system", "s"), ("user", "q"), ("assistant", "a")]
    row = Row(tuple({"role": r, "content": c} for r, c in turns), "here", 1)  # type: ignore[typeddict-item]
    assert [m["content"] for m in with_shots(row, [row]).messages] == ["s", "q", "a", "q"]


def test_rows_without_a_number_are_left_out_and_counted() -> None:
    rows = rowset(["#### 1", "nobody", "\\boxed{x}", "#### 2"])
    found = choose_problems(rows, 0, 0, 0)
    assert [problem.prompt.line for problem in found.chosen] == [1, 4]
    assert found.without_number == 2
    with pytest.raises(UserError, match="no answer of set ends in a number"):
        choose_problems(rowset(["nobody"]), 0, 0, 0)
    for num, shots in ((3, 0), (2, 1), (0, 2)):
        with pytest.raises(UserError, match=f"--num: expected at most {max(2 - shots, 0)}, .* less {shots} --shots"):
            choose_problems(rows, num, shots, 0)


def test_the_held_out_arithmetic_shares_no_problem_with_the_rows_to_train_on() -> None:
    train, heldout = ({json.loads(line)["prompt"] for line in lines.splitlines()}
                      for lines in (arithmetic_lines(), heldout_arithmetic_lines()))  # fmt: skip
    assert len(train) == len(heldout) == 400
    assert not train & heldout
    assert len(load_rows(HELDOUT["arithmetic"]).rows) == 400


# ------------------------------------------------------------------------------------------------ counting


def record(response: str, finished: bool = True) -> Record:
    return Record("set:1", "q", response, 3, 5, finished, 0.1)


def test_every_record_is_in_the_denominator() -> None:
    problem = Problem(Row(({"role": "user", "content": "q"},), "here", 1), "q", Fraction(1, 2))
    answers = [record("0.5"), record("#### 1/2"), record("\\boxed{0.50}", False), record("2"), record("none", False)]
    found = asdict(summary([checked(each, problem) for each in answers]))
    assert (found["items"], found["correct"], found["no_number"], found["cut"], found["cut_correct"]) == (5, 3, 1, 2, 1)
    assert found["accuracy"] == 0.6
    # Wilson's interval solves (p - 0.6)^2 = z^2 p (1 - p) / 5
    z = 1.959963984540054
    roots = np.roots([1 + z * z / 5, -(1.2 + z * z / 5), 0.36])
    assert found["interval"] == pytest.approx(sorted(roots))
    assert found["rules"]["last number"] == {"items": 2, "correct": 1}
    assert found["rules"]["hashes"] == found["rules"]["boxed"] == {"items": 1, "correct": 1}
    assert sum(rule["items"] for rule in found["rules"].values()) + found["no_number"] == 5
    assert (found["prompt_tokens"], found["response_tokens"]) == (15, 25)


# ------------------------------------------------------------------------------------------------ a run


def test_the_folder_hangs_together(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {"manifest.json", "settings.toml", "records.jsonl", "utility.json", "report.html"}
    assert UtilityResult.read(finished).to_dict() == read(finished)
    found, records = read(finished), read_records(finished / "records.jsonl")
    assert len(records) == found["items"] == 9
    assert found["data"]["without_number"] == 1
    answers = {f"sums:{line}": answer for line, (_, answer) in enumerate(ROWS, start=1)}
    for one in records:
        assert answers[one.item].endswith(f"#### {one.details['expected']}")
        start, end = one.details["start"], one.details["end"]
        if one.details["found"] is None:
            assert (start, end, one.details["correct"]) == (None, None, False)
        else:
            assert one.details["correct"] == (one.details["found"] == one.details["expected"])
            assert any(c.isdigit() for c in one.response[start:end])
        assert (one.status, one.judge, one.score) == ("checked", "exact match", None)
    assert found["correct"] == sum(one.details["correct"] for one in records)
    assert found["cut"] == sum(not one.finished for one in records)
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["settings"]["decoding"]["top_k"] == 20


def test_the_page_shows_text_as_text(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert SCRIPT not in page
    assert "&lt;script&gt;" in page
    assert page.count("<details>") == 9


def test_a_change_changes_the_answers(place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ("--delta", str(place / "full.safetensors"), "--preset", "safety-subspaces")
    assert command(monkeypatch, *options(place, place / "changed", *more)) == 0
    assert command(monkeypatch, *options(place, place / "plain", "--preset", "safety-subspaces")) == 0
    changed, plain = (json.loads((place / n / "manifest.json").read_text())["settings"] for n in ("changed", "plain"))
    assert changed["base_sha256"] == plain["weights_sha256"] != changed["weights_sha256"]
    assert read(place / "changed")["decoding"]["greedy"] is True


def test_the_same_command_again_computes_nothing(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in finished.iterdir()}
    monkeypatch.setattr(utility_run, "_measure", lambda *_, **__: pytest.fail("computed again"))
    assert command(monkeypatch, *options(place, finished)) == 0
    out, err = capsys.readouterr()
    assert "complete already" in err
    assert "accuracy" in out
    assert {p: p.read_bytes() for p in finished.iterdir()} == before


def test_a_run_that_dies_goes_on(place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = responses.generate_texts, []

    def dies_in_the_second_batch(*given: Any, **more: Any) -> Any:
        calls.append(more["places"])
        if len(calls) == 2:
            raise MemoryError
        return original(*given, **more)

    monkeypatch.setattr("bridge.evaluation.answering.generate_texts", dies_in_the_second_batch)
    assert command(monkeypatch, *options(place, place / "died")) == 2
    assert command(monkeypatch, *options(place, place / "died")) == 0
    assert len(calls) == 4  # three batches, one of them twice
    assert (place / "died" / "utility.json").read_bytes() == (finished / "utility.json").read_bytes()
    assert (place / "died" / "report.html").read_bytes() == (finished / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--num", "10"), "--num: expected at most 9"),
        (("--num", "-1"), "--num: expected a whole number from 0"),
        (("--shots", "-1"), "--shots"),
        (("--shots", "9", "--num", "0"), "--num: expected at most 0"),
        (("--shots", "7"), "the prompt takes"),
        (("--preset", "greedy"), "--preset: expected one of aic, safety-subspaces, got 'greedy'"),
        (("--max-new-tokens", "0"), "--max-new-tokens"),
        (("--max-new-tokens", "64"), "the prompt takes"),
        (("--batch-size", "0"), "--batch-size"),
        (("--delta", "nowhere"), "--delta: expected a change of weights that exists"),
        (("--data", "gsm9k"), "--data: unknown data set 'gsm9k': did you mean gsm8k"),
        (("--model", "smollm3"), "unknown model"),
    ],
)
def test_wrong_input_is_one_line(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: Any,
    says: str,
) -> None:
    assert command(monkeypatch, *options(place, tmp_path / "out", *more)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert not (tmp_path / "out").exists()
