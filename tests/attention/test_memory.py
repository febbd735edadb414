"""Memory: what is kept, what is refused, what it costs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.attention.memory import KeyValueCache, MemoryGeometry, RecurrentState
from arl2.errors import MemoryMismatchError
from arl2.model.precision import cast_model
from support import randn, tiny_model


def cache_of(block: int, window: int | None, sink: int, tokens: int = 2) -> KeyValueCache:
    geometry = MemoryGeometry(batch=1, rows=1, columns=tokens, block_frames=block)
    return KeyValueCache(
        geometry, 1, 1, window=window, sink=sink, sink_positions="absolute", dtype=torch.float32, device="cpu"
    )


def frames(first: int, count: int, tokens: int = 2) -> torch.Tensor:
    """Keys in which every token of frame ``f`` holds the number ``f``."""
    return torch.arange(first, first + count).repeat_interleave(tokens).float().view(1, -1, 1, 1)


def keep(cache: KeyValueCache, keys: torch.Tensor) -> None:
    """As a cache-update pass does."""
    count = keys.shape[1] // cache.geometry.frame_tokens
    cache.prepare(count)
    cache.write(keys, keys)
    cache.advance(count)


def held(keys: torch.Tensor, tokens: int = 2) -> list[int]:
    return sorted(int(x) for x in keys.flatten()[::tokens])


@settings(deadline=None, max_examples=80)
@given(
    block=st.integers(1, 3),
    first=st.integers(1, 3),
    spare=st.one_of(st.none(), st.integers(0, 5)),
    sink=st.integers(0, 4),
    blocks=st.integers(1, 9),
)
def test_holds_the_sinks_and_the_latest_frames(block, first, spare, sink, blocks):
    window = None if spare is None else sink + block + spare
    cache = cache_of(block, window, 0 if window is None else sink)
    frame = 0
    for i in range(blocks):
        size = min(first, block) if i == 0 else block
        current = frames(frame, size)
        cache.prepare(size)
        seen, _ = cache.with_block(current, current)
        oldest = 0 if window is None else frame - spare
        expected = [f for f in range(frame) if f >= oldest or f < sink] + list(range(frame, frame + size))
        assert held(seen) == expected
        cache.advance(size)
        frame += size
    if window is not None:
        assert cache.nbytes == 2 * 4 * window * 2  # keys and values, float32, two tokens a frame: all it ever takes


def test_looking_does_not_write():
    cache = cache_of(2, 5, 1)
    for i in range(4):
        keep(cache, frames(2 * i, 2))
        before = [x.clone() for x in cache.held().values()]
        cache.prepare(2)
        cache.with_block(frames(100, 2), frames(100, 2))
        assert all(torch.equal(a, b) for a, b in zip(before, cache.held().values(), strict=True))


def test_a_window_too_small_for_sinks_and_block_is_refused():
    with pytest.raises(MemoryMismatchError, match="use at least 5"):
        cache_of(3, 4, 2)


@torch.no_grad()
def test_a_window_is_allocated_once():
    cache = cache_of(2, 7, 1)
    where = set()
    for i in range(30):
        cache.prepare(2)
        seen = cache.with_block(frames(2 * i, 2), frames(2 * i, 2))
        where.add(tuple(x.data_ptr() for x in seen))
        keep(cache, frames(2 * i, 2))
    assert len(where) == 1


@settings(deadline=None, max_examples=60)
@given(
    block=st.integers(1, 3),
    spare=st.one_of(st.none(), st.integers(0, 5)),
    sink=st.integers(0, 4),
    before=st.integers(0, 6),
    back=st.integers(0, 8),
    after=st.integers(1, 6),
    keep_sinks=st.booleans(),
)
def test_only_what_was_written_since_is_seen(block, spare, sink, before, back, after, keep_sinks):
    """Frames before the new beginning are kept as sinks or not at all; the window fills anew."""
    window = None if spare is None else sink + block + spare
    cache = cache_of(block, window, sink)
    for i in range(before):
        keep(cache, frames(block * i, block))
    start = max(0, block * before - back)
    cache.begin_at(start, keep_sinks=keep_sinks)
    kept = [f for f in range(min(sink, block * before)) if keep_sinks and f < start]
    for i in range(after):
        frame = start + block * i
        written = list(range(start, frame))
        cache.prepare(block)
        seen, _ = cache.with_block(frames(frame, block), frames(frame, block))
        sinks = (kept + written)[:sink]
        latest = [f for f in written if f not in sinks]
        expected = [*sinks, *(latest if spare is None else latest[max(0, len(latest) - spare) :])]
        assert held(seen) == sorted(expected) + list(range(frame, frame + block))
        keep(cache, frames(frame, block))


def test_gradients_flow_to_the_current_block_through_a_cache():
    cache = cache_of(1, None, 0)
    keep(cache, frames(0, 1))
    cache.prepare(1)
    k = frames(1, 1).requires_grad_()
    seen, _ = cache.with_block(k, k)
    seen.sum().backward()
    assert torch.equal(k.grad, torch.ones_like(k))


def test_the_state_is_constant_and_stays_where_it_is():
    model = tiny_model("HH")
    memory = model.allocate_memory(batch=1, height=4, width=6)
    text, size, where = randn(1, 5, 10), memory.nbytes, [m.state.data_ptr() for m in memory.layers]
    assert size == 2 * 1 * 2 * 12 * 12 * 4  # layers, batch, heads, D, D, float32
    for i in range(5):
        model.commit(randn(1, 3, 2, 4, 6, seed=i), torch.zeros(1, 2), text, memory)
        assert memory.nbytes == size
        assert [m.state.data_ptr() for m in memory.layers] == where
        assert all(m.state.dtype == torch.float32 for m in memory.layers if isinstance(m, RecurrentState))


@pytest.mark.parametrize(("plan", "window"), [("HS", 5), ("SH", None)])
def test_a_clone_lives_its_own_life(plan, window):
    model = tiny_model(plan, window=window)
    memory = model.allocate_memory(batch=1, height=4, width=6)
    text = randn(1, 5, 10)

    def commit(into, seed):
        model.commit(randn(1, 3, 2, 4, 6, seed=seed), torch.zeros(1, 2), text, into)

    commit(memory, 0)
    fork = memory.clone()
    before = fork.fingerprint()
    assert before == memory.fingerprint()
    for seed in (1, 2, 3):
        commit(memory, seed)
    assert fork.fingerprint() == before != memory.fingerprint()
    for seed in (1, 2, 3):
        commit(fork, seed)
    assert fork.fingerprint() == memory.fingerprint()


def pass_with(model, memory, *, batch=1, frames=2, height=4, width=6, commit=False):
    latents = randn(batch, 3, frames, height, width)
    run = model.commit if commit else model.predict
    return run(latents, torch.zeros(batch, frames), randn(batch, 5, 10), memory)


def test_memory_that_does_not_fit_is_refused():
    model = tiny_model("HS")
    memory = model.allocate_memory(batch=1, height=4, width=6)
    with pytest.raises(MemoryMismatchError, match=r"plan HS.*not of .*plan SS.*allocate_memory"):
        pass_with(tiny_model("SS"), memory)
    with pytest.raises(MemoryMismatchError, match=r"batch of 1 and frames of 2 x 3 tokens.*have 2 and 2 x 3"):
        pass_with(model, memory, batch=2)
    with pytest.raises(MemoryMismatchError, match="have 1 and 3 x 3"):
        pass_with(model, memory, height=6)
    with pytest.raises(MemoryMismatchError, match="takes blocks of 2 frames"):
        pass_with(model, memory, frames=3)
    pass_with(model, memory, commit=True)
    with pytest.raises(MemoryMismatchError, match=r"this one has 1 at frame 2"):
        pass_with(model, memory, frames=1)
    memory.begin_at(2)
    pass_with(model, memory, frames=1)  # a stream's first block again
    for frame in (-1, 2**53):
        with pytest.raises(MemoryMismatchError, match="whole frame number"):
            memory.begin_at(frame)


@pytest.mark.parametrize("plan", ["H", "HS", "S"])
def test_gradients_of_a_read_survive_what_memory_does_next(plan):
    """Self-forcing: a block is predicted with gradients, committed without, and the loss comes last."""
    model = tiny_model(plan)
    memory = model.allocate_memory(batch=1, height=4, width=6)
    with torch.no_grad():
        pass_with(model, memory, commit=True)
    flow = pass_with(model, memory)
    again = pass_with(model, memory)
    with torch.no_grad():
        pass_with(model, memory, commit=True)
    (flow.square().mean() + again.square().mean()).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if ".to_q." in name)


def test_memory_of_another_dtype_or_rank_or_none_is_refused():
    model = tiny_model("HS")
    memory = model.allocate_memory(batch=1, height=4, width=6)
    with pytest.raises(MemoryMismatchError, match=r"torch\.float32 on cpu, not of"):
        pass_with(cast_model(tiny_model("HS"), torch.bfloat16), memory)
    with pytest.raises(MemoryMismatchError, match="ranks 2 and 2"):
        pass_with(tiny_model("HS", state_rank=1), memory)


def test_a_clean_pass_that_broke_off_is_noticed():
    model = tiny_model("HS")
    memory = model.allocate_memory(batch=1, height=4, width=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.layers[1].self_attention.shared.to_v, "forward", None)
        with pytest.raises(TypeError):
            pass_with(model, memory, commit=True)
    with pytest.raises(MemoryMismatchError, match="broke off half-way"):
        pass_with(model, memory)
