"""Measure, on a language model, how a fine-tune moves what it does: the interface for Python.

    import bridge
    m = bridge.Model("smollm2-135m")
    aic = m.estimate_aic(m.samples("refusals", 64), m.samples("benign", 64, responses="rows"), steps=100)

Importing this costs nothing: what a name needs is imported when the name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge.api import Model, Samples, energy, finetune, load_result, mso, project
    from bridge.monitor import AlignmentMonitor
    from commands.errors import UserError

__all__ = [
    "AlignmentMonitor",
    "Model",
    "Samples",
    "UserError",
    "energy",
    "finetune",
    "load_result",
    "mso",
    "project",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'bridge' has no attribute {name!r}")
    if name == "AlignmentMonitor":
        from bridge.monitor import AlignmentMonitor

        return AlignmentMonitor
    if name == "UserError":
        from commands.errors import UserError

        return UserError
    from bridge import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
