"""Weights in shards, one on each process (FSDP2), and whole again for what one process does alone.

Each transformer layer is gathered when it is run and let go after it; the rest of a model is gathered for a whole pass.
Teacher and student do not share tensors then: a student owns shards of its own, which costs a model's size over the
number of processes, and leaves each of them a plain FSDP model.

Passes of sharded models wait for all processes, so all must run the same passes in the same order. What one process
does alone (a rollout of its own batch, evaluation, pictures) runs on whole copies, for which all gather once.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from arl2.model.layer import TransformerLayer
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.training.conversion.students import Teacher, assembled
from arl2.training.conversion.trainable import trained_parameters
from arl2.training.engine.processes import full_tensor
from arl2.training.engine.task import Sharding


def loading_device(sharding: Sharding, device: torch.device) -> torch.device:
    """Where weights are put before they are cut: a model that needs shards may not fit on one device."""
    several = dist.is_initialized() and dist.get_world_size() > 1
    return torch.device("cpu") if sharding == "full" and several else device


def shard_model(
    model: CausalWanTransformer3DModel, mesh: DeviceMesh, *, attention_alone: bool = False
) -> dict[str, nn.Parameter]:
    """Cut all weights into shards, in place; the parameters that train are given back by name: they are new objects.

    Args:
        model: on every process the same; it ends up on the mesh's device.
        mesh: all processes.
        attention_alone: self-attention is called outside its layer (stage 1), so it is gathered on its own.
    """
    for layer in model.layers:
        assert isinstance(layer, TransformerLayer)
        part = layer.self_attention if attention_alone else layer.cross_attention
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
        if not attention_alone:
            # A prompt's keys and values are made outside the layer, and gathering hangs on forward unless told.
            register_fsdp_forward_method(part, "remember")
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    # Layers return views of fresh tensors; nobody changes them in place, which is what FSDP warns of.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@contextmanager
def whole_models(
    teacher: Teacher, student: CausalWanTransformer3DModel, *, here: bool
) -> Iterator[tuple[Teacher, CausalWanTransformer3DModel]]:
    """Whole copies of sharded models, as they are used; all processes enter, those with ``here`` get the copies.

    The copies share their frozen weights, so the two take the memory of one; others get the sharded models back.
    """
    frozen = _gathered(teacher.model.named_parameters(), keep=here)
    trained = _gathered(trained_parameters(student, 2).items(), keep=here)
    if not here:
        yield teacher, student
        return
    own_teacher = replace(teacher, model=assembled(teacher.model.config, frozen, {}))
    yield own_teacher, assembled(student.config, frozen, trained)


@torch.no_grad()
def _gathered(named: Iterable[tuple[str, nn.Parameter]], *, keep: bool) -> dict[str, Tensor]:
    held = {}
    for name, parameter in named:
        full = full_tensor(parameter.detach())
        if keep:
            held[name] = full
    return held
