"""Where a stream counts its frames from makes no difference, near or far."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.errors import MemoryMismatchError
from arl2.kernels.attention.naive import softmax_attention
from arl2.kernels.delta_rule.naive import gated_delta_state
from arl2.kernels.rope import rope_angles, turn_frames, turn_state
from support import randn, relative, tiny_model

HEAD, TOKENS, BLOCKS = 12, 6, 5


def double(*shape: int, seed: int) -> torch.Tensor:
    return randn(*shape, seed=seed, dtype=torch.float64)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), block=st.integers(1, 3), origin=st.integers(-1000, 1000))
def test_turning_the_state_once_a_block_is_moving_the_origin(seed, block, origin):
    """Keys of the current block stand at 0 .. block for ever, and the state turns back by one block instead."""
    fixed = turning = torch.zeros(2, 3, HEAD, HEAD, dtype=torch.float64)
    for i in range(BLOCKS):
        shape = (2, block * TOKENS, 3)
        k, v = (double(*shape, HEAD, seed=seed + 7 * i + j) for j in (0, 1))
        k = torch.nn.functional.normalize(k, dim=-1)
        g, beta = -double(*shape, seed=seed + 7 * i + 2).abs(), 2 * double(*shape, seed=seed + 7 * i + 3).sigmoid()
        standing = list(range(block))
        absolute = [origin + i * block + frame for frame in standing]
        reads = [turn_state(turning, origin + i * block), fixed]
        assert relative(*reads) < 1e-13 or i == 0
        fixed = gated_delta_state(k=turn_frames(k, absolute), v=v, g=g, beta=beta, initial_state=fixed)
        turning = gated_delta_state(k=turn_frames(k, standing), v=v, g=g, beta=beta, initial_state=turning)
        turning = turn_state(turning, -block)
    q = double(2, TOKENS, 3, HEAD, seed=seed)
    here = torch.einsum("bthk,bhkv->bthv", turn_frames(q, [origin + BLOCKS * block]), fixed)
    there = torch.einsum("bthk,bhkv->bthv", q, turning)
    assert relative(there, here) < 1e-13


@given(shift=st.integers(-1_000_000, 1_000_000))
@settings(deadline=None, max_examples=20)
def test_a_common_shift_of_keys_and_queries_changes_nothing(shift):
    q, k, v = (double(1, TOKENS, 2, HEAD, seed=seed) for seed in range(3))
    straight = softmax_attention(q=q, k=k, v=v)
    # An angle of a million frames is exact to 1e-10.
    assert relative(softmax_attention(q=turn_frames(q, [shift]), k=turn_frames(k, [shift]), v=v), straight) < 1e-9


def test_turning_is_a_group():
    x = double(2, TOKENS, 2, HEAD, seed=0)
    assert torch.equal(turn_frames(x, [0]), x)
    assert relative(turn_frames(turn_frames(x, [1, 2, 3]), [4]), turn_frames(x, [5, 6, 7])) < 1e-14
    half = randn(1, TOKENS, 1, HEAD).bfloat16()
    assert torch.equal(turn_frames(half, [0]), half)
    state = double(1, 2, HEAD, HEAD, seed=1)
    assert relative(turn_state(turn_state(state, 9), -9), state) < 1e-14


def test_angles_are_float64_and_exact_where_float32_is_not():
    near, far = (rope_angles([frame], 1, 1, HEAD)[0, 0] for frame in (0, 123_456_789))
    assert far.dtype == torch.float64
    assert (far - near).item() == 123_456_789
    assert float(torch.tensor(123_456_789.0)) != 123_456_789


@torch.no_grad()
def run(model, memory, blocks, first=None):
    text, flows = model.prompt_context(randn(1, 5, 10)), []
    for i in blocks:
        size = first if first and i == 0 else 2
        x = randn(1, 3, size, 4, 6, seed=i)
        flows.append(model.predict(x, torch.full((1, size), 700.0), text, memory))
        model.commit(x, torch.zeros(1, size), text, memory)
    return flows


CONFIGS = [
    ("SS", {"window": 5}),
    ("SS", {"window": 5, "sink": 1}),
    ("SS", {"window": 6, "sink": 2, "sink_positions": "relative"}),
    ("S", {"window": None}),
    ("HSH", {"window": 4}),
]


@pytest.mark.parametrize(("plan", "window"), CONFIGS)
def test_a_stream_from_frame_a_million_equals_one_from_the_beginning(plan, window):
    start = 1_000_000
    model = tiny_model(plan, **window)
    near, far = (model.allocate_memory(batch=1, height=4, width=6) for _ in range(2))
    far.begin_at(start)
    for a, b in zip(run(model, near, range(6), first=1), run(model, far, range(6), first=1), strict=True):
        assert relative(b, a) < 3e-6
    assert far.frames == start + near.frames == start + 11


@pytest.mark.parametrize(("plan", "window"), CONFIGS)
def test_a_stream_goes_on_alike_from_another_origin(plan, window):
    model = tiny_model(plan, **window)
    memory = model.allocate_memory(batch=1, height=4, width=6)
    run(model, memory, range(5))
    moved = memory.clone()
    moved.move_origin(7)
    assert moved.frames == 3
    moved.move_origin(-1000)
    moved.move_origin(1000)
    for a, b in zip(run(model, memory, range(5, 8)), run(model, moved, range(5, 8)), strict=True):
        assert relative(b, a) < 1e-5
    fresh = model.allocate_memory(batch=1, height=4, width=6)
    fresh.restore(moved.tensors(), moved.facts())
    assert fresh.fingerprint() == moved.fingerprint()


def test_the_next_block_stays_at_frame_0_or_after():
    memory = tiny_model("H").allocate_memory(batch=1, height=4, width=6)
    with pytest.raises(MemoryMismatchError, match="next block is at frame 0; 1 is too far"):
        memory.move_origin(1)
