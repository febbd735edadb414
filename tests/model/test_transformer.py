"""The transformer: against diffusers' own Wan, its checks, its dtypes, saving and loading."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from arl2.checkpoints import load_transformer
from arl2.errors import ConfigError, GeometryError
from arl2.model.config import check_config
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.model.precision import cast_model, parameter_count, parameter_dtype
from arl2.model.presets import PRESETS, preset_config
from arl2.model.transformer import CausalWanTransformer3DModel
from support import randn, relative, tiny_config, tiny_model


def test_one_block_equals_diffusers_wan(tmp_path):
    """Within a single block nothing is causal: an independent implementation must give the same flow."""
    torch.manual_seed(0)
    theirs = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=3,
        out_channels=3,
        text_dim=10,
        freq_dim=16,
        ffn_dim=40,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_transformer(tmp_path, text_len=5, block_frames=4)
    assert ours.config.layer_plan == "SS"
    latents, text = randn(2, 3, 4, 4, 6), randn(2, 5, 10)
    timestep = torch.tensor([937.5, 250.0])
    with torch.no_grad():
        expected = theirs(latents, timestep, text, return_dict=False)[0]
        found = ours(latents, timestep[:, None].expand(2, 4), text, run=DiffusionForcing())
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "parameters"), [("wan2.1-t2v-1.3b", 1_418_996_800), ("wan2.1-t2v-14b", 14_288_491_584)]
)
def test_published_sizes_have_the_published_parameters(name, parameters):
    with torch.device("meta"):
        assert parameter_count(CausalWanTransformer3DModel(**preset_config(name))) == parameters


def test_parameters_by_hand_for_the_smaller_size():
    sizes = PRESETS["wan2.1-t2v-1.3b"]
    d, ffn = sizes["num_attention_heads"] * sizes["attention_head_dim"], sizes["ffn_dim"]
    attention = 4 * (d * d + d) + 2 * d
    layer = 2 * attention + 2 * d + (d * ffn + ffn + ffn * d + d) + 6 * d
    ends = (16 * 4 * d + d) + (4096 * d + d + d * d + d) + (256 * d + d + d * d + d) + (6 * d * d + 6 * d)
    head = 64 * d + 64 + 2 * d
    with torch.device("meta"):
        model = CausalWanTransformer3DModel(**preset_config("wan2.1-t2v-1.3b"))
    assert parameter_count(model) == sizes["num_layers"] * layer + ends + head


def test_what_a_conversion_adds_is_two_percent():
    with torch.device("meta"):
        base = CausalWanTransformer3DModel(**preset_config("wan2.1-t2v-1.3b"))
        plan = {"hybrid_layers": range(22), "state_rank": 16, "ffn_rank": 16}
        hybrid = CausalWanTransformer3DModel(**preset_config("wan2.1-t2v-1.3b", **plan))
    added = parameter_count(hybrid) - parameter_count(base)
    d, heads, head_dim, rank, ffn = 1536, 12, 128, 16, 8960
    gates = 3 * heads * d + 2 * heads
    features = 3 * heads * head_dim**2
    low_rank = 3 * 2 * rank * d + 2 * rank * (d + ffn)
    assert added == 22 * (gates + features + low_rank) == 24_826_384
    assert round(100 * added / parameter_count(base), 2) == 1.75


def test_unknown_preset():
    with pytest.raises(ConfigError, match=r"'wan3' is not known; choose one of wan2.1-t2v-1.3b"):
        preset_config("wan3")


def settings_of(model: CausalWanTransformer3DModel) -> dict:
    """The config without diffusers' own entries; JSON knows no tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in model.config.items() if not k.startswith("_")}


def test_saving_and_loading_keeps_every_bit(tmp_path):
    model = tiny_model("HSH", window=5, sink=1, low_rank_alpha=3.0, ffn_rank_layers="all")
    model.save_pretrained(tmp_path)
    for loaded in (CausalWanTransformer3DModel.from_pretrained(tmp_path), load_transformer(tmp_path)):
        assert settings_of(loaded) == settings_of(model)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name


def test_half_precision_keeps_what_must_not_be_rounded():
    model = cast_model(tiny_model("HS"), torch.bfloat16)
    kept = {part for name, p in model.named_parameters() if p.dtype == torch.float32 for part in name.split(".")[-2:]}
    assert {"A_log", "dt_bias", "modulation", "norm_q", "norm_k", "cross_norm"} <= kept
    assert model.compute_dtype == torch.bfloat16
    assert parameter_dtype("layers.0.self_attention.state.A_log", torch.float64) == torch.float64
    memory = model.allocate_memory(batch=1, height=4, width=6)
    latents, text = randn(1, 3, 2, 4, 6), randn(1, 5, 10)
    with torch.no_grad():
        flow = model.predict(latents, torch.full((1, 2), 500.0), text, memory)
        model.commit(latents, torch.zeros(1, 2), text, memory)
    assert flow.dtype == torch.bfloat16
    assert memory.layers[0].state.dtype == torch.float32
    plain = tiny_model("HS")
    empty = plain.allocate_memory(batch=1, height=4, width=6)
    with torch.no_grad():
        exact = plain.predict(latents, torch.full((1, 2), 500.0), text, empty)
    assert relative(flow, exact) < 3e-2


