"""Conversion keeps every pretrained weight, adds the published parameters, and changes nothing inside a first block."""

import pytest
import torch
from tests.support import randn, tiny_model

from arl2.checkpoints.conversion import convert
from arl2.checkpoints.export import export_checkpoint
from arl2.checkpoints.load import load_transformer
from arl2.errors import ConfigError
from arl2.model.passes import DiffusionForcing
from arl2.model.precision import cast_model
from arl2.model.transformer import CausalWanTransformer3DModel


def flow_of(model: CausalWanTransformer3DModel, frames: int) -> torch.Tensor:
    latents = randn(1, model.config.in_channels, frames, 4, 4, seed=1)
    timestep = torch.full((1, frames), 500.0)
    text = randn(1, model.config.text_len, model.config.text_dim, seed=2)
    with torch.no_grad():
        flow = model(latents, timestep, text, run=DiffusionForcing())
    assert flow is not None
    return flow


@pytest.mark.parametrize("plan", ["HHSH", "HHHH", [2]])
def test_a_first_block_is_unchanged_and_later_ones_are_not(plan):
    softmax = tiny_model("SSSS")
    hybrid = convert(softmax, plan, state_rank=2, ffn_rank=3).model
    size = softmax.config.block_frames
    before, after = flow_of(softmax, 2 * size), flow_of(hybrid, 2 * size)
    torch.testing.assert_close(after[:, :, :size], before[:, :, :size], atol=1e-5, rtol=1e-5)
    assert (after[:, :, size:] - before[:, :, size:]).abs().max() > 1e-2


def test_every_pretrained_weight_is_kept_and_the_rest_is_named():
    softmax = tiny_model("SSS")
    result = convert(softmax, "HSH", state_rank=2, ffn_rank=3)
    after = result.model.state_dict()
    for name, tensor in softmax.state_dict().items():
        home = name if name in after else name.replace(".up.", ".up.linear.").replace(".down.", ".down.linear.")
        assert after[home].data_ptr() == tensor.data_ptr()  # shared, not copied
    assert result.parameters == sum(x.numel() for x in after.values())
    assert result.new_parameters == result.parameters - sum(x.numel() for x in softmax.state_dict().values())
    assert {name.split(".")[1] for name in result.new} == {"0", "2"}
    assert not any(x.is_meta for x in after.values())


def test_the_published_count_for_22_hybrid_layers_of_wan():
    with torch.device("meta"):
        wan = CausalWanTransformer3DModel("SS", 12, 128, 8960)
    new = convert(wan, "HS").new_parameters
    assert new * 22 == 24_826_384  # 1.75 % of 1.4 billion, as the paper says


def test_the_seed_alone_decides_the_start_values():
    first, again, other = (
        convert(tiny_model("SS"), "HS", state_rank=2, ffn_rank=0, seed=seed).model.state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "layers.0.self_attention.gate_proj.weight"
    assert not torch.equal(first[name], other[name])


def test_dtype_is_kept_and_a_few_parameters_stay_float32():
    half = cast_model(tiny_model("SS"), torch.bfloat16)
    state = convert(half, "HS", state_rank=2, ffn_rank=2).model.state_dict()
    assert state["layers.0.self_attention.state.A_log"].dtype == torch.float32
    assert state["layers.0.self_attention.state.phi_q"].dtype == torch.bfloat16
    assert state["layers.0.ffn.up.change.A"].dtype == torch.bfloat16


def test_a_hybrid_gains_layers_and_loses_none():
    once = convert(tiny_model("SSSS"), "HSSS", state_rank=2, ffn_rank=2).model
    twice = convert(once, "HSHS", state_rank=2, ffn_rank=2)
    assert {name.split(".")[1] for name in twice.new} == {"2"}
    with pytest.raises(ConfigError, match=r"Layers \[0\] are hybrid already"):
        convert(once, "SSHS", state_rank=2, ffn_rank=2)
    with pytest.raises(ConfigError, match="converted layers have state_rank 2"):
        convert(once, "HSHS", state_rank=4, ffn_rank=2)


def test_plans_that_do_not_fit():
    with pytest.raises(ConfigError, match="names 3 layers but the model has 2"):
        convert(tiny_model("SS"), "HSS")
    with pytest.raises(ConfigError, match="from 0 to 1"):
        convert(tiny_model("SS"), [2])


def test_it_goes_through_the_published_layout_and_back(tmp_path):
    hybrid = convert(tiny_model("SSS"), "HSH", state_rank=2, ffn_rank=2).model
    export_checkpoint(hybrid, tmp_path / "model.pt")
    loaded = load_transformer(tmp_path / "model.pt", block_frames=hybrid.config.block_frames, text_len=5)
    assert loaded.config.layer_plan == "HSH"
    torch.testing.assert_close(flow_of(loaded, 4), flow_of(hybrid, 4))
