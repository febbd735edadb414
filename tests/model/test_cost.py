"""Counted operations and bytes, against a profiler and against what is allocated."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from arl2.attention.memory import MemoryGeometry
from arl2.kernels.delta_rule.chunked import CHUNK
from arl2.model.cost import clip_flops, memory_bytes, pass_flops, rollout_flops
from arl2.model.passes import TeacherForcing
from arl2.model.presets import preset_config
from arl2.model.transformer import CausalWanTransformer3DModel
from support import randn, tiny_model


@pytest.mark.parametrize("plan", ["S", "H", "HSH", "SHS"])
@pytest.mark.parametrize("commit", [False, True])
def test_operations_equal_a_profilers_count(plan, commit):
    # Tokens are a multiple of the chunk, so that the last chunk is a full one.
    model, height, width = tiny_model(plan, ffn_rank_layers="all"), 16, 16
    text = model.prompt_context(randn(1, 5, 10))
    memory = model.allocate_memory(batch=1, height=height, width=width)
    model.commit(randn(1, 3, 2, height, width), torch.zeros(1, 2), text, memory)
    counter = FlopCounterMode(display=False)
    # The profiler knows attention as matrix products, not as the fused CPU kernel.
    with counter, sdpa_kernel(SDPBackend.MATH):
        run = model.commit if commit else model.predict
        run(randn(1, 3, 2, height, width), torch.zeros(1, 2), text, memory)
    counted = pass_flops(model.config, memory.geometry, past_frames=2, commit=commit)
    time_path = 2 * 2 * (16 * 24 + 24 * 24 + 6 * 24 * 24)
    # The profiler sees neither triangular solves nor in-place products; the delta rule has one each a chunk and head.
    tokens = 2 * memory.geometry.frame_tokens
    unseen = plan.count("H") * tokens * 2 * (CHUNK * 12 + 2 * 12 * 12) if commit else 0
    assert tokens % CHUNK == 0
    assert counted.total == counter.get_total_flops() - time_path + unseen


@pytest.mark.parametrize("plan", ["SS", "HSH"])
@pytest.mark.parametrize("window", [None, 4])
def test_operations_of_a_whole_clip_equal_a_profilers_count(plan, window):
    model, height, width = tiny_model(plan, window=window), 16, 16
    text, latents = model.prompt_context(randn(1, 5, 10)), randn(1, 3, 6, height, width)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(latents, torch.zeros(1, 6), text, run=TeacherForcing(latents))
    counted = clip_flops(model.config, MemoryGeometry(1, 8, 8, 2), frames=6).total
    time_path = 2 * 12 * (16 * 24 + 24 * 24 + 6 * 24 * 24)
    written = 4 * 64  # tokens of all blocks but the last
    unseen = plan.count("H") * written * 2 * (CHUNK * 12 + 2 * 12 * 12)
    assert counted == counter.get_total_flops() - time_path + unseen
    # Stage 1 runs the hybrid layers' attention beside the teacher: less than the whole, and nothing without them.
    alone = clip_flops(model.config, MemoryGeometry(1, 8, 8, 2), frames=6, attention_alone=True).total
    assert (alone > 0) is ("H" in plan)
    assert alone < counted


def test_the_published_floor():
    """Spec 5: linear layers and FFN 11.7 TFLOP a pass over a block, cross-attention 0.44, 1.35 a frame of context."""
    config = {
        **preset_config("wan2.1-t2v-1.3b"),
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": (1, 2, 2),
        "text_len": 512,
        "state_rank": 0,
        "ffn_rank": 0,
        "ffn_rank_layers": "hybrid",
    }
    geometry = MemoryGeometry(1, 30, 52, 3)
    near, far = (pass_flops(config, geometry, past_frames=past, commit=False) for past in (0, 10))
    assert near.linear / 1e12 == pytest.approx(11.7, rel=0.02)
    assert near.cross_attention / 1e12 == pytest.approx(0.44, rel=0.02)
    assert (far.self_attention - near.self_attention) / 10 / 1e12 == pytest.approx(1.35, rel=0.01)


def test_bytes_of_the_published_model_by_hand():
    plan = {**preset_config("wan2.1-t2v-1.3b", hybrid_layers=range(22))}
    kept = memory_bytes(plan, batch=1, frame_tokens=30 * 52, element_size=2)
    assert kept.states == 22 * 12 * 128 * 128 * 4  # 0.79 MB a layer, 17 MB in all
    assert kept.cache_per_frame == 8 * 2 * 30 * 52 * 1536 * 2
    all_softmax = memory_bytes(preset_config("wan2.1-t2v-1.3b"), batch=1, frame_tokens=30 * 52, element_size=2)
    assert all_softmax.cache_per_frame / 1e6 == pytest.approx(287.5, rel=1e-3)
    assert kept.at(12) / 1e9 == pytest.approx(0.92 + 0.017, rel=0.01)


@pytest.mark.parametrize("plan", ["HS", "HH", "SS"])
@pytest.mark.parametrize(("sink_positions", "moved"), [("absolute", 0), ("relative", 3)])
def test_bytes_equal_what_a_windowed_memory_allocates(plan, sink_positions, moved):
    model = tiny_model(plan, window=6, sink=3, sink_positions=sink_positions)
    memory = model.allocate_memory(batch=2, height=4, width=6)
    counted = memory_bytes(model.config, batch=2, frame_tokens=6, element_size=4)
    assert memory.nbytes == counted.at(6, moved_sinks=moved)


def test_the_published_model_allocates_what_was_counted():
    with torch.device("meta"):
        model = CausalWanTransformer3DModel(**preset_config("wan2.1-t2v-1.3b", hybrid_layers=range(22), window=12))
    model.to(torch.bfloat16)
    memory = model.allocate_memory(batch=1, height=60, width=104)  # on meta: no byte is touched
    assert memory.nbytes == memory_bytes(model.config, batch=1, frame_tokens=30 * 52, element_size=2).at(12)


@pytest.mark.parametrize(
    ("hybrid", "window", "frames", "tflop"), [(0, None, 252, 1756), (22, None, 252, 517), (0, 12, 30, 141)]
)
def test_a_block_of_a_rollout_costs_what_the_table_says(hybrid, window, frames, tflop):
    """Spec 5: operations of a block of five passes, at frame 1005 (252 latent frames) and with a window of 12.

    The hybrid row says 528: there the last layer's clean pass is counted whole, 12 TFLOP of softmax that is not run.
    """
    with torch.device("meta"):
        config = CausalWanTransformer3DModel(
            **preset_config("wan2.1-t2v-1.3b", hybrid_layers=range(hybrid), block_frames=3, window=window)
        ).config
    geometry = MemoryGeometry(1, 30, 52, 3)
    longer, shorter = (rollout_flops(config, geometry, frames=n, passes=4).total for n in (frames, frames - 3))
    assert (longer - shorter) / 1e12 == pytest.approx(tflop, rel=0.02)
    known = rollout_flops(config, geometry, frames=frames, passes=4, known_blocks=frames // 3).total
    assert known < shorter / 4  # clean passes alone
