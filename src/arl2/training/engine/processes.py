"""One process or several (``torchrun``): reductions over them, and sharded tensors."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from arl2.errors import ProcessLostError


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; alone, every method does nothing."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up gradients over processes; a parameter without gradient counts as zero."""
        if self.count == 1:
            return
        held = list(parameters)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in held])
        with _all_alive():
            dist.all_reduce(flat)
        for parameter, gradient in zip(held, flat.split([p.numel() for p in held]), strict=True):
            parameter.grad = gradient.view_as(parameter).clone()

    def sum_tensor(self, tensor: Tensor) -> None:
        """Add it up over processes, in place."""
        if self.count > 1:
            with _all_alive():
                dist.all_reduce(tensor)

    def sum(self, *values: float) -> list[float]:
        """Each value's sum over processes."""
        return self._reduced(values, dist.ReduceOp.SUM if self.count > 1 else None)

    def largest(self, *values: float) -> list[float]:
        """Each value's maximum over processes."""
        return self._reduced(values, dist.ReduceOp.MAX if self.count > 1 else None)

    def any(self, here: bool) -> bool:
        """Whether it is so on at least one process."""
        return self.largest(float(here))[0] > 0

    def mesh(self, device: torch.device) -> DeviceMesh:
        """All processes in a row, as shards of weights are laid out on them; all processes ask together."""
        return init_device_mesh(device.type, (self.count,))

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.count > 1:
            with _all_alive():
                dist.barrier()

    def _reduced(self, values: tuple[float, ...], operation: "dist.ReduceOp.RedOpType | None") -> list[float]:
        if operation is None:
            return list(values)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        held = torch.tensor(values, dtype=torch.float64, device=device)
        with _all_alive():
            dist.all_reduce(held, operation)
            return held.tolist()


@contextmanager
def _all_alive() -> Iterator[None]:
    """Turn the transport's error when a partner has gone into a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            "Another process of this run has ended, so this one ends too: look at the first message of the others for "
            "the cause, then start the run again; it resumes from its last checkpoint. "
            f"({str(error).strip().splitlines()[0]})"
        ) from error


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """The group that ``torchrun`` started (nccl with GPUs, gloo without), or this process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor (DTensor) gathered, on all processes together; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, target: Tensor) -> Tensor:
    """This process's shard of a full tensor that all have, laid out as ``target`` is; no communication."""
    if not isinstance(target, DTensor):
        return tensor.to(target.device)
    mesh = target.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, target.placements, src_data_rank=None)
