"""What a table of `bridge.table1` is made from: the contents of its models and sets, then and now.

The options of a table name files; what is in them can change between two runs of the same command. The commands that
fill a row keep hashes of it in their manifests, and those are compared with what is there now.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bridge.data.rows import load_prompts
from bridge.models.cache import Report, file_sha256
from bridge.models.load import folder_of, hash_folder
from bridge.models.names import resolve
from bridge.suites.finetunes import TrainingSet
from bridge.suites.table1.settings import TableSettings
from bridge.training.plan import Method
from commands.errors import UserError
from commands.store import read_result

Hashes = dict[str, str | list[str] | None]
"""Hashes of contents by their names in a manifest; None for what cannot be read or hashed beforehand."""
Contents = dict[str, Hashes]
"""The same by command."""
_BASE = "base_sha256"  # of the weights before any change


class TableContents:
    """Hashes of what a table is made from, each found once.

    Raises:
        UserError: a set on which every model is measured cannot be read.

    """

    def __init__(self, settings: TableSettings, report: Report) -> None:
        self._settings = settings
        self._sets: dict[str, str] = {}
        self._weights = {model: _weights(model, report) for model in settings.models}
        self._shared: Contents = {}
        for (command, option), spec in settings.measured_sets().items():
            try:
                sha256 = self._sha256(spec)
            except UserError as error:
                raise UserError(f"[{command}] --{option}: {error}") from error
            self._shared.setdefault(command, {})["data_sha256" if option == "data" else f"{option}_sha256"] = sha256

    def of_measures(self, model: str) -> Contents:
        """What the measures before any fine-tuning are made from."""
        return self._with_weights(model, {c: v for c, v in self._shared.items() if c != "overlap"})

    def of_row(self, model: str, method: Method, chosen: TrainingSet) -> Contents:
        """What a row is made from."""
        tuned = self._settings.finetune_settings(model, method, chosen)
        trained = [self._readable(spec) for spec in (tuned.data, tuned.mix) if spec is not None]
        own: Hashes = {"data_sha256": [sha256 for sha256 in trained if sha256 is not None]}
        if None in trained:
            own["data_sha256"] = None
        if tuned.skill is not None:
            own["skill_sha256"] = self._readable(tuned.skill)
        return self._with_weights(model, {"finetune": own, **self._shared})

    def _with_weights(self, model: str, hashes: Mapping[str, Hashes]) -> Contents:
        return {command: {_BASE: self._weights[model], **values} for command, values in hashes.items()}

    def _sha256(self, spec: str) -> str:
        if spec not in self._sets:
            self._sets[spec] = load_prompts(spec, skip_bad_rows=True).sha256
        return self._sets[spec]

    def _readable(self, spec: str) -> str | None:
        try:
            return self._sha256(spec)
        except UserError:  # the row will say so
            return None


def differences(folder: Path, contents: Contents) -> list[str]:
    """What of the run folders in a row's folder was made from other contents; empty if nothing.

    Raises:
        UserError: the manifest of one of them cannot be read.

    """
    found = []
    for command, hashes in contents.items():
        made = read_result(folder / command / "manifest.json")["settings"]
        made.setdefault(_BASE, made["weights_sha256"])
        for name, now in hashes.items():
            if now is not None and made[name] != now:
                found.append(f"{command}, {name}: {_short(made[name])} there, {_short(now)} now")
    return found


def _short(value: str | list[str]) -> str:
    return " and ".join(each[:12] + "…" for each in ([value] if isinstance(value, str) else value))


def _weights(model: str, report: Report) -> str | None:
    """`LoadedModel.weights_hash` of a model, without loading it; None for drawn weights, and where there are none."""
    source = resolve(model)
    if source.kind == "random":
        return None
    try:
        return file_sha256(Path(source.location)) if source.kind == "gguf" else hash_folder(folder_of(model, report))
    except UserError:  # the first command will say so
        return None
