"""One parallel forward over a clip = streaming its blocks through memory, for every plan, window and grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.geometry import split_blocks
from arl2.model.passes import DiffusionForcing, TeacherForcing
from support import randn, relative, tiny_model


@torch.no_grad()
def streamed(model, written, read, timesteps, text, writing_timesteps, spans):
    """Each block is predicted from memory, then ``written`` at ``writing_timesteps`` is committed."""
    memory = model.allocate_memory(batch=read.shape[0], height=read.shape[3], width=read.shape[4])
    flows = []
    for span in spans:
        part = slice(span.start, span.stop)
        flows.append(model.predict(read[:, :, part], timesteps[:, part], text, memory))
        model.commit(written[:, :, part], writing_timesteps[:, part], text, memory)
    return torch.cat(flows, dim=2)


@settings(deadline=None, max_examples=40)
@given(
    plan=st.sampled_from(["S", "H", "SS", "HH", "HS", "SH", "HSH"]),
    size=st.integers(1, 3),
    blocks=st.integers(1, 5),
    first=st.one_of(st.none(), st.integers(1, 3)),
    spare=st.one_of(st.none(), st.integers(0, 4)),
    sink=st.integers(0, 2),
    sink_positions=st.sampled_from(["absolute", "relative"]),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    batch=st.integers(1, 2),
    seed=st.integers(0, 10**6),
)
def test_parallel_forwards_equal_streaming(
    plan, size, blocks, first, spare, sink, sink_positions, rows, columns, batch, seed
):
    first = None if first is None else min(first, size)
    window = None if spare is None else sink + size + spare
    sinks = {"sink": 0 if window is None else sink, "sink_positions": sink_positions}
    model = tiny_model(plan, seed=seed % 7, block_frames=size, window=window, **sinks)
    spans = split_blocks((first or size) + (blocks - 1) * size, size, first)
    shape = (batch, 3, spans[-1].stop, 2 * rows, 2 * columns)
    noisy, clean, text = randn(*shape, seed=seed), randn(*shape, seed=seed + 1), randn(batch, 5, 10, seed=seed + 2)
    level = 1000 * torch.rand(batch, blocks, generator=torch.Generator().manual_seed(seed))
    timesteps = torch.cat([level[:, [i]].expand(-1, len(span)) for i, span in enumerate(spans)], dim=1)

    with torch.no_grad():
        diffusion = model(noisy, timesteps, text, run=DiffusionForcing(first))
        teacher = model(noisy, timesteps, text, run=TeacherForcing(clean, first_block_frames=first))
    own = streamed(model, noisy, noisy, timesteps, text, timesteps, spans)
    forced = streamed(model, clean, noisy, timesteps, text, torch.zeros_like(timesteps), spans)
    assert relative(diffusion, own) < 1e-5
    assert relative(teacher, forced) < 1e-5


@pytest.mark.parametrize("plan", ["HSH", "SS"])
def test_the_order_of_blocks_matters_to_what_is_compared(plan):
    """The equivalence above is not empty: another past gives another prediction."""
    model = tiny_model(plan)
    clean, noisy, text = randn(1, 3, 6, 4, 6), randn(1, 3, 6, 4, 6, seed=1), randn(1, 5, 10, seed=2)
    timesteps = torch.full((1, 6), 500.0)
    with torch.no_grad():
        one = model(noisy, timesteps, text, run=TeacherForcing(clean))
        swapped = model(noisy, timesteps, text, run=TeacherForcing(clean[:, :, [2, 3, 0, 1, 4, 5]]))
    assert relative(swapped[:, :, 4:], one[:, :, 4:]) > 1e-3
    assert torch.equal(swapped[:, :, :2], one[:, :, :2])


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("HS").train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        noisy, clean = randn(1, 3, 4, 4, 6), randn(1, 3, 4, 4, 6, seed=1)
        flow = model(noisy, torch.full((1, 4), 300.0), randn(1, 5, 10), run=TeacherForcing(clean))
        flow.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name in gradients[0]:
        assert gradients[0][name] is not None, name
        assert torch.equal(gradients[0][name], gradients[1][name]), name
