"""Processes that torchrun started to generate videos together; the first one alone writes and prints."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from arl2.errors import ConfigError, ProcessLostError
from arl2.pipeline.options import ModelSource

if TYPE_CHECKING:
    from arl2.attention.sequence_parallel import SequenceParallel
    from arl2.serving.report import Stop

# A rank that is silent for so long is given up. Longer than the slowest rank takes to load a model that the fastest one
# has already loaded.
_PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """This process among those of a command."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within, every rank does its part; if one is refused all of them end, before they wait for it elsewhere."""
        if self.count == 1:
            yield
            return
        from arl2.attention.sequence_parallel import SequenceParallel

        refused = True
        try:
            yield
            refused = False
        finally:
            if SequenceParallel(self.rank, self.count).any(refused) and not refused:
                raise ProcessLostError("Another rank of this command has ended; its own message says why.")

    def on_own_gpu(self, source: ModelSource) -> ModelSource:
        """The model on the GPU of this process, where several are to be had."""
        if self.count == 1 or source.device not in ("auto", "cuda"):
            return source
        import torch

        if not torch.cuda.is_available():
            return source
        return replace(source, device=f"cuda:{self.local_rank}")


def _processes() -> int:
    """As torchrun says."""
    said = os.environ.get("WORLD_SIZE", "1")
    if not said.isdecimal() or int(said) < 1:
        raise ConfigError(f"WORLD_SIZE is {said!r:.40}; start the command with torchrun, which sets it.")
    return int(said)


def require_alone(command: str) -> None:
    """Raise ``ConfigError`` under torchrun for a command that runs in one process."""
    if _processes() > 1:
        raise ConfigError(
            f"arl2 {command} runs in one process. Several GPUs generate together with arl2 generate under torchrun, or "
            "in Python with ARL2Pipeline.enable_parallelism."
        )


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The group that ``torchrun`` started, or this process alone. Of the others, nothing but errors is heard.

    Raises:
        ConfigError: a torch without processes, or processes that were not started by torchrun.
        ProcessLostError: processes that do not find each other.
    """
    count = _processes()
    if count == 1:
        yield Ranks()
        return
    if "RANK" not in os.environ:
        raise ConfigError(f"WORLD_SIZE is {count}, but RANK is not set; start the command with torchrun.")
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise ConfigError("This torch is built without torch.distributed; run one process.")
    ranks = Ranks(int(os.environ["RANK"]), count, int(os.environ.get("LOCAL_RANK", "0")))
    with warnings.catch_warnings():
        if not ranks.is_first:
            logging.getLogger().setLevel(logging.ERROR)
            warnings.simplefilter("ignore")
        try:
            # Both: what is asked for on --device is not known yet.
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise ProcessLostError(
                f"The {count} processes of this command do not find each other ({str(error).splitlines()[0]}); start "
                "them with torchrun."
            ) from error
        try:
            yield ranks
        finally:
            dist.destroy_process_group()


class AgreedStop:
    """A wish to stop that all ranks see at the same place, whichever of them it came to.

    Args:
        stop: this rank's own.
        parallel: the ranks. All of them ask in the same order.
    """

    def __init__(self, stop: "Stop", parallel: "SequenceParallel") -> None:
        self._stop, self._parallel = stop, parallel

    @property
    def asked(self) -> bool:
        """Whether any rank was asked to stop."""
        return self._parallel.any(self._stop.asked)
