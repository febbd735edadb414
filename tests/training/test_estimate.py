"""What a dry run says a step takes, held against what a step does take."""

import pytest
import torch

from arl2.attention.memory import MemoryGeometry
from arl2.errors import GeometryError
from arl2.model.passes import TeacherForcing
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.training.conversion.estimate import estimate_step
from arl2.training.conversion.trainable import parameter_table, unfreeze
from arl2.training.conversion.watching import watched_attention

FRAMES = 9
MANY_FRAMES = 24


def a_model(plan: str, heads: int, head_dim: int, ffn: int, **changes) -> CausalWanTransformer3DModel:
    sizes = {"text_dim": 16, "text_len": 8, "freq_dim": 32, "block_frames": 3, "state_rank": 4, "ffn_rank": 4}
    return CausalWanTransformer3DModel(plan, heads, head_dim, ffn, **sizes, **changes)


def forward(model: CausalWanTransformer3DModel, frames: int) -> None:
    latents = torch.randn(1, 16, frames, 8, 8)
    model(latents, torch.full((1, frames), 500.0), torch.randn(1, 8, 16), run=TeacherForcing(latents))


def kept(model: CausalWanTransformer3DModel, *, layers_alone: bool, frames: int = FRAMES) -> int:
    """Bytes that autograd saves, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, int] = {}
    alive = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        alive.append(x)  # an address is not used again while its tensor lives
        return x

    calls = {}
    if layers_alone:
        with torch.no_grad(), watched_attention(model, range(len(model.layers)), calls.__setitem__):
            forward(model, frames)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        if not layers_alone:
            forward(model, frames)
        for i, call in calls.items():
            model.layers[i].self_attention(call.input, call.rotation, call.layout)
    return sum(held.values())


def estimated_bytes(model: CausalWanTransformer3DModel, *, layers_alone: bool, frames: int = FRAMES) -> int:
    """Activations that a step is estimated to keep, without checkpointing."""
    step = estimate_step(
        model.config,
        model.config,
        parameter_table(model, 2),
        MemoryGeometry(1, 4, 4, 3),
        frames=frames,
        first_block_frames=None,
        checkpointing=False,
        layers_alone=layers_alone,
    )
    return step.activation_bytes


@pytest.mark.parametrize("layers_alone", [False, True])
@pytest.mark.parametrize(
    ("plan", "heads", "head_dim", "ffn"),
    [("HHHHHH", 4, 16, 128), ("HHHHHH", 2, 64, 512), ("HSHSHS", 4, 32, 256), ("WKGVWK", 4, 32, 256)],
)
def test_what_is_kept_is_about_what_autograd_keeps(plan, heads, head_dim, ffn, layers_alone):
    if layers_alone:
        plan = plan.replace("S", "H")
    model = a_model(plan, heads, head_dim, ffn)
    unfreeze(model, 1 if layers_alone else 2)
    counted = estimated_bytes(model, layers_alone=layers_alone)
    measured = kept(model, layers_alone=layers_alone)
    # What passes through, and the outputs of layers on their own, come on top.
    assert 0.8 * measured < counted < 1.6 * measured


@pytest.mark.parametrize("layers_alone", [False, True])
@pytest.mark.parametrize(
    ("plan", "heads", "head_dim"), [("HWHW", 4, 32), ("WWHH", 2, 64), ("KGKG", 4, 32), ("VVV", 4, 32)]
)
def test_what_the_write_to_a_second_state_keeps_is_counted(plan, heads, head_dim, layers_alone):
    """A horizon of two blocks: all but the first one are written twice."""
    counted, measured = [], []
    for horizon in (None, 6):
        model = a_model(plan, heads, head_dim, 256, state_horizon=horizon)
        unfreeze(model, 1 if layers_alone else 2)
        counted.append(estimated_bytes(model, layers_alone=layers_alone, frames=MANY_FRAMES))
        measured.append(kept(model, layers_alone=layers_alone, frames=MANY_FRAMES))
    # The estimate counts all blocks, of which a clip writes the first and the last less often.
    assert 1.0 < (counted[1] - counted[0]) / (measured[1] - measured[0]) < 1.7
    assert 0.8 * measured[1] < counted[1] < 1.6 * measured[1]


@pytest.mark.parametrize("layers_alone", [False, True])
def test_scores_that_log_sum_exp_keeps_are_counted(layers_alone):
    """Many heads on few channels, so that they weigh; in stage 1 no gradient reaches them."""
    states = [None, {"mixing": "log-sum-exp"}]
    models = [a_model("WWW", 16, 8, 64, window=6, state_form=form) for form in states]
    counted, measured = [], []
    for model in models:
        unfreeze(model, 1 if layers_alone else 2)
        counted.append(estimated_bytes(model, layers_alone=layers_alone))
        measured.append(kept(model, layers_alone=layers_alone))
    if layers_alone:
        assert counted[1] == counted[0]
        assert measured[1] < 1.1 * measured[0]
    else:
        assert counted[1] - counted[0] == pytest.approx(measured[1] - measured[0], rel=0.25)
        assert counted[1] > 1.1 * counted[0]


def test_a_long_clip_of_the_published_size():
    """A clip of 21 latent frames: both halves must fit on 80 GB with activations computed again."""
    with torch.device("meta"):
        teacher, student = (
            CausalWanTransformer3DModel(plan, 12, 128, 8960, state_rank=rank, ffn_rank=rank)
            for plan, rank in (("S" * 30, 0), ("H" * 22 + "S" * 8, 16))
        )
    table = parameter_table(student, 2)

    def estimate(checkpointing: bool, frames: int = 21):
        return estimate_step(
            teacher.config,
            student.config,
            table,
            MemoryGeometry(1, 30, 52, 3),
            frames=frames,
            first_block_frames=None,
            checkpointing=checkpointing,
            layers_alone=False,
        )

    lean, full = estimate(True), estimate(False)
    assert lean.tokens == 2 * 21 * 30 * 52
    assert lean.memory_bytes < 80e9 < full.memory_bytes
    assert lean.flops > full.flops
    assert lean.training_bytes == 16 * 24_826_384
    assert "TFLOP" in lean.text()
    with pytest.raises(GeometryError, match="20 latent frames do not fit"):
        estimate(True, 20)
