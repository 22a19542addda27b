"""`python -m bridge.activations` on a tiny model: its numbers, its folder, its words, its errors."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bridge.data.chat import ChatFormat
from bridge.data.rows import load_prompts
from bridge.deltas.changed_model import open_changed
from bridge.experiments.activations import report as activations_report
from bridge.experiments.activations import run as activations_run
from bridge.experiments.activations.report import layers_text, readings, rows, tables, write
from bridge.experiments.activations.result import ActivationsResult
from bridge.experiments.activations.settings import (
    LEAST_PROMPTS,
    SETS,
    Settings,
    energy_fractions,
    layer_numbers,
    paper_layers,
)
from bridge.experiments.labels import labelled_sets
from bridge.generation.generate import Response
from bridge.models.load import load_model
from commands.errors import UserError
from tests.bridge.support.kill_server import survived
from tests.bridge.support.tiny_activations import HARMFUL, activation_options, make_prompts
from tests.bridge.support.tiny_runs import SCRIPT, write_rows
from tests.in_process import run_module
from tests.oracles import activations as naive
from theory.activation_overlap import LEAST_ROWS

ROOT = Path(__file__).parents[3]
FILES = {
    "manifest.json", "settings.toml", "activations.json", "activations.npz", "prompts.jsonl", "energies.png",
    "layers.png", "report.html",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prompts(tmp_path_factory.mktemp("activations"))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str, report: bool = False) -> int:
    """The exit code of the command; without its pictures and page, which take most of a tiny run's time."""
    if not report:
        monkeypatch.setattr(activations_report, "write", lambda *_: None)
    return run_module("bridge.activations", *arguments).code


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, *activation_options(place, place / "run"), report=True) == 0
    return place / "run"


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "activations.json").read_text())
    return found


def typed(found: dict[str, Any]) -> ActivationsResult:
    return ActivationsResult.of_json(json.dumps(found).encode(), "activations.json")


def prompt_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ options


def test_sets_have_labels() -> None:
    assert (
        labelled_sets([f"{label}={spec}" for label, spec in SETS.items()])
        == SETS
        == {"useful": "arithmetic-heldout", "harmful": "refusals-heldout"}
    )
    found = labelled_sets(["benign", "a/b.jsonl", "c=d/e.jsonl"])
    assert found == {"benign": "benign", "b": "a/b.jsonl", "c": "d/e.jsonl"}
    # NAME=FILE is a file in the format of a known set, here with a label of its own and without
    assert labelled_sets(["gsm8k=x.jsonl", "mine=gsm8k=x.jsonl"]) == {"gsm8k": "gsm8k=x.jsonl", "mine": "gsm8k=x.jsonl"}
    assert labelled_sets(["refusals=refusals-heldout"]) == {"refusals": "refusals-heldout"}
    for specs, message in (
        (["benign", "benign=refusals"], "benign twice"),
        (["a,b=benign"], "expected a label"),
        (["a="], "a set behind the label"),
    ):
        with pytest.raises(UserError, match=message):
            labelled_sets(specs)


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "x=y.jsonl"
    path.touch()
    with pytest.raises(UserError, match="expected a label"):
        labelled_sets([str(path)])
    assert labelled_sets([f"mine={path}"]) == {"mine": str(path)}


def test_layers_and_energies() -> None:
    assert layer_numbers("20-22,30, 0") == (0, 20, 21, 22, 30)
    for text in ("", "a", "3-", "-3", "5-3", "1-99999", "1;2", "²"):
        with pytest.raises(UserError, match="--layers"):
            layer_numbers(text)
    assert energy_fractions("0.5, .9") == (0.5, 0.9)
    with pytest.raises(UserError, match="--energies"):
        energy_fractions("half")
    assert energy_fractions(",".join(map(str, Settings().energies))) == Settings().energies


@pytest.mark.parametrize(
    ("blocks", "first", "last"),
    [(30, 20, 27), (20, 13, 18), (32, 21, 28), (28, 19, 25), (2, 2, 2), (1, 1, 1), (4, 3, 3)],
)
def test_the_papers_layers_are_at_65_to_90_percent(blocks: int, first: int, last: int) -> None:
    assert paper_layers(blocks) == tuple(range(first, last + 1))


