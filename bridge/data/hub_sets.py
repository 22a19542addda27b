"""Records of the sets that the Hugging Face hub keeps."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from bridge.data.sets import NamedSet, local_copy
from commands.errors import UserError, first_line


def hub_records(name: str, known: NamedSet) -> list[Mapping[str, object]]:
    """All records of a set of the hub, which is asked once first because `datasets` retries for half a minute.

    Raises UserError, naming the alternative of a local copy, when `datasets` is not installed, the hub cannot
    be reached, or the set cannot be loaded.
    """
    local = local_copy(name)
    try:
        import datasets
        from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
    except ImportError as error:
        raise UserError(
            f"reading {name} from the hub needs the package {error.name!r}: install it, or {local}"
        ) from None
    failure = _hub_failure(known.hub_id)
    # In offline mode, which the user has asked for, `datasets` looks in its cache only.
    if failure is not None and not isinstance(failure, OfflineModeIsEnabled):
        raise UserError(
            f"cannot reach {known.hub_id} on the Hugging Face hub ({first_line(failure)}): {local}, "
            "or set HF_HUB_OFFLINE=1 if datasets has it in its cache"
        )
    try:
        data = datasets.load_dataset(known.hub_id, known.hub_config or None, split=known.hub_split)
    except (HTTPError, OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"cannot load {known.hub_id} ({first_line(error)}): {local}") from None
    return [dict(record) for record in data]


def _hub_failure(hub_id: str) -> Exception | None:
    """Why the hub does not show the set, or None if it does; answers in seconds whatever the network does."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    from bridge.models.hub import HUB_PATIENCE

    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().dataset_info(hub_id, timeout=HUB_PATIENCE)
        except (HTTPError, OSError, ValueError) as error:
            outcome.append(error)
        else:
            outcome.append(None)

    # In a thread of its own because the time-out does not bound the look-up of the host's name.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_PATIENCE)
    return outcome[0] if outcome else TimeoutError(f"no answer in {HUB_PATIENCE:g} s")
