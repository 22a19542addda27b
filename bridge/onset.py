"""How the damage of a fine-tune sets in: predicted before the first step, measured along small real ones.

    python -m bridge.onset --model smollm2-135m-refusal --finetune gsm8k --optimizer sgd

Writes a run folder: manifest.json, settings.toml, samples.jsonl, statistics.npz, onset.json, onset.png, pilot.png
(with --pilot-steps) and report.html.
"""

from __future__ import annotations

from bridge.experiments.onset.settings import Settings
from bridge.models.names import resolve
from commands.cli import run_command
from commands.options import Out, command_of

MEMORY_ADVICE = "lower --batch-size first, then --memory or --max-length"


def main(settings: Settings, out: Out = None) -> None:
    """Watch the damage of a fine-tune set in, beside its prediction.

    Before the first step the utility loss is predicted from derivatives at MODEL alone: a leak part that grows as
    t², a quartic part, and what is between. Then small steps of gradient descent are really taken, and the utility
    loss is measured along them. Is the onset quadratic, quartic or neither, and until when does the prediction hold?
    Beyond that, --pilot-steps of the real optimiser forecast the end of its run. The same command again goes on with
    a run that was stopped.
    """
    settings.check()
    resolve(settings.model)
    from bridge.experiments.onset.run import run  # torch takes a second or two: wrong input should not wait for it

    run(settings, out)


if __name__ == "__main__":
    run_command(command_of(main, "bridge.onset"), MEMORY_ADVICE)