# ------------------------------------------------------------------------------------------------ numbers


def test_the_folder_holds_what_it_should(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES


def test_states_are_those_of_one_prompt_at_a_time(place: Path, finished: Path) -> None:
    loaded = load_model(str(place / "model"), device="cpu")
    chat = ChatFormat(loaded.tokenizer)
    arrays = np.load(finished / "activations.npz")
    assert set(arrays.files) == {"useful", "harmful"}
    lines = prompt_lines(finished)
    for label in arrays.files:
        states = arrays[label]
        source = {f"{label}:{row.line}": row for row in load_prompts(str(place / f"{label}.jsonl")).rows}
        mine = [line for line in lines if line["set"] == label]
        assert states.shape == (3, 8, 16)
        assert len({line["item"] for line in mine}) == 8
        for k, line in enumerate(mine):
            ids = chat.prompt_ids(source[line["item"]])
            assert (line["position"], line["token_id"], line["token"]) == (len(ids) - 1, ids[-1], "\n")
            wanted = naive.prompt_states(loaded.model, ids)
            assert states[:-1, k] == pytest.approx(wanted[:-1], abs=1e-5)


def test_overlaps_are_those_of_the_states(finished: Path) -> None:
    arrays, found = np.load(finished / "activations.npz"), read(finished)
    a, b = arrays["useful"].astype(np.float64), arrays["harmful"].astype(np.float64)
    (pair,) = found["pairs"]
    assert pair["sets"] == ["useful", "harmful"]
    assert found["energies"] == [0.5, 0.9]
    assert (found["blocks"], found["hidden_size"], found["rows_in_half"]) == (2, 16, 4)
    for name in ("uncentred", "centred"):
        for layer, entry in enumerate(pair[name]["layers"]):
            assert entry["layer"] == layer
            if (name, layer) == ("centred", 0):  # every prompt ends in the same token
                assert entry["overlap"] == entry["half"]["overlap"] == entry["permuted"]["p_value"] == [None, None]
                assert entry["half"]["share_of_ceiling"] == [None, None]
                continue
            for e, energy in enumerate(found["energies"]):
                what = (a[layer], b[layer], energy, name == "centred")
                assert entry["overlap"][e] == pytest.approx(naive.overlap(*what), abs=1e-10)
                assert entry["chance"][e] == pytest.approx(naive.chance(*what))
                p = entry["permuted"]["p_value"][e] * 20
                assert p == pytest.approx(round(p))
                low, high = entry["half"]["interval"][e]
                assert low <= entry["half"]["overlap"][e] <= high
                ceilings = [ceiling[e] for ceiling in entry["half"]["ceilings"]]
                share = entry["half"]["overlap"][e] / (ceilings[0] * ceilings[1]) ** 0.5
                assert entry["half"]["share_of_ceiling"][e] == pytest.approx(share)
    assert pair["centred"]["without_directions"] == [0]
    assert pair["uncentred"]["without_directions"] == []


def test_the_mean_is_over_the_papers_layers_or_those_asked_for(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read(finished)
    assert found["summed_layers"] == [2]
    pair = found["pairs"][0]["uncentred"]
    assert pair["mean"]["overlap"] == pytest.approx(pair["layers"][2]["overlap"])
    assert command(monkeypatch, *activation_options(place, place / "layers", "--layers", "0-2")) == 0
    other = read(place / "layers")
    assert other["summed_layers"] == [0, 1, 2]
    for name, layers in (("uncentred", [0, 1, 2]), ("centred", [1, 2])):
        mean, every = (other["pairs"][0][name][key] for key in ("mean", "layers"))
        assert every == found["pairs"][0][name]["layers"]
        assert mean["layers"] == layers
        for key in ("overlap", "chance"):
            assert mean[key] == pytest.approx(np.mean([every[k][key] for k in layers], axis=0))
        halves = [every[k]["half"]["overlap"] for k in layers]
        assert mean["half"]["overlap"] == pytest.approx(np.mean(halves, axis=0))
    assert "layers 0–2" in capsys.readouterr().out
    assert command(monkeypatch, *activation_options(place, place / "zero", "--layers", "0")) == 0
    zero = read(place / "zero")["pairs"][0]
    assert zero["centred"]["mean"] is None
    assert zero["uncentred"]["mean"]["overlap"] == pytest.approx([1, 1])  # one token's embedding is one line
    assert "no common subspace to speak of in layer 0" in capsys.readouterr().out


def test_batches_do_not_matter(place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, *activation_options(place, place / "singly", "--batch-size", "1")) == 0
    for name, states in np.load(finished / "activations.npz").items():
        assert np.load(place / "singly" / "activations.npz")[name] == pytest.approx(states, abs=1e-5)


def test_a_change_of_weights_is_applied(place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("full.safetensors", "adapter"):
        out = place / f"changed-{name}"
        assert command(monkeypatch, *activation_options(place, out, "--delta", str(place / name))) == 0
        changed = open_changed(str(place / "model"), place / name, device="cpu")
        ids = ChatFormat(changed.tokenizer).prompt_ids(load_prompts(str(place / "harmful.jsonl")).rows[0])
        states = np.load(out / "activations.npz")["harmful"][:, 0]
        assert states[:-1] == pytest.approx(naive.prompt_states(changed.model, ids)[:-1], abs=1e-5)
        assert not np.allclose(states, np.load(finished / "activations.npz")["harmful"][:, 0], atol=1e-4)
        assert read(out)["delta"] == str(place / name)


# ------------------------------------------------------------------------------------------------ the response's token


def test_the_last_token_of_a_response_is_the_one_before_its_end(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = [((1,), True), ((40, 50, 1), True), ((40, 50, 60, 70, 80), False)] * 3

    def answers(loaded: Any, chat: Any, prompts: Any, **_: Any) -> list[Response]:
        return [Response("text", ids, done) for ids, done in written[: len(prompts)]]

    monkeypatch.setattr("bridge.experiments.activations.prompts.generate_texts", answers)
    out = place / "answered"
    assert command(monkeypatch, *activation_options(place, out, "--token", "generated")) == 0
    loaded = load_model(str(place / "model"), device="cpu")
    chat = ChatFormat(loaded.tokenizer)
    rows_ = {f"harmful:{row.line}": row for row in load_prompts(str(place / "harmful.jsonl")).rows}
    states = np.load(out / "activations.npz")["harmful"]
    lines = [line for line in prompt_lines(out) if line["set"] == "harmful"]
    for k, line in enumerate(lines):
        prompt, (ids, done) = chat.prompt_ids(rows_[line["item"]]), written[k]
        until = [*prompt, *(i for i in ids if i != 1)]
        assert (line["position"], line["token_id"], line["finished"]) == (len(until) - 1, until[-1], done)
        assert states[:-1, k] == pytest.approx(naive.prompt_states(loaded.model, until)[:-1], abs=1e-5)
    about = read(out)["sets"]["harmful"]["responses"]
    assert about == {"empty": 3, "finished": 6, "cut": 2, "mean_tokens": pytest.approx((0 + 2 + 5) * 2 / 8 + 2 / 8)}
    printed = capsys.readouterr().out
    assert "harmful: 3 of 8 responses end at once" in printed
    assert "harmful: 2 of 8 responses were cut" in printed


def test_responses_are_the_models_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = place / "generated"
    assert command(monkeypatch, *activation_options(place, out, "--token", "generated")) == 0
    loaded = load_model(str(place / "model"), device="cpu")
    chat = ChatFormat(loaded.tokenizer)
    rows_ = {f"useful:{row.line}": row for row in load_prompts(str(place / "useful.jsonl")).rows}
    for line in prompt_lines(out)[:8]:
        ids = chat.prompt_ids(rows_[line["item"]])
        for _ in range(5):  # greedy, one token at a time
            following = int(loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if following in chat.end_token_ids:
                break
            ids.append(following)
        assert (line["position"], line["token_id"]) == (len(ids) - 1, ids[-1])


# ------------------------------------------------------------------------------------------------ which prompts


def test_repeated_prompts_count_once_and_shared_ones_are_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(place / "twice.jsonl", [*HARMFUL[:6], HARMFUL[0], HARMFUL[1]])
    more = ("--set", f"twice={place / 'twice.jsonl'}", "--num-prompts", "0", "--permutations", "4")
    assert command(monkeypatch, *activation_options(place, place / "three", *more)) == 0
    found = read(place / "three")
    counts = {label: (about["prompts"], about["repeated"]) for label, about in found["sets"].items()}
    assert counts == {"useful": (10, 0), "harmful": (8, 0), "twice": (6, 2)}
    assert [(pair["sets"], pair["shared_prompts"]) for pair in found["pairs"]] == [
        (["useful", "harmful"], 0),
        (["useful", "twice"], 0),
        (["harmful", "twice"], 6),
    ]
    assert found["rows_in_half"] == 3
    printed = capsys.readouterr().out
    assert "twice: 2 repeated prompts were left out" in printed
    assert "harmful and twice have 6 prompts in common" in printed
    assert "4 relabellings are too few for a test" in printed
    k = 1  # 90 %
    shares = [pair["uncentred"]["mean"]["half"]["share_of_ceiling"][k] for pair in found["pairs"]]
    ordered = [line for line in readings(typed(found)) if line.startswith("From the most alike to the least")]
    assert len(ordered) == 2
    places = [
        ordered[0].index(f"{' × '.join(pair['sets'])} {x:.0%}") for pair, x in zip(found["pairs"], shares, strict=True)
    ]
    assert np.argsort(places).tolist() == np.argsort(shares)[::-1].tolist()


def test_more_prompts_include_those_that_fewer_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = []
    for count, seed in ((4, 0), (6, 0), (4, 1)):
        out = place / f"drawn-{count}-{seed}"
        more = ("--num-prompts", str(count), "--seed", str(seed), "--splits", "1", "--permutations", "0")
        assert command(monkeypatch, *activation_options(place, out, *more)) == 0
        items.append({line["item"] for line in prompt_lines(out)})
        assert "permuted" not in read(out)["pairs"][0]["uncentred"]["mean"]
    assert items[0] < items[1]
    assert items[0] != items[2]


def test_long_prompts_can_be_left_out(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(place / "long.jsonl", [*HARMFUL, ("z" * 63, "no")])
    more = ("--set", f"long={place / 'long.jsonl'}", "--num-prompts", "0")
    assert command(monkeypatch, *activation_options(place, place / "long", *more)) == 2
    message = capsys.readouterr().err
    assert "long.jsonl, line 9: the prompt takes 65 tokens, and the model has 64 positions" in message
    assert not (place / "long").exists()
    assert command(monkeypatch, *activation_options(place, place / "long", *more, "--skip-bad-rows")) == 0
    assert "left out: " in capsys.readouterr().err
    assert len(read(place / "long")["sets"]["long"]["skipped"]) == 1


# ------------------------------------------------------------------------------------------------ errors, resuming


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--set", "useful=benign"), "--set: expected different labels (LABEL=SET), got useful twice"),
        (("--set", "bening"), "--set: unknown"),
        (("--num-prompts", "3"), "--num-prompts: expected 4 or more"),
        (("--num-prompts", "9"), "--num-prompts: expected at most 8, the different prompts of harmful"),
        (("--splits", "0"), "--splits: expected a whole number from 1"),
        (("--permutations", "-1"), "--permutations: expected a whole number from 0"),
        (("--energies", "0.9,0.5"), "--energies: expected rising fractions between 0 and 1, got 0.9,0.5"),
        (("--energies", "0.5,1"), "--energies: expected rising"),
        (("--energies", "nan"), "--energies: expected a list of finite numbers, got (nan,)"),
        (("--layers", "1-3"), "--layers: expected layers from 0 (embeddings) to 2, the last block, got 3"),
        (("--layers", "deep"), "--layers: expected numbers and ranges"),
        (("--delta", "nowhere"), "--delta: expected a change of weights that exists"),
        (("--token", "generated", "--max-new-tokens", "60"), "which leaves no room for 60 new ones"),
        (("--token", "last"), "--token"),
    ],
)
def test_what_cannot_be(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    more: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    assert command(monkeypatch, *activation_options(place, tmp_path / "run", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_set_needs_as_many_prompts_as_its_halves_need_rows() -> None:
    assert LEAST_PROMPTS == LEAST_ROWS  # the options know no NumPy


def test_one_set_is_not_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "--set", "benign") == 2
    assert "--set: expected at least two sets of prompts to compare, got 1" in capsys.readouterr().err


def test_a_set_of_too_few_different_prompts(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(place / "few.jsonl", [HARMFUL[0]] * 5)
    more = ("--set", f"few={place / 'few.jsonl'}", "--num-prompts", "0")
    assert command(monkeypatch, *activation_options(place, place / "few", *more)) == 2
    message = "--set few: expected 4 different prompts or more, got 1 (its 5 rows, less 4 repeated"
    assert message in capsys.readouterr().err


def test_the_same_command_again_computes_nothing(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(activations_run._Measurement, "measure", lambda *_, **__: pytest.fail("computed again"))
    assert command(monkeypatch, *activation_options(place, finished)) == 0
    assert "complete already" in capsys.readouterr().err
    assert command(monkeypatch, *activation_options(place, finished, "--seed", "5")) == 2
    assert "holds another run (seed: 0 there, 5 now" in capsys.readouterr().err


def test_the_order_of_the_sets_is_part_of_a_run(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = activation_options(place, finished)
    first, second = (arguments.index(x) for x in arguments if x.startswith(("useful=", "harmful=")))
    arguments[first], arguments[second] = arguments[second], arguments[first]
    assert command(monkeypatch, *arguments) == 2
    assert "holds another run (order" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_anywhere_and_started_again(tmp_path: Path) -> None:
    make_prompts(tmp_path)
    found = survived(tmp_path, "activations")
    names = {entry["moment"] for entry in found}
    assert names >= {
        "after set-0-responses-0.json", "after set-1-states-0.npz", "after overlaps-1.npz", "after activations.npz",
        "before activations.json", "after report.html", "often",
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ the report


def test_the_result_is_read_back_and_shown(finished: Path) -> None:
    result = ActivationsResult.read(finished)
    assert result.to_dict() == read(finished)
    assert len(result.to_frame()) == 2 * len(result.energies)
    assert "useful × harmful" in result._repr_html_()
    assert result.plot("layers").startswith(b"\x89PNG")


def test_the_page_explains_itself(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "halves of 4 prompts share" in page
    assert SCRIPT not in page


def test_a_label_and_a_token_are_escaped(finished: Path, tmp_path: Path) -> None:
    found = read(finished)
    found["sets"]["useful"]["commonest_tokens"] = [[SCRIPT, 8]]
    write(typed(found), Settings(model=SCRIPT, sets={"useful": SCRIPT}), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "alert(1)" in page


def test_the_table_has_a_row_for_each_energy(finished: Path) -> None:
    found = read(finished)
    table = rows(typed(found))
    assert [row[:3] for row in table] == [
        ("useful × harmful", name, energy) for name in ("uncentred", "centred") for energy in ("50%", "90%")
    ]
    assert "useful × harmful" in tables(typed(found))[0].text()
    found["energies"] = [0.4, 0.85]  # none of the usual ones: the nearest to 90 %
    assert [row[2] for row in rows(typed(found))] == ["85%", "85%"]


def test_what_is_said_of_the_test(finished: Path) -> None:
    found = read(finished)
    for p, words in ((0.05, "the sets differ"), (0.4, "no difference was found")):
        changed = copy.deepcopy(found)
        changed["pairs"][0]["centred"]["mean"]["permuted"]["p_value_over_energies"] = p
        said = [line for line in readings(typed(changed)) if line.startswith("useful and harmful, centred")]
        assert len(said) == 1
        assert words in said[0]
        assert f"p = {p}" in said[0]
        assert "The sets' means" not in said[0]
    assert "The sets' means hold" in readings(typed(found))[0]


def test_halves_that_share_nothing_have_no_share_of_it(finished: Path) -> None:
    found = read(finished)
    found["pairs"][0]["centred"]["mean"]["half"]["share_of_ceiling"] = [None, None]
    found["pairs"] *= 2  # so that pairs are put in order, too
    assert [row[7] for row in rows(typed(found))][2:4] == ["–", "–"]
    said = "\n".join(readings(typed(found)))
    assert "– of what each shares with itself" in said
    assert "centred, at 90% of the energy: useful × harmful –, useful × harmful –." in said


def test_layers_are_worded() -> None:
    assert layers_text([20, 21, 22]) == "layers 20–22"
    assert layers_text([2]) == "layer 2"
    assert layers_text([0, 3, 4, 9]) == "layers 0, 3–4 and 9"
