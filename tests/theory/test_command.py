"""``python -m theory``: the table, an entry, the checks, and wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import theory.__main__ as command
from commands.cli import run_command
from theory.ledger import render
from theory.ledger.claim import Claim, Outcome, Parameter, Slack, Verdict, check_claim
from theory.ledger.registry import UnknownClaimError, find, ledger

ROOT = Path(__file__).parents[2]


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        run_command(lambda: command.main(list(arguments)), "lower --examples")
    return int(end.value.code or 0)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert ended(*arguments) == 0
    return capsys.readouterr().out


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Claim:
    """A ledger with one claim, false for n = 3."""
    claim = Claim(
        key="T.1",
        title="A title with $\\gamma$",
        source="somewhere",
        statement="$\\gamma \\le 1$ and $x^2$",
        hypotheses=("first", "second"),
        verdict=Verdict.REFUTED,
        why="because $a = b$",
        derivation="One.\n\nTwo.",
        evidence="seen",
        check=lambda n: Slack(float(n != 3) - 0.5, 0.25, "why", "the part"),
        build=lambda rng, n: n,
        parameters=(Parameter("n", 1, 5),),
    )
    monkeypatch.setattr("theory.ledger.registry.ledger", lambda: {"T.1": claim})
    return claim


def test_the_table_names_every_claim_with_verdict_and_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = printed(capsys).splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["claim", *ledger()]
    row = next(line for line in lines if line.startswith("6.3 "))
    assert "refuted" in row
    assert "Quartic scaling law" in row
    shown = " ".join(" ".join(lines).split())
    for claim in ledger().values():
        assert f"{claim.key} {claim.verdict.value} {render.plain(claim.title)}" in shown
        assert " ".join(render.plain(claim.why).split()) in shown


@pytest.mark.parametrize("width", [60, 80, 100, 130])
def test_the_table_and_the_entries_fit_the_terminal(width: int) -> None:
    claims = list(ledger().values())
    text = render.table(claims, width) + "\n" + "\n".join(render.entry(claim, width) for claim in claims[:6])
    headings = {f"{claim.key}  {render.plain(claim.title)}" for claim in claims}
    too_long = [line for line in text.splitlines() if len(line) > max(width, 80) and line not in headings]
    assert too_long == []


def test_the_table_in_json_and_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    records = json.loads(printed(capsys, "--json"))
    assert [record["key"] for record in records] == list(ledger())
    assert {record["verdict"] for record in records} == {"holds", "corrected", "refuted", "vacuous"}
    for record, claim in zip(records, ledger().values(), strict=True):
        assert (record["title"], record["source"], record["why"]) == (claim.title, claim.source, claim.why)
        assert record["correction"] == (claim.correction or None)
    rows = printed(capsys, "--markdown").splitlines()
    assert rows[0] == "| claim | title | verdict | why |"
    assert len(rows) == 2 + len(records)


def test_show_says_everything(failing: Claim, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "show", "t.1")
    assert text.splitlines()[:3] == ["T.1  A title with γ", "somewhere", "Verdict: refuted. because a = b"]
    for expected in ("Statement\n    γ ≤ 1 and x^2", "    - first\n    - second", "    One.\n    Two.", "seen"):
        assert expected in text
    assert "Correction" not in text
    markdown = printed(capsys, "show", "--markdown")
    assert "## T.1 A title with $\\gamma$" in markdown
    assert "**Hypotheses.**\n\n- first\n\n- second" in markdown
    assert json.loads(printed(capsys, "show", "T.1", "--json"))[0]["hypotheses"] == ["first", "second"]


def test_show_runs_the_counterexamples(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "show", "6.3")
    assert text.count("printed statement fails") == len(ledger()["6.3"].counterexamples) >= 3
    assert text.count("true statement holds") == len(ledger()["6.3"].counterexamples)
    assert "Counterexample: circle" in text
    assert "Tight on" in printed(capsys, "show", "Q3")


def test_check_prints_the_worst_case_and_fails_with_1(failing: Claim, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("check", "T.1", "--examples", "50", "--seed", "3") == 1
    line = capsys.readouterr().out.strip()
    outcome = check_claim(failing, 50, 3)
    assert f"FAILS on {outcome.failures} of 50" in line
    assert "n=3" in line
    assert "(the part)" in line
    case = line[line.index("n=3") : line.index(" (the part)")]
    assert ended("check", "T.1", "--case", case) == 1
    assert "FAILS on 1 of 1" in capsys.readouterr().out
    assert ended("check", "T.1", "--case", "n=2 seed=1") == 0
    assert "holds" in capsys.readouterr().out
    assert ended("check", "--json", "--examples", "20") == 1
    record = json.loads(capsys.readouterr().out)[0]
    assert record["failures"] > 0
    assert (record["worst_slack"], record["tolerance"], record["reason"]) == (-0.5, 0.25, "why")
    assert record["case"]["n"] == 3
    assert ended("check", "--markdown", "--examples", "20") == 1
    assert "| T.1 | 20 |" in capsys.readouterr().out


def test_undefined_slacks_are_null_in_json(failing: Claim) -> None:
    outcome = Outcome(failing, 1, Slack(float("nan"), 0.0, "r"), {"seed": 1}, 1)
    assert render.outcome_record(outcome)["worst_slack"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "6.33"], "no claim '6.33' in the ledger; the nearest keys are 6.3"),
        (["show", "zzz"], "no claim 'zzz' in the ledger; the nearest keys are 3.2, 3.3"),
        (["check", "A.9"], "A.9"),
        (["check", "3.2", "--examples", "0"], "--examples must be at least 1, got 0"),
        (["check", "3.2", "--seed", "-4"], "--seed must not be negative, got -4"),
        (["check", "--case", "seed=1"], "--case is a case of one claim"),
        (["check", "A.1", "--case", "seed=1", "--examples", "5"], "leave out --examples"),
        (["show", ""], "no claim '' in the ledger; the nearest keys are 3.2, 3.3, 3.4, 4.1.1, ..."),
        (["check", "6.3", "--case", "seed=1"], "a case of 6.3 is sharp=..."),
        (["check", "7.1", "--case", "nonsense"], "a case of 7.1 is"),
        (["check", "--examples", "many"], "invalid int value: 'many'"),
        (["list"], "invalid choice: 'list'"),
        (["--json", "--markdown"], "not allowed with"),
    ],
)
def test_wrong_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert ended(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert words in captured.err


HELP = {
    "": (
        "usage: python -m theory [-h] [--json | --markdown] ... Every claim of the theory, what is true of "
        "it, and its check. options: -h, --help show this help message and exit --json print a JSON list "
        "--markdown print Markdown commands: show everything on some claims (on all, if no key is given) "
        "check run the checks on random cases; exit code 1 if one fails"
    ),
    "show": (
        "usage: python -m theory show [-h] [--json | --markdown] [KEY ...] positional arguments: KEY a claim "
        "of the table, as 6.3 or Q1 options: -h, --help show this help message and exit --json print a JSON "
        "list --markdown print Markdown"
    ),
    "check": (
        "usage: python -m theory check [-h] [--examples EXAMPLES] [--seed SEED] [--case 'NAME=VALUE ...'] "
        "[--json | --markdown] [KEY ...] positional arguments: KEY claims to check; all if none is given "
        "options: -h, --help show this help message and exit --examples EXAMPLES random cases of each claim "
        "(1000) --seed SEED of the cases (0) --case 'NAME=VALUE ...' check this one case, as a run printed it "
        "--json print a JSON list --markdown print Markdown"
    ),
}


@pytest.mark.parametrize("name", HELP)
def test_the_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Words only: their layout is the interpreter's."""
    shown = " ".join(printed(capsys, *([name] if name else []), "--help").split())
    assert shown == HELP[name]


