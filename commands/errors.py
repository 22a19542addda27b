"""The error of a user's input."""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what was expected, what was got, what to do. Commands print it without a
    traceback and exit with code 2; everything else that goes wrong keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
