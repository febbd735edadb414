"""Tensors in shards over processes (DTensor), and whole again; tensors that are whole pass through untouched."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor in shards (all processes must ask); any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, target: Tensor) -> Tensor:
    """This process's part of a whole tensor that all have, laid out as ``target`` is; no communication."""
    if not isinstance(target, DTensor):
        return tensor.to(target.device)
    mesh = target.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, target.placements, src_data_rank=None)
