"""q, k and v as one product: the same model, the same names, no second copy of the weights."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from arl2.attention.projections import Projections
from arl2.kernels.linear import linear
from arl2.model.precision import cast_model
from arl2.model.transformer import CausalWanTransformer3DModel
from support import ROUNDING, randn, relative, tiny_model

WIDTH = 24


@pytest.fixture
def projections() -> Projections:
    torch.manual_seed(0)
    return Projections(WIDTH, 3, 1e-6)


def products(monkeypatch) -> list[int]:
    """Output widths of the products of ``Projections`` from now on."""
    widths: list[int] = []

    def counting(x, weight, bias=None):
        widths.append(len(weight))
        return linear(x, weight, bias)

    for module in ("projections", "lora"):
        monkeypatch.setattr(f"arl2.attention.{module}.linear", counting, raising=False)
    monkeypatch.setattr("arl2.kernels.linear.linear", counting)
    return widths


@torch.no_grad()
def test_one_product_in_place_of_three_and_one_in_place_of_two(projections, monkeypatch):
    x = randn(2, 5, WIDTH)
    apart, keys_apart = projections.project(x), projections.project_keys(x)
    projections.fuse_projections()
    widths = products(monkeypatch)
    together, keys_together = projections.project(x), projections.project_keys(x)
    assert widths == [3 * WIDTH, 2 * WIDTH]
    # The library may sum a wider product in another order.
    for ours, theirs in zip((*together, *keys_together), (*apart, *keys_apart), strict=True):
        assert relative(ours, theirs) < ROUNDING[torch.float32]


def test_no_number_is_kept_twice_and_no_name_changes(projections):
    before = {name: own.clone() for name, own in projections.state_dict().items()}
    projections.fuse_projections()
    after = projections.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], own) for name, own in before.items())
    weights = [projections.to_q.weight, projections.to_k.weight, projections.to_v.weight]
    assert len({own.untyped_storage().data_ptr() for own in weights}) == 1
    assert weights[0].untyped_storage().nbytes() == sum(own.nbytes for own in weights)
    projections.unfuse_projections()
    assert len({own.untyped_storage().data_ptr() for own in weights}) == 3
    assert all(torch.equal(projections.state_dict()[name], own) for name, own in before.items())


def written_in_place(one: Projections) -> None:
    one.to_k.weight.mul_(2)


def loaded(one: Projections) -> None:
    one.load_state_dict({name: own + 1 for name, own in one.state_dict().items()})


def assigned(one: Projections) -> None:
    one.load_state_dict({name: own + 1 for name, own in one.state_dict().items()}, assign=True)


def another_tensor(one: Projections) -> None:
    one.to_v.bias.data = one.to_v.bias + 1


def cast(one: Projections) -> None:
    one.to(torch.float64)


def hooked(one: Projections) -> None:
    one.to_q.register_forward_hook(lambda layer, inputs, output: output + 1)


def wrapped(one: Projections) -> None:
    """As diffusers' hooks do, which keep weights in 8 bits or on another device."""
    inner = one.to_v.forward
    one.to_v.forward = lambda x: inner(x) + 1  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [written_in_place, loaded, assigned, another_tensor, cast, hooked, wrapped])
@torch.no_grad()
def test_whatever_changes_a_layer_changes_the_product(projections, change):
    projections.fuse_projections()
    change(projections)
    x = randn(1, 5, WIDTH).to(projections.to_q.weight.dtype)
    expected = projections.to_q(x), projections.to_k(x), projections.to_v(x)
    for ours, theirs in zip(projections.project(x), expected, strict=True):
        assert relative(ours, theirs) < ROUNDING[torch.float32]
    for ours, theirs in zip(projections.project_keys(x), expected[1:], strict=True):
        assert relative(ours, theirs) < ROUNDING[torch.float32]


@torch.no_grad()
def test_what_is_moved_stays_fused_and_a_copy_stands_for_itself(projections, monkeypatch):
    projections.fuse_projections()
    projections.to(torch.float64)
    widths = products(monkeypatch)
    projections.project(randn(1, 5, WIDTH, dtype=torch.float64))
    assert widths == [3 * WIDTH]
    twin = copy.deepcopy(projections)
    twin.to_q.weight.zero_()
    twin.to_q.bias.zero_()
    x = randn(1, 5, WIDTH, dtype=torch.float64)
    assert not twin.project(x).q.any()
    assert projections.project(x).q.any()


def test_gradients_go_to_the_three_layers(projections):
    projections.fuse_projections()
    sum(part.sum() for part in projections.project(randn(1, 5, WIDTH))).backward()
    assert all(one.weight.grad is not None for one in (projections.to_q, projections.to_k, projections.to_v))


def streamed(model: CausalWanTransformer3DModel) -> torch.Tensor:
    """The flow of a third block."""
    memory = model.allocate_memory(batch=1, height=16, width=16)
    prompt = model.prompt_context(randn(1, 5, 10).to(model.compute_dtype))
    for seed in range(2):
        model.commit(randn(1, 3, 2, 16, 16, seed=seed), torch.zeros(1, 2), prompt, memory)
    return model.predict(randn(1, 3, 2, 16, 16, seed=2), torch.full((1, 2), 500.0), prompt, memory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_fused_model_streams_the_same(dtype):
    model = cast_model(tiny_model("HSH"), dtype)
    apart = streamed(model)
    model.fuse_qkv_projections()
    together = streamed(model)
    model.unfuse_qkv_projections()
    # In bfloat16 one rounding that falls otherwise is carried on through three layers.
    assert relative(together, apart) < ROUNDING[dtype]
    assert torch.equal(streamed(model), apart)


def test_a_fused_model_is_saved_as_any_other(tmp_path):
    model = tiny_model("HS")
    model.save_pretrained(tmp_path / "apart")
    expected = {name: own.clone() for name, own in model.state_dict().items()}
    model.fuse_qkv_projections()
    model.save_pretrained(tmp_path / "fused")
    name = "diffusion_pytorch_model.safetensors"
    saved, plain = (load_file(tmp_path / folder / name) for folder in ("fused", "apart"))
    assert saved.keys() == plain.keys()
    assert all(torch.equal(saved[key], plain[key]) for key in plain)
    again = CausalWanTransformer3DModel.from_pretrained(tmp_path / "fused")
    assert all(torch.equal(own, expected[key]) for key, own in again.state_dict().items())


class Adapter(torch.nn.Module):
    """Stands around a layer and shows its weights, as libraries of adapters do."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> torch.Tensor:
        return self.layer.weight

    @property
    def bias(self) -> torch.Tensor:
        return self.layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + 1


@torch.no_grad()
def test_an_adapter_around_a_fused_layer_is_called(projections):
    x = randn(2, 5, WIDTH)
    projections.fuse_projections()
    plain = projections.project(x)
    projections.to_q = Adapter(projections.to_q)
    assert relative(projections.project(x).q, plain.q + 1) < ROUNDING[torch.float32]
