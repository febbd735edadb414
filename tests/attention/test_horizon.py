"""States with a horizon: what is read is a state of the latest blocks alone, in streams, clips, copies and files."""

import copy

import pytest
import torch
from tests.pipeline.stand_in import stand_in_pipeline

from arl2.attention.horizon import check_horizon, is_renewed
from arl2.attention.layer_memory import MemoryGeometry
from arl2.checkpoints.conversion import convert
from arl2.checkpoints.export import export_checkpoint
from arl2.checkpoints.load import load_transformer
from arl2.errors import CheckpointError, ConfigError, MemoryMismatchError
from arl2.model.cost import memory_bytes, pass_flops
from arl2.model.graphed import GraphedRunner
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.model.runner import PassRunner
from arl2.pipeline.pipeline import ARL2Pipeline
from model.reruns import Reruns
from rollout.streams import PROMPT, SMALL, latents_of, take
from support import randn, relative, tiny_model

BLOCK = 2
TEXT = randn(1, 5, 10)


def model_of(plan: str, horizon: int | None, **changes):
    return tiny_model(plan, **{"window": 4, "state_rank": 2, "ffn_rank": 2, "state_horizon": horizon, **changes})


def a_block(number: int, frames: int = BLOCK):
    return randn(1, 3, frames, 4, 6, seed=number), torch.full((1, frames), 300.0), TEXT


def state_of(memory) -> torch.Tensor:
    return memory.layers[0].read()


