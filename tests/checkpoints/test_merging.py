"""Low-rank changes folded into weights, or their scale into them: the same model in other numbers."""

import resource

import pytest
import torch

from arl2.checkpoints.export import export_checkpoint
from arl2.checkpoints.load import load_transformer
from arl2.checkpoints.merging import merge_lora, with_published_alpha
from arl2.checkpoints.stored import load_stored
from arl2.errors import CheckpointError
from arl2.model.passes import DiffusionForcing
from arl2.model.precision import cast_model, parameter_count
from support import randn, relative, tiny_model

TOLD = {"text_len": 5, "block_frames": 2}


def flow_of(model) -> torch.Tensor:
    text = randn(1, 5, 10, seed=2)
    with torch.no_grad():
        flow = model(randn(1, 3, 4, 4, 4, seed=1), torch.full((1, 4), 500.0), text, run=DiffusionForcing())
    assert flow is not None
    return flow


@pytest.mark.parametrize(
    ("plan", "changes"),
    [("HSH", {}), ("SH", {"ffn_rank_layers": "all"}), ("H", {"low_rank_alpha": 3.0}), ("H", {"state_rank": 0})],
)
def test_a_merged_model_is_the_same_model(plan, changes) -> None:
    model = tiny_model(plan, **changes)
    result = merge_lora(model)
    assert relative(flow_of(result.model), flow_of(model)) < 1e-5
    halves = len(plan) if changes.get("ffn_rank_layers") == "all" else plan.count("H")
    assert result.merged == 2 * halves
    assert result.kept == (0 if changes.get("state_rank") == 0 else 3 * plan.count("H"))
    assert result.parameters_saved == parameter_count(model) - parameter_count(result.model) > 0
    assert result.model.config.ffn_rank == 0
    # Without the change it would be another model.
    for name, parameter in model.named_parameters():
        if ".change.B" in name:
            parameter.data.zero_()
    assert relative(flow_of(model), flow_of(result.model)) > 1e-3


def test_merging_leaves_the_model_and_its_other_tensors_alone() -> None:
    model = tiny_model("HS")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = merge_lora(model).model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    name = "layers.0.self_attention.state.changes.q.A"
    assert merged[name].data_ptr() == model.state_dict()[name].data_ptr()
    assert merge_lora(tiny_model("SS")).merged == 0


def test_a_sum_in_half_precision_is_rounded_once() -> None:
    model = cast_model(tiny_model("H"), torch.bfloat16)
    part = model.layers[0].ffn.up
    exact = part.linear.weight.double() + part.change.scale * (part.change.A.double() @ part.change.B.double()).T
    assert torch.equal(merge_lora(model).model.layers[0].ffn.up.weight, exact.bfloat16())


@pytest.mark.parametrize("alpha", [2.0, 4.0, 32.0, 3.0, None])
def test_published_files_carry_any_alpha(tmp_path, alpha) -> None:
    """Readers take 32 whatever the rank (2 here); a file never says."""
    model = tiny_model("HS", low_rank_alpha=alpha)
    export_checkpoint(model, tmp_path / "model.pt")
    loaded = load_transformer(tmp_path / "model.pt", **TOLD)
    assert relative(flow_of(loaded), flow_of(model)) < 1e-6
    if alpha != 3.0:  # a power of two is no rounding
        assert torch.equal(flow_of(loaded), flow_of(model))
    kept = with_published_alpha(model)
    assert (kept is model) == (alpha == 32.0)


def test_published_files_of_any_rank(tmp_path) -> None:
    model = tiny_model("HS", state_rank=5, ffn_rank=3)
    export_checkpoint(model, tmp_path / "model.pt")
    assert relative(flow_of(load_transformer(tmp_path / "model.pt", **TOLD)), flow_of(model)) < 1e-6


def test_tensors_keep_their_own_dtypes(tmp_path) -> None:
    """As a trained student is stored: frozen weights in half precision, what trained in float32."""
    model = cast_model(tiny_model("HS"), torch.bfloat16)
    phi = model.layers[0].self_attention.state.phi_q
    phi.data = phi.data.float() + 1e-4
    model.save_pretrained(tmp_path / "folder")
    stored = load_stored(tmp_path / "folder").state_dict()
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        name: tensor.dtype for name, tensor in model.state_dict().items()
    }
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError):
        load_stored(tmp_path / "nothing")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, suffix) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # as a full disk: the system refuses to write on
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            export_checkpoint(tiny_model("S"), tmp_path / f"model{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
