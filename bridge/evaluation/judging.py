"""Asking a judge about many responses, on inspect-ai, so that every item ends with a verdict or with its reason.

The items are an inspect task: its dataset holds the prompts, its solver puts the stored response in place, its scorer
asks the judge through inspect's model providers (`bridge.evaluation.providers`). inspect bounds how many are asked at a
time; how often an item is asked again is decided here. What inspect writes goes to a scratch folder, without samples,
and is deleted; its servers, its screen and what it reads from .env files stay out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.evaluation import providers
from bridge.evaluation.judges import REFUSAL, Judge, read_score
from bridge.evaluation.limits import Limits
from bridge.evaluation.providers import MAX_TOKENS, Provider, contained, open_provider, writable
from bridge.evaluation.records import Record
from bridge.evaluation.redaction import without_secrets
from bridge.evaluation.refusals import is_refusal
from commands.errors import UserError
from commands.progress import Progress

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score, Scorer, Target
    from inspect_ai.solver import Generate, Solver, TaskState

_DOUBTED = 3  # items in a row that meet 403 or 404 before any is answered: it is the key or the model


class _Unusable(Exception):
    """The judge cannot be asked at all: the key, the model or the account is refused, or nothing answers."""


@dataclass(frozen=True)
class _Outcome:
    """A finished record, whether the judge answered at all, and whether 403 or 404 was all that came."""

    record: Record
    answered: bool = True
    forbidden: bool = False


@dataclass
class _Outcomes:
    """Hands finished records on, and ends the run where not the items but the judge seems to be the reason.

    Items without an answer are held back until the next answer, or the end, shows that the judge is there.
    """

    done: Callable[[Record], None]
    tick: Callable[[], None]
    give_up: int
    answered: bool
    held: list[_Outcome] = field(default_factory=list)

    def take(self, outcome: _Outcome) -> None:
        self.tick()
        self.held.append(outcome)
        self.answered |= outcome.answered
        if outcome.answered or not self.give_up:
            self.release()
        else:
            self._check_there()

    def finish(self) -> None:
        """At the end of all items."""
        if self.held and not self.answered and all(outcome.forbidden for outcome in self.held):
            raise self._forbidden()
        self.release()

    def release(self) -> None:
        for outcome in self.held:
            self.done(outcome.record)
        self.held.clear()

    def _check_there(self) -> None:
        last = self.held[-_DOUBTED:]
        if not self.answered and len(last) == _DOUBTED and all(outcome.forbidden for outcome in last):
            raise self._forbidden()
        if len(self.held) >= self.give_up:
            raise _Unusable(
                f"{len(self.held)} items in a row got no answer (the last: {self.held[-1].record.reason}); --give-up 0 "
                f"lists such items and goes on"
            )

    def _forbidden(self) -> _Unusable:
        return _Unusable(f"its provider refuses the key or the model ({self.held[-1].record.reason})")


def check_refusals(records: Sequence[Record]) -> list[Record]:
    """The records as the offline judge leaves them: `details` say whether the response is a refusal, and why."""
    out = []
    for record in records:
        match = is_refusal(record.response)
        details = {"refused": match is not None, "pattern": match.pattern if match else None}
        out.append(replace(record, judge=REFUSAL, status="checked", details=details))
    return out


def judge_records(
    records: Sequence[Record],
    judge: Judge,
    limits: Limits,
    *,
    done: Callable[[Record], None],
    scratch: Path,
    progress: Progress,
    already: int = 0,
) -> None:
    """Ask the judge about every record, in no particular order.

    Args:
        records: with prompt and response.
        judge: an online judge whose key is in the environment.
        limits: attempts, waits and connections.
        done: takes each record as soon as it has its verdict: status scored, unparsed, refused or failed. Records of
            items that were not answered come with the next answer, or at the end.
        scratch: a folder that may be made and deleted.
        progress: shows the items.
        already: items that an earlier process has verdicts on.

    Raises:
        UserError: if the judge refuses the key, the model or the account, or too many items in a row got no answer
            after all attempts; `done` has had what was answered until then.
        KeyboardInterrupt: for an interrupt.

    """
    if not records:
        return
    from inspect_ai import eval as run_task

    with progress.stage(f"judged by {judge.name}", len(records) + already, already) as tick:
        outcomes = _Outcomes(done, tick, limits.give_up, answered=already > 0)
        stopped: list[Exception] = []
        with contained(scratch):
            logs = run_task(
                _task(records, judge, open_provider(judge, limits.timeout), limits, outcomes, stopped),
                model=None, display="none", log_level="critical", log_dir=str(scratch / "log"), log_samples=False,
                log_realtime=False, log_model_api=False, ctl_server=False, acp_server=False, score_display=False,
                fail_on_error=False, retry_on_error=0, max_samples=limits.connections,
            )  # fmt: skip
    if stopped and isinstance(stopped[0], _Unusable):
        raise _ended(judge, stopped[0])
    if stopped:
        raise stopped[0]
    if not logs or logs[0].status == "cancelled":  # inspect takes an interrupt for its own
        raise KeyboardInterrupt
    if logs[0].status != "success":
        message = logs[0].error.message if logs[0].error else logs[0].status
        raise RuntimeError(f"inspect-ai could not run the judge: {without_secrets(message)}")
    try:
        outcomes.finish()
    except _Unusable as error:
        raise _ended(judge, error) from None


def _ended(judge: Judge, error: Exception) -> UserError:
    return UserError(f"--judge {judge.name}: {error}; the same command goes on from here")


def _task(
    records: Sequence[Record],
    judge: Judge,
    provider: Provider,
    limits: Limits,
    outcomes: _Outcomes,
    stopped: list[Exception],
) -> Task:
    """The inspect task of these records; `stopped` gets what ends it for all of them, since inspect would go on."""
    from inspect_ai import Task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score, scorer
    from inspect_ai.solver import solver

    @solver
    def stored_response() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            state.output = ModelOutput.from_content("stored", records[int(state.sample_id) - 1].response)
            return state

        return solve

    @scorer(metrics=[])
    def harmfulness() -> Scorer:
        async def score(state: TaskState, target: Target) -> Score | None:
            if stopped:
                return None
            try:
                outcome = await _judged(records[int(state.sample_id) - 1], judge, provider, limits)
                outcomes.take(outcome)
            except Exception as error:
                stopped.append(error)
                return None
            return Score(value=outcome.record.score or 0, explanation=outcome.record.status)

        return score

    samples = [Sample(id=k, input=record.prompt) for k, record in enumerate(records, start=1)]
    return Task(dataset=MemoryDataset(samples), solver=stored_response(), scorer=harmfulness(), name="harmfulness")


async def _judged(record: Record, judge: Judge, provider: Provider, limits: Limits) -> _Outcome:
    """The record with the judge's verdict, or with the reason why there is none after all attempts."""
    import anyio

    asked = replace(record, judge=judge.name, judge_text="", score=None, status="failed", reason="")
    start = time.monotonic()
    for attempt in range(1, limits.attempts + 1):
        try:
            with anyio.fail_after(limits.timeout):
                output = await provider.answer(record)
            return _Outcome(_read(replace(asked, attempts=attempt), output, time.monotonic() - start))
        except Exception as error:  # whatever a provider's package makes of a wrong reply: it ends one item only
            seconds = round(time.monotonic() - start, 4)
            reason = providers.reason(error, limits.timeout)
            asked = replace(asked, attempts=attempt, reason=reason, judge_latency=seconds)
            _check_usable(error, reason, judge)
            if providers.refuses_item(error):
                return _Outcome(replace(asked, status="refused"), answered=False)
            if not providers.worth_asking_again(error):
                return _Outcome(asked, answered=False, forbidden=providers.forbids(error))
            wait = max(provider.asked_to_wait(error), _pause(attempt, limits))
            if wait > limits.longest_wait:
                asked = replace(asked, reason=f"{reason} (asks to wait {wait:,.0f} seconds)")
                break
            if attempt < limits.attempts:
                await anyio.sleep(wait)
    return _Outcome(asked, answered=False)


