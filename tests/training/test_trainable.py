"""What trains is the paper's table: counted for the published size, complete, and nothing else moves."""

import pytest
import torch
from tests.support import tiny_model

from arl2.checkpoints.conversion import convert
from arl2.errors import ConfigError
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.training.conversion.trainable import groups_of, parameter_table, unfreeze


@pytest.fixture(scope="module")
def wan() -> CausalWanTransformer3DModel:
    with torch.device("meta"):
        softmax = CausalWanTransformer3DModel("S" * 30, 12, 128, 8960)
    return convert(softmax, range(22)).model


def test_the_published_counts(wan):
    first, second = parameter_table(wan, 1), parameter_table(wan, 2)
    assert first.trained / 22 == 645_144  # 0.65 M a layer
    assert second.trained / 22 == 1_128_472  # 1.13 M a layer
    assert second.trained == 24_826_384
    assert round(100 * second.share, 2) == 1.75
    assert {row.layers for row in second.rows} == {22}
    assert first.trained + first.frozen == second.trained + second.frozen == sum(p.numel() for p in wan.parameters())
    text = second.text()
    assert "24,826,384" in text
    assert "ffn low-rank" in text


def test_every_new_parameter_trains_in_stage_2_and_the_low_ranks_not_in_stage_1():
    conversion = convert(tiny_model("SSS"), "HSH", state_rank=2, ffn_rank=3, ffn_rank_layers="all")
    trained = unfreeze(conversion.model, 2)
    assert set(trained) == set(conversion.new)
    assert {name for name, p in conversion.model.named_parameters() if p.requires_grad} == set(trained)
    aligned = unfreeze(conversion.model, 1)
    assert set(aligned) == {name for name in conversion.new if "change" not in name}
    assert not any(p.requires_grad for name, p in conversion.model.named_parameters() if name not in aligned)


def test_decay_and_its_bias_stay_float32_and_are_not_decayed():
    model = convert(tiny_model("SS").to(torch.bfloat16), "HS", state_rank=2, ffn_rank=2).model
    trained = unfreeze(model, 2)
    assert all(p.dtype == torch.float32 for p in trained.values())
    changes, decayed, plain = groups_of(model, trained, 2, weight_decay=0.1)
    assert (changes.weight_decay, decayed.weight_decay, plain.weight_decay) == (0.1, 0.1, 0.0)
    assert {name.rsplit(".", 1)[1] for name in plain.parameters} == {"A_log", "dt_bias"}
    assert changes.parameters.keys() | decayed.parameters.keys() | plain.parameters.keys() == trained.keys()


def test_low_rank_changes_are_what_muon_is_made_for():
    model = convert(tiny_model("SS"), "HS", state_rank=2, ffn_rank=2).model
    trained = unfreeze(model, 2)
    changes, *others = groups_of(model, trained, 2, weight_decay=0.1)
    assert [group.hidden for group in (changes, *others)] == [True, False, False]
    assert changes.parameters.keys() == {name for name in trained if "change" in name}
    assert all(parameter.ndim == 2 for parameter in changes.parameters.values())


def test_a_model_without_hybrid_layers_trains_nothing():
    with pytest.raises(ConfigError, match="Nothing trains in a model of plan SS"):
        unfreeze(tiny_model("SS"), 1)
