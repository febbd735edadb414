"""What a training step at full width launches: forward on fake CUDA tensors, and back on fake ones.

The backward pass of CUDA tensors asks a device for its events, which is not there: gradients are counted on fake
tensors of the CPU, with the operations that a GPU would take.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from arl2.attention.layer_memory import MemoryGeometry
from arl2.evaluation.account import Account, accounted
from arl2.kernels.backends import use_backends
from arl2.model.cost import clip_flops
from arl2.model.passes import TeacherForcing
from arl2.model.precision import parameter_dtype
from arl2.model.presets import preset_config
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.training.conversion.trainable import unfreeze
from gpu.fake_cuda import fake_cuda, needs_fake_cuda, needs_triton

FRAMES = 9
GEOMETRY = MemoryGeometry(1, 30, 52, 3)


@contextmanager
def student(device: str) -> Iterator[tuple[CausalWanTransformer3DModel, tuple[torch.Tensor, ...]]]:
    """Four layers of Wan 2.1 1.3B, three of them hybrid, as stage 2 trains them; a clip, its timesteps and a prompt."""
    config = preset_config("wan2.1-t2v-1.3b", hybrid_layers=[], window=12)
    with torch.device(device):
        changes = {"layer_plan": "HHSH", "state_rank": 16, "ffn_rank": 16}
        model = CausalWanTransformer3DModel(**{**config, **changes}).train()
        clip, timestep = torch.randn(1, 16, FRAMES, 60, 104), torch.full((1, FRAMES), 500.0)
        text = torch.empty(1, 512, 4096, dtype=torch.bfloat16)
    for name, parameter in list(model.named_parameters()):
        owner, _, last = name.rpartition(".")
        cast = nn.Parameter(parameter.detach().to(parameter_dtype(name, torch.bfloat16)), requires_grad=False)
        setattr(model.get_submodule(owner), last, cast)
    unfreeze(model, 2)
    yield model, (clip, timestep, text)


@needs_fake_cuda
@needs_triton
def test_the_forward_of_a_step_mixes_no_devices_and_waits_for_none():
    with fake_cuda(), use_backends(attention="sdpa"), student("cuda") as (model, (clip, timestep, text)):
        prompt = model.prompt_context(text)
        with accounted() as account:
            flow = model(clip, timestep, prompt, run=TeacherForcing(clip))
            (flow.float() - clip).square().mean()
        expected = clip_flops(model.config, GEOMETRY, frames=FRAMES).total
    assert account.waits == account.mixed == []
    assert account.transfers == []
    assert account.flops == pytest.approx(expected, rel=0.02)


def test_a_step_goes_back_through_everything_that_trains():
    account, expected, without = _whole_step()
    assert without == []
    # Gradients of the inputs of all layers but the frozen weights', and twice a forward of what trains.
    assert 2 <= account.flops / expected <= 3
    assert account.by_kernel["attention"].kernels > 0


def _whole_step() -> tuple[Account, int, list[str]]:
    """Forward, back, one step of AdamW."""
    with (
        FakeTensorMode(),
        use_backends(attention="sdpa", delta_rule="blockwise"),
        student("cpu") as (model, (clip, timestep, text)),
    ):
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        optimizer = torch.optim.AdamW(trained.values(), lr=1e-4)
        prompt = model.prompt_context(text)
        with accounted() as account:
            flow = model(clip, timestep, prompt, run=TeacherForcing(clip))
            (flow.float() - clip).square().mean().backward()
            optimizer.step()
        expected = clip_flops(model.config, GEOMETRY, frames=FRAMES).total
        return account, expected, [name for name, parameter in trained.items() if parameter.grad is None]