def _read(record: Record, output: ModelOutput, seconds: float) -> Record:
    """The record with what the judge wrote, and the score in it."""
    text = writable(without_secrets(output.completion))
    usage = output.usage
    answered = replace(
        record,
        judge_text=text,
        judge_latency=round(seconds, 4),
        judge_prompt_tokens=usage.input_tokens if usage else 0,
        judge_response_tokens=usage.output_tokens if usage else 0,
    )
    score, reason = read_score(text, record.prompt, record.response)
    blocked = output.stop_reason == "content_filter"
    if score is not None and not blocked:
        return replace(answered, score=score, status="scored", reason="")
    if blocked or is_refusal(text):
        return replace(answered, status="refused", reason="its filter stopped it" if blocked else "the judge declined")
    if output.stop_reason == "max_tokens":
        reason = f"cut at {MAX_TOKENS:,} tokens: {reason}"
    return replace(answered, status="unparsed", reason=reason)


def _check_usable(error: BaseException, reason: str, judge: Judge) -> None:
    """Raise _Unusable for an error that every other item would meet too."""
    if providers.refuses_key(error):
        raise _Unusable(f"its provider refuses the key or the model ({reason})")
    if providers.quota_is_used_up(error, judge):
        raise _Unusable(f"the account's quota is used up ({reason})")


def _pause(attempt: int, limits: Limits) -> float:
    return min(limits.backoff * 2 ** (attempt - 1), limits.longest_wait) * random.uniform(0.5, 1.0)
