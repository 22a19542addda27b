"""How patiently judges are asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from commands.settings import Option, Settings


@dataclass(frozen=True, kw_only=True)
class Limits(Settings):
    """The judges: how patiently they are asked; this decides no score."""

    attempts: Annotated[int, Option("Requests to a judge for one item before it counts as failed."), Ge(1)] = 6
    timeout: Annotated[
        float, Option("Seconds that a judge may take for one request.", wanted="a positive number of seconds"), Gt(0)
    ] = 120.0
    backoff: Annotated[
        float,
        Option("Seconds before the second request for an item; doubled.", wanted="a positive number of seconds"),
        Gt(0),
    ] = 2.0
    longest_wait: Annotated[
        float,
        Option("Longest wait before a request, also by Retry-After.", wanted="a positive number of seconds"),
        Gt(0),
    ] = 300.0
    connections: Annotated[int, Option("Requests to a judge at a time."), Ge(1)] = 16
    give_up: Annotated[
        int, Option("Items in a row without an answer that end the run; 0 to list them and go on."), Ge(0)
    ] = 20
