"""The memory plan: hand counts, what is really allocated, and changes that really fit."""

import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.errors import ConfigError, GeometryError
from arl2.geometry import split_blocks
from arl2.model.precision import cast_model
from arl2.model.presets import preset_config
from arl2.model.registry import CARDS
from arl2.pipeline.budget import (
    GenerationJob,
    MemoryBudgetError,
    MemoryPlan,
    changes_that_fit,
    check_fits,
    plan_memory,
)
from arl2.pipeline.fitting import check_host_fits, placed
from arl2.pipeline.footprint import TINY_DECODER, DecoderFootprint, wan_decoder
from arl2.pipeline.free_memory import available_bytes
from rollout.wan_vae import VAE_CONFIG
from support import randn, tiny_config, tiny_model

WAN = preset_config("wan2.1-t2v-1.3b")
HYBRID = preset_config("wan2.1-t2v-1.3b", hybrid_layers=range(22))
UMT5 = 5_680_910_336  # parameters of the published text encoder
VAE = wan_decoder(VAE_CONFIG, 126_892_531)
FRAME = 30 * 52  # tokens of a latent frame at 480 x 832


def plan(config=WAN, decoder: DecoderFootprint = VAE, text: int = UMT5, **work) -> MemoryPlan:
    return plan_memory(config, GenerationJob(**{"frames": 21, **work}), text_encoder_parameters=text, decoder=decoder)


# The plan against hand counts.


def test_the_softmax_model_by_hand():
    whole = plan(frames=21)
    assert whole.cache == 21 * 30 * 2 * FRAME * 1536 * 2
    assert whole.cache / 21 / 1e6 == pytest.approx(287.5, rel=1e-3)
    assert whole.states == 0
    # The cache has doubled from 12 frames to 24; one tensor of 60 was the last to be copied.
    assert whole.spare == 3 * whole.cache // 21 + 12 * FRAME * 1536 * 2
    assert whole.prompts == 30 * 2 * 512 * 1536 * 2
    assert whole.transformer == pytest.approx(2 * 1_418_996_800, rel=0.02)  # a few parameters are float32
    assert whole.text_encoder == 2 * UMT5
    assert whole.codec == 2 * 126_892_531


def test_ranks_share_memory_and_passes_but_not_weights():
    fourteen = preset_config("wan2.1-t2v-14b", hybrid_layers=range(30))
    one, four = (plan(fourteen, frames=None, window=12, ranks=ranks) for ranks in (1, 4))
    assert (4 * four.states, 4 * four.cache, 4 * four.activations) == (one.states, one.cache, one.activations)
    assert (four.transformer, four.prompts, four.decoder_cache) == (one.transformer, one.prompts, one.decoder_cache)
    assert plan(HYBRID, frames=252, ranks=4).spare == plan(HYBRID, frames=252).spare // 4


def test_the_hybrid_model_by_hand():
    whole = plan(HYBRID, frames=252, window=12)
    assert whole.states == 22 * 12 * 128 * 128 * 4
    assert whole.cache == 12 * 8 * 2 * FRAME * 1536 * 2
    assert whole.stream / 1e9 == pytest.approx(0.92 + 0.017, rel=0.01)
    assert plan(HYBRID, frames=252).cache / 1e9 == pytest.approx(19.3, rel=0.01)
    assert plan(preset_config("wan2.1-t2v-1.3b", hybrid_layers=range(30)), frames=None).cache == 0


def test_phases_and_peak():
    leaves, stays, elsewhere = (plan(text_encoder=where) for where in ("leaves", "stays", "elsewhere"))
    assert leaves.phases["encode prompt"] == (
        leaves.transformer + leaves.codec + leaves.text_encoder + leaves.text_activations
    )
    assert leaves.phases["decode"] == (
        leaves.transformer + leaves.codec + leaves.prompts + leaves.stream + leaves.decoder_cache + leaves.decoder_work
    )
    assert stays.phases["denoise"] - leaves.phases["denoise"] == 2 * UMT5
    assert elsewhere.phases["encode prompt"] == leaves.transformer + leaves.codec
    assert elsewhere.text_encoder == 0
    for one in (leaves, stays, elsewhere):
        assert one.peak == max(one.phases.values())
        assert all(size > 0 for size in one.parts().values())


