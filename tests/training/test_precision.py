"""Half-precision compute beside float32 masters: nearly the same loss, and what trains is never rounded."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tests.training.conversion import align_config, distill_config, loop, task_of

from arl2.files.records import record_to_mapping
from arl2.training.conversion.trainable import trained_parameters
from arl2.training.engine.loop import train
from arl2.training.engine.task import Batch

STAGES = {"align": align_config, "distill": distill_config}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("precision")


def half(folder: Path, stage: str, **changes: object):
    return STAGES[stage](folder, loop=loop(compute="bfloat16", **changes))


@pytest.mark.parametrize("stage", STAGES)
def test_loss_and_gradients_are_nearly_those_of_float32(stage, folder):
    losses, gradients = [], []
    for config in (STAGES[stage](folder), half(folder, stage)):
        task = task_of(config)
        found = [task.loss(Batch.keyed(0, step, 0, 1)) for step in range(2)]
        losses.append([one.value.item() for one in found])
        assert all(one.value.dtype == torch.float32 for one in found)
        torch.stack([one.value for one in found]).sum().backward()
        gradients.append({name: p.grad for name, p in task.trained.items()})
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    exact, rounded = (torch.cat([g.flatten() for g in found.values()]) for found in gradients)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.99


@pytest.mark.parametrize("stage", STAGES)
def test_masters_stay_float32_and_frozen_weights_are_stored_as_they_came(stage, folder, tmp_path):
    config = half(folder, stage, steps=2, learning_rate=1e-5)
    task = task_of(config)
    before = {name: p.detach().clone() for name, p in task.trained.items()}
    frozen = {n: p for n, p in task.student.named_parameters() if n not in trained_parameters(task.student, 2)}
    assert frozen["layers.0.self_attention.shared.to_q.weight"].dtype == torch.bfloat16
    assert frozen["layers.0.self_attention.shared.norm_q.weight"].dtype == torch.float32
    assert frozen["time_embedder.linear_1.weight"].dtype == torch.float32

    train(task, config.loop, tmp_path, run_config=record_to_mapping(config), console=Console(quiet=True))
    assert all(p.dtype == torch.float32 for p in task.trained.values())
    # Steps far below bfloat16's precision add up.
    moved = [name for name, p in task.trained.items() if not torch.equal(p, before[name])]
    assert len(moved) == len(before)
    phi = "layers.0.self_attention.state.phi_q"
    change = (task.trained[phi] - before[phi]).abs().max()
    assert 0 < change < torch.finfo(torch.bfloat16).eps / 10
    state = load_file(tmp_path / "checkpoints" / "step-000000002" / "state.safetensors")
    assert all(x.dtype == torch.float32 for name, x in state.items())

    weights = "transformer/diffusion_pytorch_model.safetensors"
    got = {name.replace(".linear.", "."): x for name, x in load_file(tmp_path / "export" / weights).items()}
    assert all(torch.equal(got[name], x) for name, x in load_file(folder / "teacher" / weights).items())
    assert all(got[name.replace(".linear.", ".")].dtype == torch.float32 for name in task.trained)


def test_pictures_and_evaluation_in_half_precision(folder, tmp_path):
    task = task_of(half(folder, "distill"))
    assert 0 < task.evaluate()["rollout_distance"] < 1
    task.contact_sheet(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 500
