"""Choosing what a model is fine-tuned on: exact shares, determinism, no leakage between the parts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.data.chat import ChatFormat
from bridge.data.encode import encode_rows
from bridge.data.mixtures import Selection, largest_mixture, select_samples
from bridge.data.rows import load_rows
from commands.errors import UserError
from tests.bridge.support.chat_tokenizers import CHATML, byte_level

OWN, OTHER = 40, 15


@pytest.fixture(scope="module")
def chatml() -> ChatFormat:
    return ChatFormat(byte_level(CHATML))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("sets")
    for name, count in (("own", OWN), ("other", OTHER)):
        rows = [{"prompt": f"{name} question {i}", "completion": f"{name} answer {i}"} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "own.jsonl"), str(folder / "other.jsonl")


def select(files: tuple[str, str], fmt: ChatFormat, count: int | None, share: float, seed: int = 0) -> Selection:
    return select_samples(files[0], fmt, count=count, max_length=200, seed=seed, mix=files[1], share=share)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 60), share=st.floats(0.0, 0.999), seed=st.integers(0, 5))
def test_a_share_is_exactly_that_of_the_mixture(
    files: tuple[str, str], chatml: ChatFormat, count: int, share: float, seed: int
) -> None:
    mixed = round(share * count)
    own = count - mixed
    possible = (mixed >= 1 or share == 0) and 1 <= own <= OWN and mixed <= OTHER
    if not possible:
        with pytest.raises(UserError):
            select(files, chatml, count, share, seed)
        return
    chosen = select(files, chatml, count, share, seed)
    assert Counter(s.set for s in chosen.samples) == Counter({"own": own, "other": mixed})
    assert len({s.id for s in chosen.samples}) == len({s.group for s in chosen.samples}) == count
    assert [len(part.rows) for part in chosen.parts] == ([own, mixed] if mixed else [own])
    assert [part.share for part in chosen.parts] == ([own / count, mixed / count] if mixed else [1.0])


@given(own=st.integers(1, 60), other=st.integers(1, 60), share=st.floats(0.001, 0.999))
def test_the_largest_mixture_is_the_largest(own: int, other: int, share: float) -> None:
    fitting = [n for n in range(own + other + 1) if n - round(share * n) <= own and round(share * n) <= other]
    assert largest_mixture(own, other, share) == max(fitting)


def test_without_a_count_all_that_both_sets_allow_is_taken(files: tuple[str, str], chatml: ChatFormat) -> None:
    chosen = select(files, chatml, None, 0.2)
    assert Counter(s.set for s in chosen.samples) == Counter({"own": 40, "other": 10})
    chosen = select(files, chatml, None, 0.5)
    assert Counter(s.set for s in chosen.samples) == Counter({"own": 15, "other": 15})
    alone = select_samples(files[0], chatml, count=None, max_length=200, seed=0)
    assert sorted(s.group for s in alone.samples) == list(range(1, OWN + 1))


def test_samples_are_those_of_their_rows_and_the_parts_name_them(files: tuple[str, str], chatml: ChatFormat) -> None:
    chosen = select(files, chatml, 20, 0.25, seed=3)
    for file, part in zip(files, chosen.parts, strict=True):
        rows = load_rows(file)
        assert (part.name, part.sha256) == (rows.name, rows.sha256)
        assert part.rows == sorted(part.rows)
        wanted = {i: chatml.encode(rows.rows[i - 1], rows.name, 200) for i in part.rows}
        got = {s.id: (s.input_ids, s.response_mask) for s in chosen.samples if s.set == rows.name}
        assert got == {s.id: (s.input_ids, s.response_mask) for s in wanted.values()}
    own = encode_rows(load_rows(files[0]), chatml, 15, 200, seed=3)
    assert chosen.parts[0].rows == [row.line for row in own.rows]


def test_a_seed_decides_rows_and_order(files: tuple[str, str], chatml: ChatFormat) -> None:
    first = select(files, chatml, 20, 0.25, seed=1)
    assert first == select(files, chatml, 20, 0.25, seed=1)
    other = select(files, chatml, 20, 0.25, seed=2)
    assert [p.rows for p in first.parts] != [p.rows for p in other.parts]
    sets = [s.set for s in first.samples]
    assert sets != sorted(sets)
    assert sets != sorted(sets, reverse=True)


def test_sets_of_the_same_size_are_not_drawn_in_step(tmp_path: Path, chatml: ChatFormat) -> None:
    paths = []
    for name in ("a", "b"):
        rows = [{"prompt": f"{name}{i}", "completion": "c"} for i in range(30)]
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("\n".join(map(json.dumps, rows)))
    parts = select((str(paths[0]), str(paths[1])), chatml, 20, 0.5).parts
    assert parts[0].rows != parts[1].rows


def test_two_files_of_the_same_name_are_told_apart(tmp_path: Path, files: tuple[str, str], chatml: ChatFormat) -> None:
    double = tmp_path / "own.jsonl"
    double.write_text(Path(files[1]).read_text())
    chosen = select((files[0], str(double)), chatml, 20, 0.5)
    assert [part.name for part in chosen.parts] == ["own", "own (mixed in)"]
    assert len({s.id for s in chosen.samples}) == 20


@pytest.mark.parametrize(
    ("count", "share", "mixed", "message"),
    [
        (20, 1.0, True, r"at least 0 and below 1, got 1"),
        (20, -0.1, True, r"at least 0 and below 1, got -0\.1"),
        (20, float("nan"), True, r"at least 0 and below 1, got nan"),
        (20, 0.2, False, r"no set to take it from"),
        (0, 0.2, True, r"at least one row of .* is needed, got 0"),
        (0, 0.0, False, r"at least one row of .* is needed, got 0"),
        (60, 0.2, True, r"own has 40 usable rows, but 48 were asked for"),
        (40, 0.5, True, r"other has 15 usable rows, but 20 were asked for"),
        (2, 0.2, True, r"a share of 0\.2 of 2 rows leaves no row of other"),
        (2, 0.9, True, r"a share of 0\.9 of 2 rows leaves no row of own"),
    ],
)
def test_what_cannot_be_selected_is_refused(
    files: tuple[str, str], chatml: ChatFormat, count: int, share: float, mixed: bool, message: str
) -> None:
    mix = files[1] if mixed else None
    with pytest.raises(UserError, match=message):
        select_samples(files[0], chatml, count=count, max_length=200, seed=0, mix=mix, share=share)


def test_a_set_is_not_mixed_with_itself(files: tuple[str, str], chatml: ChatFormat) -> None:
    with pytest.raises(UserError, match="own is to be mixed with itself"):
        select((files[0], files[0]), chatml, 10, 0.5)


def test_bad_rows_are_replaced_so_that_the_share_stays_exact(
    tmp_path: Path, files: tuple[str, str], chatml: ChatFormat
) -> None:
    good, long = {"prompt": "a", "completion": "b"}, {"prompt": "z" * 500, "completion": "b"}
    lines = [json.dumps(good | {"prompt": f"a{i}"}) if i % 2 else json.dumps(long) for i in range(10)]
    spoilt = tmp_path / "spoilt.jsonl"
    spoilt.write_text("\n".join([*lines, "{}"]))
    how = {"max_length": 200, "seed": 0, "mix": str(spoilt), "share": 0.25}
    with pytest.raises(UserError, match="line 11: expected"):
        select_samples(files[0], chatml, count=16, **how)
    chosen = select_samples(files[0], chatml, count=16, skip_bad_rows=True, **how)
    assert Counter(s.set for s in chosen.samples) == Counter({"own": 12, "spoilt": 4})
    assert any("line 11" in line for line in chosen.skipped)
    # without a count: five rows of the second set are usable, and round(21 / 4) = 5 but round(22 / 4) = 6
    assert len(select_samples(files[0], chatml, count=None, skip_bad_rows=True, **how).samples) == 21
    alone = select_samples(str(spoilt), chatml, count=None, max_length=200, seed=0, skip_bad_rows=True)
    assert (len(alone.samples), len(alone.skipped)) == (5, 6)
