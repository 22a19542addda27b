"""Models on the Hugging Face hub: from its local cache, or downloaded where the hub can be reached."""

from __future__ import annotations

import difflib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.models.architectures import ALIASES, DEFAULT_ALIAS
from bridge.models.cache import Report
from commands.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

HUB_PATIENCE = 3.0
"""Seconds that the hub may take to answer before it counts as out of reach."""

WITHOUT_NETWORK = f"what works without it: --model {DEFAULT_ALIAS}, or --model FOLDER (a local model)"

# Only what a model at the root of its repository needs, and never pickles or a model's own code.
_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
]
_NOT = ["*/*"]


def cached_snapshot(repository: str) -> Path | None:
    """The folder of a repository's files in the local hub cache; None where none or only a part is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(repository, local_files_only=True, allow_patterns=_FILES, ignore_patterns=_NOT)
    except LocalEntryNotFoundError:
        return None
    return Path(folder)


def download_snapshot(repository: str, report: Report) -> Path:
    """Download the safetensors, configuration and tokenizer of a repository into the hub cache.

    Raises UserError, within seconds, if the hub cannot be reached, has no such repository, or wants a licence
    to be accepted first; and if the download breaks off.
    """
    from huggingface_hub import constants, errors, snapshot_download

    _probe(repository)
    report(f"Fetching {repository} from the Hugging Face hub ...")
    broken_off = (errors.HfHubHTTPError, OSError, errors.HTTPError)
    try:
        folder = snapshot_download(repository, allow_patterns=_FILES, ignore_patterns=_NOT)
    except broken_off as error:
        if isinstance(error, errors.RepositoryNotFoundError):
            raise _refusal(repository, error) from error
        raise UserError(
            f"the download of {repository} from {constants.ENDPOINT} broke off ({_reason(error)}): "
            "give the same command again to go on with it"
        ) from error
    return Path(folder)


def _probe(repository: str) -> None:
    """Ask the hub for the repository; UserError if it does not answer in time or does not have it.

    In a thread of its own because a time-out of the request does not bound the look-up of the host's name.
    """
    from huggingface_hub import HfApi, constants, errors

    outcome: list[object] = []

    def ask() -> None:
        try:
            outcome.append(HfApi().model_info(repository, timeout=HUB_PATIENCE))
        except (errors.HTTPError, OSError, ValueError) as error:
            outcome.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_PATIENCE)
    answer = outcome[0] if outcome else TimeoutError(f"no answer in {HUB_PATIENCE:g} s")
    if isinstance(answer, errors.HfHubHTTPError):
        raise _refusal(repository, answer) from answer
    if isinstance(answer, Exception):
        raise UserError(
            f"{repository} is not in the local hub cache and {constants.ENDPOINT} could not be reached "
            f"({_reason(answer)}); {WITHOUT_NETWORK}"
        ) from answer


def _refusal(repository: str, error: HfHubHTTPError) -> UserError:
    """The user's error for what the hub answered."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{repository} is gated: accept its licence at {page}, log in with `hf auth login` and try again"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"{repository} is neither a local folder nor on {constants.ENDPOINT}, or it is private; "
            f"{nearest(repository)}"
        )
    if error.response.status_code == 401:
        return UserError(f"{constants.ENDPOINT} does not accept your token: log in again with `hf auth login`")
    return UserError(f"{constants.ENDPOINT} refused {repository} ({_reason(error)}); {WITHOUT_NETWORK}")


def nearest(name: str) -> str:
    """A hint that lists the known names nearest to one that is not known, or all of them if none is near."""
    bare = name.rsplit("/", 1)[-1].lower()
    near = difflib.get_close_matches(bare, ALIASES, n=3, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else f"known names: {', '.join(ALIASES)}"


def _reason(error: Exception) -> str:
    """Why, without the text of the error: that may hold a signed address."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "the environment sets HF_HUB_OFFLINE"
    response = getattr(error, "response", None)
    if response is not None:
        return f"status {response.status_code}"
    if isinstance(error, TimeoutError):
        return str(error)
    return getattr(error, "strerror", None) or type(error).__name__
