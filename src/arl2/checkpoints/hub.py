"""Named models on the Hugging Face Hub: what a card needs, what of it is on this disk, and fetching the rest.

The Hub's own client does the fetching and keeps its own cache, so HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE
mean what they always mean. A file is in the cache when it is whole; what came whole is never fetched again.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arl2.errors import CheckpointError, ConfigError
from arl2.files.plain import shard_names
from arl2.model.registry import ModelCard

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_CONFIG = "transformer/config.json"
_BASE_FILES = (
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/spiece.model",
    "text_encoder/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    _CONFIG,
)
# Folder and stem of weights that are one file, or several and an index that names them.
_TEXT_ENCODER, _CODEC = ("text_encoder", "model"), ("vae", "diffusion_pytorch_model")
_TRANSFORMER = ("transformer", "diffusion_pytorch_model")

# The Hub's client speaks HTTP through one of these, depending on its version.
_HTTP_LIBRARIES = ("httpx2", "httpx", "httpcore2", "httpcore", "requests", "urllib3")


class DownloadError(CheckpointError):
    """A model that could not be fetched: no network, no access, no such file, no room."""


@dataclass(frozen=True)
class Located:
    """A named model on this disk.

    Attributes:
        base: folder in the diffusers layout: ``tokenizer``, ``text_encoder``, ``vae``, ``scheduler``, ``transformer``
            (of which the configuration alone where ``weights`` replace it).
        weights: the transformer's file; None if it is in ``base``, or is the caller's to give.
    """

    base: Path
    weights: Path | None


@dataclass(frozen=True)
class Presence:
    """How much of a model is on this disk.

    Attributes:
        located: the model, if it is whole.
        present, missing: files there and not there, as ``repository/file``.
    """

    located: Located | None
    present: tuple[str, ...]
    missing: tuple[str, ...]


def base_patterns(card: ModelCard) -> tuple[str, ...]:
    """What is fetched of the base repository, as patterns of file names."""
    transformer = ("transformer/*",) if card.needs_base_transformer else (_CONFIG,)
    return ("tokenizer/*", "text_encoder/*", "vae/*", "scheduler/*", *transformer)


def presence(card: ModelCard, *, revision: str | None = None) -> Presence:
    """What of a model the Hub's cache on this disk holds; touches no network.

    Args:
        revision: branch, tag or commit of the repository that holds the transformer's weights; None is ``main``.

    Raises:
        ConfigError: an embedded model, of which nothing lies on the Hub.
        CheckpointError: an index in the cache that is damaged.
    """
    base_repo = _base_of(card)
    base_revision = None if card.weights_file else revision
    present: list[str] = []
    missing: list[str] = []
    folder: Path | None = None
    for name in _base_names(card, base_revision):
        found = _cached(base_repo, name, base_revision)
        (missing if found is None else present).append(f"{base_repo}/{name}")
        if name == _CONFIG and found is not None:
            folder = found.parent.parent
    weights: Path | None = None
    if card.weights_repo is not None and card.weights_file is not None:
        weights = _cached(card.weights_repo, card.weights_file, revision)
        (missing if weights is None else present).append(f"{card.weights_repo}/{card.weights_file}")
    whole = None if missing or folder is None else Located(folder, weights)
    return Presence(whole, tuple(present), tuple(missing))


def located(card: ModelCard, *, revision: str | None = None) -> Located | None:
    """The model, if all of it is on this disk; None if any file is missing. Touches no network; errors as above."""
    return presence(card, revision=revision).located


def download(
    card: ModelCard, *, report: Callable[[str], None], revision: str | None = None, quiet: bool = False
) -> Located:
    """Fetch what is missing of a model. Calling it again continues where it stopped, file by file.

    Args:
        report: takes a sentence about each thing that is done.
        revision: as for ``presence``.
        quiet: show no progress bars (they go to standard error).

    Raises:
        ConfigError: an embedded model.
        DownloadError: no network, no access, no such repository, revision or file, a full disk, a broken connection,
            or a repository that lacks what a model needs.
    """
    base_repo = _base_of(card)
    from huggingface_hub import hf_hub_download, snapshot_download

    base_revision = None if card.weights_file else revision
    with _progress_bars(shown=not quiet):
        report(f"{base_repo}: {', '.join(base_patterns(card))}")
        with _explained(card, base_repo):
            snapshot_download(base_repo, revision=base_revision, allow_patterns=list(base_patterns(card)))
        if card.weights_repo is not None and card.weights_file is not None:
            report(f"{card.weights_repo}: {card.weights_file}")
            with _explained(card, card.weights_repo):
                hf_hub_download(card.weights_repo, card.weights_file, revision=revision)
    found = presence(card, revision=revision)
    if found.located is None:
        raise DownloadError(
            f"'{card.name}' is not whole: {_few(found.missing)} {'is' if len(found.missing) == 1 else 'are'} missing "
            f"here and could not be fetched; if you are offline, download it with a connection once, else the "
            "repository has changed: ask for another --revision."
        )
    return found.located


def _base_of(card: ModelCard) -> str:
    if card.base is None:
        raise ConfigError(f"'{card.name}' ships with the package; there is nothing to download.")
    return card.base


def _base_names(card: ModelCard, revision: str | None) -> Iterator[str]:
    """Files of the base repository that must be there; of sharded weights, those that their index names."""
    assert card.base is not None
    yield from _BASE_FILES
    for folder, stem in (_TEXT_ENCODER, _CODEC, *([_TRANSFORMER] if card.needs_base_transformer else [])):
        single = f"{folder}/{stem}.safetensors"
        index = _cached(card.base, f"{single}.index.json", revision)
        if index is None:
            yield single
        else:
            yield from (f"{folder}/{name}" for name in shard_names(index))


def _only_revision(repo: str) -> str | None:
    """The commit that ``download --revision`` fetched, where no ``main`` and no other is there; None for ``main``."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    if (folder / "refs" / "main").exists() or not (folder / "snapshots").is_dir():
        return None
    commits = [one.name for one in (folder / "snapshots").iterdir() if one.is_dir()]
    return commits[0] if len(commits) == 1 else None


