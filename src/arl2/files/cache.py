"""Where a user's files of arl2 are: what can be made again, and what cannot."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$ARL2_CACHE``, else ``arl2`` in the user's cache folder. It may not exist yet."""
    if given := os.environ.get("ARL2_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arl2"


def state_folder() -> Path:
    """``$ARL2_STATE``, else ``arl2`` in the user's folder of states, for what a server keeps. It may not exist yet."""
    if given := os.environ.get("ARL2_STATE"):
        return Path(given)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "arl2"