def test_guidance_keeps_two_memories_and_batches_scale():
    one, two = plan(), plan(guided=True)
    assert (two.stream, two.prompts) == (2 * one.stream, 2 * one.prompts)
    assert two.activations == one.activations  # the two prompts take turns
    assert plan(batch=3).stream == 3 * one.stream
    assert plan(batch=3).decoder_work == pytest.approx(3 * one.decoder_work, abs=16)


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.base is not None])
def test_cards_say_about_what_the_plan_says(name):
    card = CARDS[name]
    config = {**(HYBRID if name == "arl2" else WAN), "block_frames": card.block_frames}
    counted = plan(config, frames=21, guided=card.kind == "multi-step").peak
    assert card.device_bytes == pytest.approx(counted, rel=0.1)


# The plan against what is allocated.


SINKS = {"sink": 2, "sink_positions": "relative"}


@pytest.mark.parametrize(
    ("layers", "window", "sinks"), [("SHS", None, {}), ("SHS", 5, {}), ("SHS", 5, SINKS), ("HH", None, {})]
)
@pytest.mark.parametrize("blocks", [1, 4, 5, 9])
def test_memory_is_what_a_stream_allocates(layers, window, sinks, blocks):
    model = tiny_model(layers)
    memory = model.allocate_memory(batch=2, height=4, width=6, window=window, **sinks)
    text = model.prompt_context(randn(2, 5, 10))
    with torch.no_grad():
        for block in range(blocks):
            for run in (model.predict, model.commit):
                run(randn(2, 3, 2, 4, 6, seed=block), torch.zeros(2, 2), text, memory)
    size = {"batch": 2, "height": 32, "width": 48}
    counted = plan(tiny_config(layers), frames=2 * blocks, **size, window=window, **sinks, dtype=torch.float32)
    copied = 0  # by the last growth, gone by now
    if window is None and "S" in layers and 2 * blocks > 8:
        room = 8
        while 2 * room < 2 * blocks:
            room *= 2
        copied = room * 2 * 6 * 24 * 4
    assert counted.stream - copied == memory.nbytes
    assert counted.prompts == sum(pair.k.nbytes + pair.v.nbytes for pair in text.layers)


# Length.


@settings(max_examples=25, deadline=None)
@given(frames=st.integers(1, 2000), more=st.integers(0, 500), hybrid=st.booleans())
def test_grows_with_the_video_without_a_window(frames, more, hybrid):
    config = HYBRID if hybrid else WAN
    short, long = plan(config, frames=frames), plan(config, frames=frames + more)
    assert short.peak <= long.peak
    assert short.cache < long.cache or not more
    assert short.stream - short.spare <= short.stream <= 2.2 * (short.stream - short.spare) or frames < 12


@settings(max_examples=25, deadline=None)
@given(frames=st.integers(1, 100_000), window=st.integers(3, 60), hybrid=st.booleans())
def test_is_constant_with_a_window(frames, window, hybrid):
    config = HYBRID if hybrid else WAN
    endless = plan(config, frames=None, window=window)
    assert replace(plan(config, frames=frames, window=window), work=endless.work) == endless


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(8, 60), columns=st.integers(8, 60), batch=st.integers(1, 4))
def test_grows_with_picture_batch_and_precision(rows, columns, batch):
    # Without the text encoder, whose moment would hide the others.
    base = plan(height=16 * rows, width=16 * columns, batch=batch, text=0)
    for bigger in (
        {"height": 16 * rows + 16},
        {"width": 16 * columns + 16},
        {"batch": batch + 1},
        {"dtype": torch.float32},
    ):
        work = {"height": 16 * rows, "width": 16 * columns, "batch": batch, **bigger}
        assert plan(**work, text=0).peak > base.peak


# Fitting.


def test_what_fits_passes_and_what_is_tight_warns(caplog):
    whole = plan()
    with caplog.at_level(logging.WARNING):
        check_fits(whole, 2 * whole.peak, "cuda")
        check_fits(whole, None, "mps")
        check_fits(whole, int(whole.peak / 0.84), "cuda")
        assert not caplog.records
        check_fits(whole, int(whole.peak / 0.86), "cuda")
        check_fits(whole, whole.peak, "cuda")
    assert len(caplog.records) == 2
    assert "it may not fit" in caplog.records[0].getMessage()


