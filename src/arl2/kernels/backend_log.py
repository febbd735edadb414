"""Says once which backend runs, and why a better one was refused."""

import functools
import logging

logger = logging.getLogger("arl2.kernels")


@functools.cache
def announce(operation: str, chosen: str, reason: str) -> None:
    """Log ``operation`` -> ``chosen`` the first time this combination is met in the process."""
    logger.info("%s: backend %s (%s)", operation, chosen, reason)