def _cached(repo: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, revision=revision or _only_revision(repo))
    return Path(found) if isinstance(found, str) else None  # else never fetched, or known not to exist


@contextmanager
def _progress_bars(*, shown: bool) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _explained(card: ModelCard, repo: str) -> Iterator[None]:
    """Errors of the Hub's client as sentences; anything that is no failed download goes through."""
    try:
        yield
    except Exception as error:
        told = _explanation(error, repo, card)
        if told is None:
            raise
        raise DownloadError(told) from error


def _explanation(error: Exception, repo: str, card: ModelCard) -> str | None:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    again = f"run 'arl2 download {card.name}' again: files that came whole are kept"
    reason = str(error).strip().split("\n", maxsplit=1)[0][:200]
    # The client wraps some answers of the Hub into "not on this disk"; what the Hub said is the better reason.
    answer = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(answer, HfHubHTTPError):
        return _refusal(answer, repo, again)
    if isinstance(error, LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return (
                f"{repo} is not whole on this disk and HF_HUB_OFFLINE forbids fetching it; unset HF_HUB_OFFLINE, or "
                f"copy a cache that has it to {constants.HF_HUB_CACHE}."
            )
        unreachable = f"{constants.ENDPOINT} cannot be reached and {repo} is not whole on this disk"
        return f"{unreachable}; check the network, then {again}."
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in reason:
        return (
            f"The disk of {constants.HF_HUB_CACHE} is full; '{card.name}' takes about {card.disk_bytes / 1e9:.0f} GB "
            f"there: make room or set HF_HOME to another disk, then {again}."
        )
    if isinstance(error, PermissionError):
        return f"{constants.HF_HUB_CACHE} cannot be written ({reason}); set HF_HOME to a folder of yours."
    # Xet, the Hub's other protocol, reports a failed transfer as a RuntimeError.
    if isinstance(error, OSError | RuntimeError) or type(error).__module__.partition(".")[0] in _HTTP_LIBRARIES:
        return f"Fetching {repo} broke off ({reason or type(error).__name__}); check the network, then {again}."
    return None


def _refusal(error: "HfHubHTTPError", repo: str, again: str) -> str:
    """What a status of the Hub means."""
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RevisionNotFoundError

    page, status = f"{constants.ENDPOINT}/{repo}", error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such revision ({status}); leave --revision out, or take one from {page}/commits."
    if isinstance(error, EntryNotFoundError):
        return (
            f"{repo} has no such file ({status}); it may have been moved: look at {page}, or give another --revision."
        )
    if isinstance(error, GatedRepoError) or status == 403:
        return f"{repo} is gated ({status}); accept its terms on {page}, then set HF_TOKEN or run 'hf auth login'."
    if status == 401:
        return f"The Hub refused access to {repo} ({status}): it is private, gone, or HF_TOKEN is wrong; check {page}."
    if status == 404:
        return f"The Hub has no {repo} ({status}); check HF_ENDPOINT, and whether {page} exists."
    return f"The Hub answered {status} for {repo}; wait a little, then {again}."


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
