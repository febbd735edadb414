"""Which backend a kernel uses: requested in the call, else in a ``with use_backends(...)``, else the best that fits.

The choice is announced once in the log, with why a better one was refused.
"""

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from arl2.errors import ConfigError

T = TypeVar("T")
Question = TypeVar("Question", bound=Callable[..., Any])
logger = logging.getLogger("arl2.kernels")

DELTA_RULE, ATTENTION, ELEMENTWISE = "gated delta rule", "softmax attention", "norms and gates"
ACCEPTED = {
    DELTA_RULE: ("auto", "naive", "chunked", "blockwise", "triton", "fla"),
    ATTENTION: ("auto", "naive", "sdpa", "float32", "flash", "cudnn", "efficient", "flex"),
    ELEMENTWISE: ("auto", "torch", "triton"),
}

_QUESTIONS: list[Callable[..., Any]] = []  # beside this module's own

# A switch of the calling context, so that models and layers need not hand it down.
_requested: ContextVar[dict[str, str] | None] = ContextVar("arl2_backends", default=None)


@contextmanager
def use_backends(*, delta_rule: str = "auto", attention: str = "auto", elementwise: str = "auto") -> Iterator[None]:
    """Within the ``with``, kernels called with ``backend="auto"`` use these.

    Raises:
        ConfigError: an unknown backend.
    """
    requested = {
        DELTA_RULE: check_backend(DELTA_RULE, delta_rule),
        ATTENTION: check_backend(ATTENTION, attention),
        ELEMENTWISE: check_backend(ELEMENTWISE, elementwise),
    }
    token = _requested.set(requested)
    try:
        yield
    finally:
        _requested.reset(token)


def keeping_backends(run: Callable[..., T]) -> Callable[..., T]:
    """``run`` with the backends that are requested here, wherever it is called.

    For what autograd computes again: on a GPU its backward pass has a thread of its own, which knows of no request.
    """
    requested = _requested.get()

    @functools.wraps(run)
    def within(*given: Any, **named: Any) -> T:
        token = _requested.set(requested)
        try:
            return run(*given, **named)
        finally:
            _requested.reset(token)

    return within


def requested_backend(operation: str, backend: str) -> str:
    """The backend requested in the call or around it; ``"auto"`` if none was.

    Raises:
        ConfigError: an unknown backend.
    """
    if check_backend(operation, backend) != "auto":
        return backend
    return (_requested.get() or {}).get(operation, "auto")


def check_backend(operation: str, backend: str) -> str:
    """``backend`` if the operation has it.

    Raises:
        ConfigError: it has not; the message lists those there are.
    """
    if backend not in ACCEPTED[operation]:
        raise ConfigError(
            f"Backend {backend!r} of {operation} is not known; choose one of {', '.join(ACCEPTED[operation])}."
        )
    return backend


def is_installed(module: str) -> bool:
    """Whether a package is there, without importing it. Looked up once: kernels ask at every call."""
    return _is_installed(module)


def is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU: a test."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def announce(operation: str, chosen: str, reason: str) -> None:
    """Log ``operation`` -> ``chosen`` the first time this combination is met in the process."""
    _announced(operation, chosen, reason)


def is_default() -> bool:
    """Whether no backend is requested here."""
    return all(backend == "auto" for backend in (_requested.get() or {}).values())


def settled(question: Question) -> Question:
    """Marks a function whose answer is a constant to compilers: a choice that is made outside of graphs."""
    _QUESTIONS.append(question)
    return question


@functools.cache
def settle_choices() -> None:
    """Let compilers ask for a choice once, while they trace, and take the answer as a constant."""
    for question in (requested_backend, is_installed, is_interpreted, announce, *_QUESTIONS):
        torch.compiler.assume_constant_result(question)


@functools.cache
def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@functools.cache
def _announced(operation: str, chosen: str, reason: str) -> None:
    logger.info("%s: backend %s (%s)", operation, chosen, reason)
