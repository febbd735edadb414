"""Sinks that stay at their frames and sinks that move with the window."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.attention import key_value_cache
from arl2.attention.memory import KeyValueCache, MemoryGeometry
from arl2.errors import ConfigError
from arl2.kernels.rope import Rotation, rope_angles, turn_frames
from arl2.model.passes import DiffusionForcing
from arl2.model.precision import cast_model
from arl2.model.transformer import CausalWanTransformer3DModel
from support import ROUNDING, randn, relative, tiny_model

ROWS, COLUMNS, HEAD = 2, 3, 12
TOKENS = ROWS * COLUMNS


def rotated(frames: list[int], standing_at: list[int], batch: int) -> torch.Tensor:
    """Keys that depend on the frame, rotated as if it stood elsewhere."""
    raw = torch.cat([randn(batch, TOKENS, 1, HEAD, seed=frame) for frame in frames], dim=1)
    return Rotation(rope_angles(standing_at, ROWS, COLUMNS, HEAD))(raw)


@settings(deadline=None, max_examples=60)
@given(
    block=st.integers(1, 3),
    first=st.integers(1, 3),
    spare=st.integers(0, 4),
    sink=st.integers(1, 4),
    blocks=st.integers(1, 7),
    start=st.sampled_from([0, 5, 1_000_000]),
    batch=st.integers(1, 2),
)
def test_sinks_stand_right_before_the_window(block, first, spare, sink, blocks, start, batch):
    window = sink + block + spare
    geometry = MemoryGeometry(batch, ROWS, COLUMNS, block)
    sinks = {"window": window, "sink": sink, "sink_positions": "relative"}
    cache = KeyValueCache(geometry, 1, HEAD, **sinks, dtype=torch.float32, device="cpu")
    cache.begin_at(start, keep_sinks=False)
    frame, first_keys = start, torch.empty(batch, 0, 1, HEAD)
    for i in range(blocks):
        own = list(range(frame, frame + (min(first, block) if i == 0 else block)))
        k = rotated(own, own, batch)
        cache.prepare(len(own))
        seen, _ = cache.with_block(k, k)
        sinks_held = [f for f in range(start, frame) if f < start + sink]
        oldest = max(start + len(sinks_held), own[-1] + 1 - (window - sink)) if i else frame
        places = list(range(oldest - len(sinks_held), oldest))
        ours = seen[:, : len(sinks_held) * TOKENS]
        if sinks_held:
            torch.testing.assert_close(ours, rotated(sinks_held, places, batch), rtol=1e-5, atol=1e-6)
            assert own[-1] - places[0] < window
        if own[-1] < start + window:
            assert places == sinks_held
            assert torch.equal(ours, first_keys)  # as they were written
        cache.advance(len(own))
        first_keys = torch.cat([first_keys, k], dim=1)[:, : sink * TOKENS]
        frame = own[-1] + 1


@torch.no_grad()
def flows_of(model, blocks, *, reads=1, **sinks):
    memory = model.allocate_memory(batch=1, height=4, width=6, **sinks)
    text, flows = model.prompt_context(randn(1, 5, 10)), []
    for i in range(blocks):
        x = randn(1, 3, 2, 4, 6, seed=i)
        for _ in range(reads):
            flow = model.predict(x, torch.full((1, 2), 700.0), text, memory)
        flows.append(flow)
        model.commit(x, torch.zeros(1, 2), text, memory)
    return flows


@pytest.mark.parametrize("plan", ["S", "SHS"])
def test_the_two_are_the_same_until_the_window_slides(plan):
    model = tiny_model(plan, window=7, sink=2)
    absolute, moved = flows_of(model, 6), flows_of(model, 6, sink_positions="relative")
    same = [relative(b, a) < ROUNDING[torch.float32] for a, b in zip(absolute, moved, strict=True)]
    assert same == [True, True, True, False, False, False]  # frames 0-1, 2-3, 4-5 | 6-7 is the 8th
    assert relative(moved[-1], absolute[-1]) > 1e-3


def test_sinks_turn_once_a_block_not_once_a_pass(monkeypatch):
    turns = []

    def counted(x, frames):
        turns.append(frames)
        return turn_frames(x, frames)

    monkeypatch.setattr(key_value_cache, "turn_frames", counted)
    model = tiny_model("SHS", window=5, sink=2, sink_positions="relative")
    once = flows_of(model, 5)
    a_block_and_layer = len(turns)
    assert a_block_and_layer == 5 * 2
    often = flows_of(model, 5, reads=6)
    assert len(turns) == 2 * a_block_and_layer
    assert all(torch.equal(a, b) for a, b in zip(once, often, strict=True))


# A move that is off by one frame shows as 7e-3.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-3)])
def test_trains_as_it_streams_while_the_window_slides(dtype, limit):
    """Both paths turn sinks as they were rounded at their own frames: what differs is the order of sums."""
    model = cast_model(tiny_model("S", window=4, sink=1, sink_positions="relative"), dtype)
    x, timestep, text = randn(1, 3, 8, 4, 6).to(dtype), torch.full((1, 8), 300.0), randn(1, 5, 10)
    memory = model.allocate_memory(batch=1, height=4, width=6)
    with torch.no_grad():
        parallel = model(x, timestep, text, run=DiffusionForcing())
        flows = []
        for i in range(0, 8, 2):
            part = x[:, :, i : i + 2]
            flows.append(model.predict(part, timestep[:, :2], text, memory))
            model.commit(part, timestep[:, :2], text, memory)
    assert relative(torch.cat(flows, dim=2), parallel) < limit


def test_gradients_reach_the_sinks():
    model = tiny_model("S", window=3, sink=1, sink_positions="relative", block_frames=1)
    x = randn(1, 3, 6, 4, 6).requires_grad_()
    model(x, torch.full((1, 6), 300.0), randn(1, 5, 10), run=DiffusionForcing())[:, :, 5].sum().backward()
    reached = x.grad.abs().amax(dim=(0, 1, 3, 4)) > 0
    assert reached.tolist() == [True, False, False, False, True, True]


def test_saved_with_the_model_and_absolute_in_old_configs(tmp_path):
    model = tiny_model("S", window=4, sink=1, sink_positions="relative")
    model.save_pretrained(tmp_path)
    again = CausalWanTransformer3DModel.from_pretrained(tmp_path)
    assert again.config.sink_positions == "relative"
    assert again.allocate_memory(batch=1, height=4, width=6).facts()["layers"][0]["sink_positions"] == "relative"
    config = json.loads((tmp_path / "config.json").read_text())
    del config["sink_positions"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert CausalWanTransformer3DModel.from_pretrained(tmp_path).config.sink_positions == "absolute"


def test_unknown_positions_are_refused():
    with pytest.raises(ConfigError, match=r"sink_positions is 'near'; it must be one of absolute, relative"):
        tiny_model("S", sink_positions="near")
