"""How workers are called, whoever calls them: a front, or another worker. ``RayWorkers`` does it through Ray Serve."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

logger = logging.getLogger(__name__)

# Words in the names of Ray's errors where an actor is gone, is being stopped, or has not answered.
_LOST = ("Actor", "Unavailable", "NodeDied", "WorkerCrashed", "OwnerDied", "ObjectLost", "TaskCancelled", "Rpc")


class WorkerLostError(Exception):
    """The worker ended, or let go of the stream, before it had answered: ask again, another one will."""


class MovingError(WorkerLostError):
    """Of a worker that lives: the stream is about to run elsewhere."""


@runtime_checkable
class Workers(Protocol):
    """All workers. A stream's name decides which one is called: always the same, as long as their set is the same.

    Every method raises ``WorkerLostError``, and what the worker's own method raised.
    """

    async def call(self, stream: str, method: str, *given: Any) -> Any:
        """Call a method of the stream's worker, with the name of the stream before what is given."""

    def follow(self, stream: str, method: str, *given: Any) -> AsyncGenerator[Any, None]:
        """What such a method yields. Closing the iterator ends it."""

    async def ask_all(self, method: str, *given: Any, timeout: float = 10.0) -> list[Any]:
        """Ask every worker; answers of those that are lost meanwhile are left out."""


class RayWorkers:
    """Through a handle of Ray Serve. Its ``ConsistentHashRouter`` chooses by the name of the stream.

    Args:
        handle: of the workers' deployment.
    """

    def __init__(self, handle: "DeploymentHandle") -> None:
        self._handle = handle

    async def call(self, stream: str, method: str, *given: Any) -> Any:
        try:
            return await getattr(self._handle.options(session_id=stream), method).remote(stream, *given)
        except Exception as error:  # Ray's own have no common class
            raise _told(error) from None

    async def follow(self, stream: str, method: str, *given: Any) -> AsyncGenerator[Any, None]:
        items = getattr(self._handle.options(session_id=stream, stream=True), method).remote(stream, *given)
        try:
            async for item in items:
                yield item
        except Exception as error:
            raise _told(error) from None
        finally:
            items.cancel()

    async def ask_all(self, method: str, *given: Any, timeout: float = 10.0) -> list[Any]:
        try:
            asked = self._handle.broadcast(method, *given)
            answers = await asked.results_async(timeout_s=timeout, return_exceptions=True)
        except Exception as error:
            told = _told(error)
            if isinstance(told, WorkerLostError):  # there is none, or one is late: then Ray tells no answer at all
                if isinstance(error, TimeoutError):
                    logger.warning(
                        "not all workers answered '%s' within %.0f s; it is taken as no answer", method, timeout
                    )
                return []
            raise told from None
        found = []
        for answer in answers:
            if not isinstance(answer, BaseException):
                found.append(answer)
            elif not isinstance(told := _told(answer), WorkerLostError):
                raise told from None
        return found


def actor_lives(name: str) -> bool:
    """Whether the process of a replica, by its actor's name, is there; Ray knows a tenth of a second after its end."""
    import ray

    with contextlib.suppress(ValueError):
        ray.get_actor(name, namespace="serve")
        return True
    return False


def own_name() -> str:
    """Of the replica in whose process this is called: its actor's name."""
    import ray

    name = ray.get_runtime_context().get_actor_name()
    assert name is not None, "no replica"
    return name


def _told(error: BaseException) -> BaseException:
    """An error of a handle as what it means: the worker's own, without Ray's traceback around it, or a lost worker."""
    cause = getattr(error, "cause", None)  # of Ray's RayTaskError: what the worker's method raised
    if isinstance(cause, Exception):
        return _told(cause)
    if isinstance(error, WorkerLostError):
        return error
    name = type(error).__name__
    if isinstance(error, asyncio.TimeoutError) or (
        type(error).__module__.startswith("ray.") and any(word in name for word in _LOST)
    ):
        return WorkerLostError(f"{name}: {error}")
    return error