CASES = {
    "long, full cache": (WAN, {"frames": 252}, 40e9, {"window=", "num_frames=", "height="}),
    "float32": (HYBRID, {"frames": 21, "dtype": torch.float32}, 17e9, {"dtype=bfloat16"}),
    "decoder": (HYBRID, {"frames": None, "window": 12, "text_encoder": "elsewhere"}, 7e9, {"the tiny decoder"}),
    "text stays": (HYBRID, {"frames": 21, "text_encoder": "stays"}, 18e9, {"a text encoder that leaves", "height="}),
    "wide": (WAN, {"frames": 21, "height": 720, "width": 1280}, 16e9, {"height=", "window="}),
    "shorter first block": (
        WAN,
        {"frames": 40, "first_block_frames": 1, "text_encoder": "elsewhere"},
        16e9,
        {"num_frames="},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_change_that_is_named_really_fits(case):
    config, work, available, named = CASES[case]
    whole, available = plan(config, **work), int(available)
    assert whole.peak > available
    changes = changes_that_fit(whole, available, "cuda")
    for change in changes:
        assert change.plan.peak <= available, change.words
        split_blocks(change.plan.work.frames or 3, 3, work.get("first_block_frames"))
        # The plan of a change is the plan of its settings.
        again = plan_memory(config, change.plan.work, text_encoder_parameters=UMT5, decoder=change.plan.decoder)
        assert again == change.plan
    for word in named:
        assert any(change.words.startswith(word) for change in changes), [change.words for change in changes]
    with pytest.raises(MemoryBudgetError) as refused:
        check_fits(whole, available, "cuda")
    assert all(change.words in str(refused.value) for change in changes)
    assert f"but {available / 1e9:.1f} GB are free" in str(refused.value)


def test_changes_are_as_mild_as_they_can_be():
    whole, available = plan(frames=252), int(40e9)
    window, frames, picture = changes_that_fit(whole, available, "cuda")[:3]
    assert replace(window.plan.work, window=None) == whole.work
    assert plan(frames=252, window=window.plan.work.window + 1).peak > available
    assert plan(frames=frames.plan.work.frames + 3).peak > available
    assert frames.words == f"num_frames={4 * frames.plan.work.frames - 3}"
    height, width = picture.plan.work.height, picture.plan.work.width
    assert height % 16 == width % 16 == 0
    assert width / height == pytest.approx(832 / 480, rel=0.05)
    assert plan(frames=252, height=height + 16, width=round(832 * (height + 16) / 480 / 16) * 16).peak > available


def test_the_text_encoder_has_nowhere_to_go_from_a_cpu():
    whole = plan(HYBRID, text_encoder="stays")
    on_cpu, on_gpu = ({c.words for c in changes_that_fit(whole, int(18e9), where)} for where in ("cpu", "cuda:1"))
    away = {"the text encoder on the CPU", "a text encoder that leaves once the prompt is read"}
    assert on_gpu - on_cpu == {*away, "offload=layers"}


def test_a_device_that_is_too_small_for_any_single_change():
    whole = plan(frames=252, dtype=torch.float32)
    with pytest.raises(
        MemoryBudgetError, match=r"no single change is enough; all together \(dtype=bfloat16; .* take 1\.9"
    ):
        check_fits(whole, int(8e9), "cuda")
    bare = plan(HYBRID, TINY_DECODER, text=0, frames=None, window=3, height=128, width=128)
    with pytest.raises(MemoryBudgetError, match="there is none left"):
        check_fits(bare, int(1e9), "cpu")


def test_what_cannot_be_planned():
    with pytest.raises(ConfigError, match="needs a window"):
        plan(frames=None)
    with pytest.raises(ConfigError, match="use at least 5"):
        plan(window=4, sink=2)
    with pytest.raises(ConfigError, match="1 or more videos"):
        plan(batch=0)
    with pytest.raises(GeometryError, match="multiple of 8"):
        plan(height=481)
    with pytest.raises(GeometryError, match="multiple of the patch"):
        plan(height=488)


# Offloading.

HYBRID_14B = preset_config("wan2.1-t2v-14b", hybrid_layers=range(30))
CARD_24, CARD_8 = int(23e9), int(7.5e9)  # bytes that such cards have free


def test_weights_of_an_offloaded_model_by_hand():
    whole, apart = plan(HYBRID_14B, window=12), plan(HYBRID_14B, window=12, offload=True)
    width, hidden = 5120, 13824
    linear = 8 * width**2 + 2 * width * hidden
    # Of a hybrid layer: also the gates and one matrix a head for each of q, k, v.
    layer = 2 * (linear + 3 * width * 40 + 3 * width * 128)
    small = 2 * (4096 * width + width**2 + 2 * 64 * width) + 4 * (256 * width + 7 * width**2 + 40 * 6 * width)
    assert apart.transformer == pytest.approx(2 * layer + small, rel=0.001)
    assert apart.host == pytest.approx(40 * 2 * linear, rel=0.01)
    assert apart.host + apart.transformer == pytest.approx(whole.transformer + 2 * layer, rel=0.001)
    assert apart.peak - whole.peak == apart.transformer - whole.transformer
    assert whole.host == 0
    # A text encoder elsewhere waits on the machine, too.
    assert plan(HYBRID_14B, window=12, offload=True, text_encoder="elsewhere").host == apart.host + 2 * UMT5


@pytest.mark.parametrize(
    ("config", "available", "text_encoder"), [(HYBRID_14B, CARD_24, "leaves"), (HYBRID, CARD_8, "elsewhere")]
)
@pytest.mark.parametrize("frames", [21, None])
def test_14b_fits_24_gb_and_1_3b_fits_8_gb(config, available, text_encoder, frames):
    whole = plan(config, frames=frames, window=12)
    assert whole.peak > available
    found = placed(whole, "auto", available, "cuda")
    assert found.peak <= 0.85 * available
    assert found.work == replace(whole.work, offload=True, text_encoder=text_encoder)
    check_fits(found, available, "cuda")
    with pytest.raises(MemoryBudgetError, match=r"offload=layers|no single change"):
        check_fits(whole, available, "cuda")


def test_what_is_kept_off_the_device_is_as_little_as_it_can_be():
    whole = plan(HYBRID, window=12)
    for available, expected in {
        18e9: {},
        12e9: {"text_encoder": "elsewhere"},  # the transformer fits; its text encoder, which is larger, does not
        7.5e9: {"text_encoder": "elsewhere", "offload": True},
        1e9: {"text_encoder": "elsewhere", "offload": True},
    }.items():
        assert placed(whole, "auto", int(available), "cuda:1").work == replace(whole.work, **expected), available
    assert placed(plan(HYBRID_14B, window=12), "auto", CARD_24, "xpu").work.text_encoder == "leaves"
    # As requested, whatever fits.
    assert placed(whole, "none", int(1e9), "cuda") == whole
    assert placed(whole, "layers", int(80e9), "cuda").work == replace(whole.work, offload=True)
    # Where nothing says what is free, and where nothing is gained.
    assert placed(whole, "auto", None, "xpu") == whole
    assert placed(whole, "auto", 1, "cpu") is placed(whole, "auto", 1, "mps") is whole


def test_recorded_passes_are_counted_and_given_up_first():
    plain, recorded = (plan(HYBRID, window=12, text=0, graphs=graphs) for graphs in (False, True))
    assert plain.seat == 0
    assert recorded.seat == plain.states + plain.cache + plain.prompts + plain.activations
    assert recorded.phases["decode"] - plain.phases["decode"] == recorded.seat
    # While a pass is recorded, memory is there a third time.
    assert recorded.phases["denoise"] - plain.phases["denoise"] == recorded.seat + plain.states + plain.cache
    guided = plan(HYBRID, window=12, text=0, graphs=True, guided=True)
    assert guided.seat == recorded.seat  # the two memories take turns
    # A cache that grows is never recorded, nor are layers that come and go.
    assert plan(HYBRID, graphs=True).seat == plan(HYBRID, window=12, graphs=True, offload=True).seat == 0
    between = int((plain.peak + recorded.peak) / 2 / 0.85)
    for offload in ("auto", "none"):
        assert placed(recorded, offload, 2 * recorded.peak, "cuda") is recorded
        assert placed(recorded, offload, between, "cuda").work == plain.work
        assert placed(recorded, offload, between, "cuda", needs_graphs=True).work.graphs
    assert placed(recorded, "auto", int(3e9), "cuda").work.offload
    assert not placed(recorded, "auto", int(3e9), "cuda", needs_graphs=True).work.offload


def test_offloading_is_named_where_it_would_fit():
    whole = plan(HYBRID_14B, window=12)
    words = {change.words for change in changes_that_fit(whole, CARD_24, "cuda")}
    assert words == {"offload=layers"}
    assert "offload=layers" not in {change.words for change in changes_that_fit(whole, CARD_24, "cpu")}
    with pytest.raises(
        MemoryBudgetError, match=r"about 40\.9 GB on cuda .* any one of these would fit: offload=layers"
    ):
        check_fits(whole, CARD_24, "cuda")


def test_the_machine_must_hold_what_is_kept_off_the_device():
    found = placed(plan(HYBRID_14B, window=12), "auto", CARD_24, "cuda")
    check_host_fits(found, int(29e9))
    check_host_fits(found, None)
    with pytest.raises(
        MemoryBudgetError,
        match=r"^What is kept off the device takes about 28\.3 GB .* but 16\.0 GB are free; free some",
    ):
        check_host_fits(found, int(16e9))
    with pytest.raises(MemoryBudgetError, match="dtype=bfloat16 halves"):
        check_host_fits(plan(HYBRID_14B, window=12, offload=True, dtype=torch.float32), int(16e9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", ["S", "SH", "HSH"])
def test_offloaded_weights_are_what_a_model_holds(layers, dtype):
    model = cast_model(tiny_model(layers), dtype)
    model.layers.offload("cpu")
    counted = plan(tiny_config(layers), height=32, width=48, dtype=dtype, offload=True)
    large = {name: part for name, part in model.named_parameters() if name.startswith("layers.")}
    small = sum(part.nbytes for name, part in model.named_parameters() if name not in large)
    own = {name: large.pop(name) for name in list(large) if name.endswith(".modulation")}
    small += sum(part.nbytes for part in own.values())
    pieces = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in large.values()}
    assert counted.host == sum(pieces.values())
    assert counted.transformer == min(2, len(layers)) * max(pieces.values()) + small


# What is free.


def test_free_memory_of_this_machine():
    free = available_bytes("cpu")
    assert free is None or 0 < free < 2**50
    assert available_bytes("meta") is None


def test_a_gpu_has_what_the_driver_says_and_what_torch_does_not_use(monkeypatch):
    said = {"mem_get_info": (1000, 5000), "memory_reserved": 300, "memory_allocated": 100}
    for name, value in said.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert available_bytes("cuda:1") == 1200

    def silent(device):
        raise RuntimeError("The device doesn't support querying the available free memory.")

    monkeypatch.setattr(torch.xpu, "mem_get_info", silent)
    assert available_bytes("xpu") is None


def test_the_lowest_limit_counts(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    inner = groups / "outer" / "inner"
    inner.mkdir(parents=True)
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:    500 kB\nHugePages_Total: 0\n")
    assert available_bytes("cpu", proc=proc, cgroups=groups) == 500 * 1024
    (proc / "self" / "cgroup").write_text("0::/outer/inner\n")
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("100000\n")
    assert available_bytes("cpu", proc=proc, cgroups=groups) == 500 * 1024
    # The group above has a limit; pages of files that it could drop are not lost.
    (groups / "outer" / "memory.max").write_text("300000\n")
    (groups / "outer" / "memory.current").write_text("200000\n")
    (groups / "outer" / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    assert available_bytes("cpu", proc=proc, cgroups=groups) == 150_000
    # The first version of control groups.
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text("70000\n")
    (groups / "memory" / "memory.usage_in_bytes").write_text("90000\n")
    assert available_bytes("cpu", proc=proc, cgroups=groups) == 0