@torch.no_grad()
@pytest.mark.parametrize("kind", "HWKGV")
@pytest.mark.parametrize("horizon", [4, 8, 12])
def test_what_is_read_is_a_state_that_only_knows_the_latest_blocks(kind, horizon):
    """Of one layer, whose input is the block alone: a state that began with its oldest block is the same."""
    model, plain = model_of(kind, horizon), model_of(kind, None)
    memory = model.allocate_memory(batch=1, height=4, width=6)
    half = horizon // 2 // BLOCK
    for blocks in range(1, 11):
        model.commit(*a_block(blocks - 1), memory)
        first = max(0, (blocks // half - 1) * half)
        assert half <= blocks - first < 2 * half or blocks < half
        other = plain.allocate_memory(batch=1, height=4, width=6)
        other.begin_at(first * BLOCK)
        for number in range(first, blocks):
            plain.commit(*a_block(number), other)
        assert torch.equal(state_of(memory), state_of(other)), blocks


@torch.no_grad()
@pytest.mark.parametrize("is_recorded", [False, True])
@pytest.mark.parametrize("kind", "HW")
def test_a_window_that_is_committed_again_renews_no_state_a_second_time(kind, is_recorded):
    """As when a prompt is refreshed: states take the window's latents in once more, and keep what is older."""
    model, plain = model_of(kind, 8), model_of(kind, None)
    if is_recorded:
        model.runner = GraphedRunner(PassRunner(), Reruns())
    memory, other = (one.allocate_memory(batch=1, height=4, width=6) for one in (model, plain))
    for number in range(5):
        model.commit(*a_block(number), memory)  # at frame 8 states were renewed
    state = state_of(memory).clone()
    memory.begin_at(6)
    other.begin_at(6)
    other.layers[0].write(state)
    for number in (3, 4):
        memory.take_back_states(5 - number, begun=number > 3)
        model.commit(*a_block(number), memory)
        plain.commit(*a_block(number), other)
        assert torch.equal(state_of(memory), state_of(other))
    model.commit(*a_block(5), memory)  # at frame 12 they are again
    plain.commit(*a_block(5), other)
    assert not torch.equal(state_of(memory), state_of(other))


@pytest.mark.parametrize(("plan", "first"), [("W", None), ("H", None), ("WHSV", None), ("KGH", 1)])
@pytest.mark.parametrize("horizon", [4, 8])
def test_streaming_equals_the_parallel_pass(plan, first, horizon):
    model = model_of(plan, horizon)
    frames = 13 if first else 14
    clean, noisy, timestep = (
        randn(1, 3, frames, 4, 6),
        randn(1, 3, frames, 4, 6, seed=1),
        torch.full((1, frames), 700.0),
    )
    for run, written, writes in (
        (TeacherForcing(clean, first_block_frames=first), clean, 0 * timestep),
        (DiffusionForcing(first), noisy, timestep),
    ):
        memory, flows, start = model.allocate_memory(batch=1, height=4, width=6), [], 0
        with torch.no_grad():
            while start < frames:
                part = slice(start, start + (first if first and not start else BLOCK))
                flows.append(model.predict(noisy[:, :, part], timestep[:, part], TEXT, memory))
                model.commit(written[:, :, part], writes[:, part], TEXT, memory)
                start = part.stop
            parallel = model(noisy, timestep, TEXT, run=run)
        assert relative(parallel, torch.cat(flows, dim=2)) < 1e-5


def test_gradients_reach_back_to_the_horizon_and_no_further():
    model = model_of("H", 4)
    clean = randn(1, 3, 12, 4, 6).requires_grad_(True)
    noisy, timestep = randn(1, 3, 12, 4, 6, seed=1), torch.full((1, 12), 700.0)
    flow = model(noisy, timestep, TEXT, run=TeacherForcing(clean))
    flow[:, :, -BLOCK:].square().mean().backward()
    assert clean.grad is not None
    reached = clean.grad.abs().amax((0, 1, 3, 4)).unflatten(0, (-1, BLOCK)).amax(1) > 0
    assert reached.tolist() == [False, False, False, False, True, False]


@torch.no_grad()
def test_a_stream_from_a_far_frame_is_the_same():
    """States are renewed at positions: counted from a whole half elsewhere, they are renewed at the same blocks."""
    model = model_of("WH", 8)
    near, far = (model.allocate_memory(batch=1, height=4, width=6) for _ in range(2))
    far.begin_at(8_000)
    for number in range(9):
        flows = [model.predict(*a_block(number), memory) for memory in (near, far)]
        assert relative(*flows) < 1e-5
        for memory in (near, far):
            model.commit(*a_block(number), memory)
        if number == 5:
            far.move_origin(4_000)


def test_a_stream_is_saved_resumed_forked_and_rewound(tmp_path):
    parts = stand_in_pipeline("SS", SMALL)
    transformer = tiny_model("WH", block_frames=3, window=6, text_len=parts.text.length, state_horizon=12)
    with torch.no_grad():
        transformer.head.proj.weight.mul_(0.3)
    pipe = ARL2Pipeline(transformer, parts.codec, parts.text, SMALL)
    expected = take(pipe.stream(PROMPT, seed=3, window=6), 9)
    stream = pipe.stream(PROMPT, seed=3, window=6, rewind_kind="exact")
    take(stream, 5)
    stream.save(tmp_path / "exact")
    for same in (pipe.resume(tmp_path / "exact"), stream, stream.fork()):
        assert torch.equal(latents_of(take(same, 4)), latents_of(expected[5:]))
    stream.rewind(4)
    assert torch.equal(latents_of(take(stream, 4)), latents_of(expected[5:]))
    unlimited = tiny_model("WH", block_frames=3, window=6, text_len=parts.text.length)
    unlimited.load_state_dict(transformer.state_dict())
    other = latents_of(
        take(ARL2Pipeline(unlimited, parts.codec, parts.text, SMALL).stream(PROMPT, seed=3, window=6), 9)
    )
    assert torch.equal(other[:, :, :12], latents_of(expected)[:, :, :12])
    assert not torch.equal(other[:, :, 12:], latents_of(expected)[:, :, 12:])


@torch.no_grad()
def test_passes_are_recorded_once_and_replayed():
    model = model_of("WHS", 8)
    plain, reruns = copy.deepcopy(model), Reruns()
    model.runner = GraphedRunner(PassRunner(), reruns)
    both = [(one, one.allocate_memory(batch=1, height=4, width=6)) for one in (model, plain)]
    for i in range(12):
        assert torch.equal(*(one.predict(*a_block(i), memory) for one, memory in both))
        for one, memory in both:
            one.commit(*a_block(i), memory)
        assert both[0][1].fingerprint() == both[1][1].fingerprint()
    assert (reruns.recorded, reruns.replayed >= 8) == (2, True)


def test_bytes_and_operations_are_those_of_two_states():
    with_horizon, without = model_of("WH", 8), model_of("WH", None)
    memory = with_horizon.allocate_memory(batch=1, height=16, width=16)
    counted = [
        memory_bytes(model.config, batch=1, frame_tokens=64, element_size=4) for model in (with_horizon, without)
    ]
    assert memory.nbytes == counted[0].at(4)
    assert counted[0].states == 2 * counted[1].states
    geometry = MemoryGeometry(batch=1, rows=8, columns=8, block_frames=BLOCK)
    updates = [
        pass_flops(model.config, geometry, past_frames=2, commit=True).state_update for model in (with_horizon, without)
    ]
    assert updates[0] == 2 * updates[1] > 0


@pytest.mark.parametrize("horizon", [0, 2, 6, -4, 4.0, True, "8"])
def test_what_is_no_horizon_is_refused(horizon):
    with pytest.raises(ConfigError, match="must be a multiple of two blocks, 4 latent frames"):
        check_horizon(horizon, BLOCK)
    if type(horizon) is int:
        with pytest.raises(ConfigError, match=f"state_horizon is {horizon}"):
            model_of("H", horizon)


def test_a_state_over_evicted_blocks_has_no_horizon():
    with pytest.raises(ConfigError, match="lags behind its window"):
        model_of("W", 4, state_form={"over": "evicted"})


def test_a_model_is_converted_with_it_saved_and_loaded_but_not_published(tmp_path):
    made = convert(tiny_model("SS", window=4), "HS", state_horizon=8).model
    made.save_pretrained(tmp_path / "model")
    assert load_transformer(tmp_path / "model").config.state_horizon == 8
    with pytest.raises(CheckpointError, match="cannot say that states reach back 8 latent frames"):
        export_checkpoint(made, tmp_path / "model.pt")
    others = convert(tiny_model("SS", window=4), "HS").model
    with pytest.raises(MemoryMismatchError, match="belongs to a model"):
        others.predict(*a_block(0), made.allocate_memory(batch=1, height=4, width=6))


def test_renewals_are_at_every_half():
    assert [frame for frame in range(30) if is_renewed(frame, frame + 1, 12)] == [5, 11, 17, 23, 29]
    assert not any(is_renewed(frame, frame + 1, None) for frame in range(30))