def test_a_printed_case_is_read_back_exactly(capsys: pytest.CaptureFixture[str]) -> None:
    for claim in (ledger()["A.4"], ledger()["3.2"]):
        outcome = check_claim(claim, 3, 7)
        text = render.point_text(outcome.point)
        assert command._point(claim, text) == outcome.point
        assert ended("check", claim.key, "--case", text.replace("e-", "E-")) == 0
        assert text in capsys.readouterr().out


def test_a_case_with_a_bad_number(failing: Claim, capsys: pytest.CaptureFixture[str]) -> None:
    for case, words in (
        ("n=x seed=1", "n must be a whole number in 1..5, got 'x'"),
        ("n=6 seed=1", "n must be a whole number in 1..5, got '6'"),
        ("n=2 seed=-1", "seed must be a whole number in 0..4.29497e+09, got '-1'"),
        ("n=2 seed=1.5", "seed must be a whole number"),
        ("n=nan seed=1", "n must be a whole number"),
    ):
        assert ended("check", "T.1", "--case", case) == 2
        assert capsys.readouterr().err.startswith(f"error: {words}")
    assert ended("check", "3.4", "--case", "rank=2 gap=2 scale=-1 seed=1") == 2


def test_find() -> None:
    assert [claim.key for claim in find(["q1", "a.3"])] == ["Q1", "A.3"]
    assert [claim.key for claim in find([])] == list(ledger())
    with pytest.raises(UnknownClaimError, match=r"nearest keys are .*B\.4"):
        find(["B.44"])


def test_latex_becomes_text() -> None:
    assert render.plain("plain *text* 5 % and $\\lambda_d \\ge \\frac{1}{2}$.") == "plain *text* 5 % and λ_d ≥ 1/2."
    assert render.plain("no mathematics") == "no mathematics"


@pytest.mark.slow
def test_the_module_runs_and_survives_a_closed_pipe() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "theory", "show"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


def test_the_documentation_is_what_the_command_prints() -> None:
    written = (ROOT / "docs" / "ledger.md").read_text()
    fresh = render.markdown_document(list(ledger().values())) + "\n"
    assert written == fresh, "docs/ledger.md is stale: python -m theory show --markdown > docs/ledger.md"