def test_prompts_are_projected_once_and_short_ones_padded_with_zero_rows():
    model, latents, timestep = tiny_model("HS"), randn(1, 3, 2, 4, 6), torch.full((1, 2), 500.0)
    text = randn(1, 3, 10)
    padded = torch.cat([text, torch.zeros(1, 2, 10)], dim=1)
    with torch.no_grad():
        prepared = model.prompt_context(text)
        flows = [model(latents, timestep, given, run=DiffusionForcing()) for given in (text, padded, prepared)]
    assert torch.equal(flows[0], flows[1])
    assert torch.equal(flows[0], flows[2])


def test_what_it_refuses():
    model, text = tiny_model("HS"), randn(1, 5, 10)

    def run(latents=(1, 3, 2, 4, 6), timesteps=(1, 2), text=text, run=None):
        return model(randn(*latents), torch.zeros(timesteps), text, run=run or DiffusionForcing())

    with pytest.raises(GeometryError, match="have 4 channels but this model takes 3"):
        run(latents=(1, 4, 2, 4, 6))
    with pytest.raises(GeometryError, match="Latent height 5 is not a multiple of the patch size 2"):
        run(latents=(1, 3, 2, 5, 6))
    with pytest.raises(GeometryError, match=r"timesteps are \[1, 3\] .* \[1, 2\]"):
        run(timesteps=(1, 3))
    with pytest.raises(GeometryError, match="3 latent frames do not fit blocks of 2; use 2 or 4"):
        run(latents=(1, 3, 3, 4, 6), timesteps=(1, 3))
    with pytest.raises(GeometryError, match="clean clip is"):
        run(run=TeacherForcing(randn(1, 3, 4, 4, 6)))
    with pytest.raises(ConfigError, match="11 wide but this model takes 10"):
        run(text=randn(1, 5, 11))
    with pytest.raises(GeometryError, match=r"frames \(1 or more\)"):
        run(latents=(1, 3, 0, 4, 6), timesteps=(1, 0))
    with pytest.raises(ConfigError, match="2 prompts for a batch of 1"):
        run(text=randn(2, 5, 10))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_plan": "HQ"}, "unknown letters Q"),
        ({"layer_plan": ""}, "plan is empty"),
        ({"patch_size": (2, 2, 2)}, r"\(frames\) 1"),
        ({"attention_head_dim": 7}, "must be even"),
        ({"ffn_rank_layers": "some"}, '"hybrid" or "all"'),
        ({"window": 3, "sink": 2}, "use at least 4, or None"),
        ({"window": 1}, "use at least 2, or None"),
        ({"sink": 1}, "no window to keep it in"),
        ({"sink": -1}, "sink is -1; it must be a whole number from 0"),
        ({"text_len": 0}, "text_len is 0; it must be a whole number from 1"),
        ({"block_frames": 0}, "block_frames is 0"),
        ({"state_rank": -1}, "state_rank is -1"),
    ],
)
def test_configs_that_cannot_be(changes, said):
    with pytest.raises(ConfigError, match=said):
        CausalWanTransformer3DModel(**{**tiny_config("HS"), **changes})


@pytest.mark.parametrize("value", ["abc", 12.5, -5, True, None])
def test_a_setting_of_another_type_is_refused(value):
    """What JSON may hold; the type checker of these tests would stop it at the constructor."""
    with pytest.raises(ConfigError, match=r"text_len is .*; it must be a whole number from 1"):
        check_config({**tiny_model("HS").config, "text_len": value})


def test_a_prompt_of_another_model_is_refused():
    latents, timestep, text = randn(1, 3, 2, 4, 6), torch.zeros(1, 2), randn(1, 5, 10)
    context = tiny_model("HS").prompt_context(text)
    with pytest.raises(ConfigError, match=r"made by a model of plan HS, .* not of plan HSS"):
        tiny_model("HSS")(latents, timestep, context, run=DiffusionForcing())


def test_every_setting_of_the_config_has_an_effect():
    """An option that is accepted and dropped is a lie: each one changes the flow, the memory or the parameters."""
    latents, timestep, text = randn(1, 3, 4, 4, 6), torch.full((1, 4), 500.0), randn(1, 5, 10)

    def trace(**changes) -> tuple:
        model = tiny_model(**{"plan": "HS", **changes})
        channels = model.config.in_channels
        memory = model.allocate_memory(batch=1, height=8, width=8)
        width = text[..., : model.config.text_dim] if model.config.text_dim < 10 else text
        with torch.no_grad():
            flow = model(randn(1, channels, 4, 8, 8), timestep, width, run=DiffusionForcing())
        return parameter_count(model), memory.nbytes, memory.geometry, flow.shape, float(flow.double().sum())

    assert latents.shape[2] == 4
    base = trace()
    changes = {
        "plan": "SS",
        "num_attention_heads": 3,
        "attention_head_dim": 14,
        "ffn_dim": 41,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": (1, 1, 2),
        "freq_dim": 18,
        "text_dim": 9,
        "text_len": 6,
        "block_frames": 4,
        "window": 3,
        "state_rank": 1,
        "ffn_rank": 1,
        "low_rank_alpha": 9.0,
        "ffn_rank_layers": "all",
        "eps": 1e-2,
    }
    for name, value in changes.items():
        assert trace(**{name: value}) != base, name
    assert trace(window=3, sink=1) != trace(window=3)
    assert trace(window=3, sink=1, sink_positions="relative") != trace(window=3, sink=1)
    assert trace(plan="WS", window=3, state_form={"mixing": "interpolated"}) != trace(plan="WS", window=3)
    assert trace(state_horizon=4) != base
    assert {*changes, "sink", "sink_positions", "state_form", "state_horizon", "layer_plan"} - {"plan"} == {
        k for k in tiny_model().config if not k.startswith("_")
    }
