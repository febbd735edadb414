"""Where what can be made again is kept from one process to the next."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$ARL2_CACHE``, else ``arl2`` in the user's cache folder. It may not exist yet."""
    if given := os.environ.get("ARL2_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arl2"
