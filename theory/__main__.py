"""``python -m theory``: the ledger as a table, one claim in full, or the checks."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from typing import NoReturn

from commands.cli import run_command
from commands.errors import UserError
from theory.ledger import render
from theory.ledger.claim import MAX_SEED, Claim, Outcome, Parameter, Point, check_claim, check_point
from theory.ledger.registry import UnknownClaimError, find

_PROGRAM = "python -m theory"
_EXAMPLES = 1000


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {_PROGRAM} --help")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exits with 1 if a check fails.

    Raises:
        UserError: for wrong input.
    """
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=_PROGRAM, description="Every claim of the theory, what is true of it, and its check.")
    _add_formats(parser)
    parser.set_defaults(run=_table)
    commands = parser.add_subparsers(title="commands", metavar="")
    show = commands.add_parser("show", help="everything on some claims (on all, if no key is given)")
    show.add_argument("keys", nargs="*", metavar="KEY", help="a claim of the table, as 6.3 or Q1")
    show.set_defaults(run=_show)
    check = commands.add_parser("check", help="run the checks on random cases; exit code 1 if one fails")
    check.add_argument("keys", nargs="*", metavar="KEY", help="claims to check; all if none is given")
    check.add_argument("--examples", type=int, help=f"random cases of each claim ({_EXAMPLES})")
    check.add_argument("--seed", type=int, default=0, help="of the cases (0)")
    check.add_argument("--case", metavar="'NAME=VALUE ...'", help="check this one case, as a run printed it")
    check.set_defaults(run=_check)
    for command in (show, check):
        _add_formats(command)
    return parser


def _add_formats(parser: argparse.ArgumentParser) -> None:
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print a JSON list")
    formats.add_argument("--markdown", action="store_true", default=argparse.SUPPRESS, help="print Markdown")


def _wants(options: argparse.Namespace, form: str) -> bool:
    return getattr(options, form, False)


def _table(options: argparse.Namespace) -> int:
    claims = find([])
    if _wants(options, "json"):
        _print_json([render.claim_record(claim) for claim in claims])
    elif _wants(options, "markdown"):
        print(render.markdown_table(claims))
    else:
        print(render.table(claims, _width()))
    return 0


def _show(options: argparse.Namespace) -> int:
    claims = _found(options.keys)
    if _wants(options, "json"):
        _print_json([render.claim_record(claim) for claim in claims])
    elif _wants(options, "markdown"):
        print(render.markdown_document(claims))
    else:
        print("\n\n\n".join(render.entry(claim, _width()) for claim in claims))
    return 0


def _found(keys: list[str]) -> list[Claim]:
    try:
        return find(keys)
    except UnknownClaimError as error:
        raise UserError(str(error)) from error


def _check(options: argparse.Namespace) -> int:
    claims = _found(options.keys)
    if options.examples is not None and options.examples < 1:
        raise UserError(f"--examples must be at least 1, got {options.examples}")
    if options.seed < 0:
        raise UserError(f"--seed must not be negative, got {options.seed}")
    outcomes = []
    live = not (_wants(options, "json") or _wants(options, "markdown"))
    for claim in claims:
        outcome = _outcome(claim, options)
        outcomes.append(outcome)
        if live:
            print(render.outcome_line(outcome), flush=True)
    if _wants(options, "json"):
        _print_json([render.outcome_record(outcome) for outcome in outcomes])
    elif _wants(options, "markdown"):
        print(render.markdown_outcomes(outcomes))
    return int(any(outcome.failures for outcome in outcomes))


def _outcome(claim: Claim, options: argparse.Namespace) -> Outcome:
    if options.case is None:
        return check_claim(claim, options.examples or _EXAMPLES, options.seed)
    if len(options.keys) != 1:
        raise UserError(f"--case is a case of one claim: give one KEY with it, got {len(options.keys)}")
    if options.examples is not None:
        raise UserError("--case is one example: leave out --examples")
    return check_point(claim, _point(claim, options.case))


def _point(claim: Claim, text: str) -> Point:
    """The parameters of a case as they were printed, each inside its range."""
    known = {parameter.name: parameter for parameter in claim.parameters}
    words = [word.partition("=") for word in text.split()]
    if sorted(name for name, _, _ in words) != sorted([*known, "seed"]):
        raise UserError(
            f"a case of {claim.key} is {' '.join(f'{name}=...' for name in [*known, 'seed'])}, got {text!r}"
        )
    seed = Parameter("seed", 0, MAX_SEED)
    return {name: _value(known.get(name, seed), number) for name, _, number in words}


def _value(parameter: Parameter, text: str) -> int | float:
    kind = "a whole number" if parameter.kind == "integer" else "a number"
    try:
        value = int(text) if parameter.kind == "integer" else float(text)
    except ValueError:
        value = math.nan
    if not parameter.low <= value <= parameter.high:
        raise UserError(f"{parameter.name} must be {kind} in {parameter.low:g}..{parameter.high:g}, got {text!r}")
    return value


def _print_json(records: list[dict[str, object]]) -> None:
    print(json.dumps(records, indent=2, ensure_ascii=False))


def _width() -> int:
    return min(shutil.get_terminal_size((120, 24)).columns, 140)


if __name__ == "__main__":
    run_command(main, "lower --examples", interrupted="stopped")
