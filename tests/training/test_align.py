"""Stage 1: the loss is the plain formula, each layer on its own, and it falls."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.support import relative
from tests.training.conversion import FRAMES, align_config, loop, task_of, teacher_folder

from arl2.checkpoints.conversion import convert
from arl2.checkpoints.load import load_transformer
from arl2.errors import CheckpointError, ConfigError, GeometryError
from arl2.files.records import record_to_mapping
from arl2.geometry import split_blocks
from arl2.model.passes import TeacherForcing
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.assemble import load_components
from arl2.pipeline.options import ModelSource
from arl2.training.conversion.align import AlignTask
from arl2.training.conversion.batches import ClipBatch
from arl2.training.conversion.students import StudentSpec, load_teacher, make_student
from arl2.training.conversion.watching import watched_attention
from arl2.training.engine.loop import train
from arl2.training.engine.noising import NoisyClips, noised
from arl2.training.engine.progress import read_metrics
from arl2.training.engine.task import Batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("align")


def a_task(folder: Path, **changes: object) -> AlignTask:
    task = task_of(align_config(folder, **changes))
    assert isinstance(task, AlignTask)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        # Away from the start values, so that every parameter counts.
        for name, parameter in task.trained.items():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw) * (0.1 if "phi" in name else 1.0))
    return task


def a_batch(task: AlignTask) -> tuple[ClipBatch, NoisyClips]:
    draw = torch.Generator().manual_seed(1)
    clips = task.clips.sample(2, FRAMES, draw)
    return clips, noised(clips.latents, split_blocks(FRAMES, 3), task.sigmas, draw)


def attention_output(
    model: CausalWanTransformer3DModel, layer: int, clips: ClipBatch, noisy: NoisyClips
) -> torch.Tensor:
    """What the self-attention of one layer gives, seen by a hook on its last projection."""
    held = []
    handle = model.layers[layer].self_attention.shared.to_out.register_forward_hook(lambda m, x, y: held.append(y))
    with torch.no_grad():
        model(noisy.noisy, noisy.timestep, clips.text, run=TeacherForcing(noisy.clean))
    handle.remove()
    return held[0]


def test_the_ratio_is_the_plain_formula(folder):
    """Each layer alone made hybrid in a model of its own gets the teacher's input: no tap needed to see its output."""
    task = a_task(folder)
    clips, noisy = a_batch(task)
    with torch.no_grad():
        ratios = task.ratios(clips, noisy)
    frame = 16  # tokens
    for layer in (0, 1):
        alone = make_student(task.teacher, StudentSpec((layer,)))
        own = alone.state_dict()
        for name, parameter in task.trained.items():
            if name.startswith(f"layers.{layer}."):
                own[name].copy_(parameter)
        hybrid = attention_output(alone, layer, clips, noisy).unflatten(1, (2, FRAMES, frame))[:, :, 3:]
        softmax = attention_output(task.teacher.model, layer, clips, noisy).unflatten(1, (2, FRAMES, frame))[:, :, 3:]
        expected = ((hybrid - softmax) ** 2).mean() / (softmax**2).mean()
        assert ratios[layer].item() == pytest.approx(expected.item(), rel=1e-4)
        assert 0.01 < ratios[layer].item() < 10


def test_in_the_first_block_a_hybrid_layer_is_the_softmax_layer(folder):
    task = a_task(folder)
    clips, noisy = a_batch(task)
    calls = {}
    with torch.no_grad(), watched_attention(task.teacher.model, [0, 1], calls.__setitem__):
        task.teacher.model(noisy.noisy, noisy.timestep, clips.text, run=TeacherForcing(noisy.clean))
    for layer, call in calls.items():
        attention = task.student.layers[layer].self_attention
        with torch.no_grad():
            hybrid = attention(call.input, call.rotation, call.layout)
        for offset in call.layout.copies():
            first, later = slice(offset, offset + 48), slice(offset + 48, offset + 96)
            assert relative(hybrid[:, first], call.output[:, first]) < 1e-6
            assert relative(hybrid[:, later], call.output[:, later]) > 1e-2
    assert not task.teacher.model.layers[0].self_attention._forward_hooks


def test_layers_do_not_see_each_other(folder):
    task = a_task(folder)
    task.ratios(*a_batch(task))[0].backward()
    moved = {name.split(".")[1] for name, p in task.trained.items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {"0"}
    assert len([p for p in task.trained.values() if p.grad is not None]) == 8


def test_activation_checkpointing_changes_nothing(folder):
    gradients = []
    for checkpointing in (False, True):
        task = a_task(folder, activation_checkpointing=checkpointing)
        task.loss(Batch.keyed(0, 0, 0, 1)).value.backward()
        gradients.append({name: p.grad for name, p in task.trained.items()})
    assert all(torch.equal(x, gradients[1][name]) for name, x in gradients[0].items())


def test_a_run_lowers_every_ratio_and_its_export_is_the_teacher_with_hybrid_layers(folder, tmp_path):
    config = align_config(
        folder, loop=loop(steps=8, evaluate_first=True, pictures_every=5, learning_rate=3e-2, average_decay=0.5)
    )
    result = train(
        task := task_of(config),
        config.loop,
        tmp_path / "run",
        run_config=record_to_mapping(config),
        console=Console(quiet=True),
    )
    start, first, *_, end = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert (start["step"], first["step"], end["step"]) == (0, 1, 8)
    assert {"loss", "ratio_0", "ratio_1"} < first.keys()
    for name in ("held_out_ratio_0", "held_out_ratio_1", "held_out_ratio_median"):
        assert end[name] < 0.9 * start[name]
    pictures = sorted(path.name for path in (tmp_path / "run" / "pictures").iterdir())
    assert pictures == ["step-000000005.png", "step-000000008.png"]

    parts = load_components(ModelSource(model=str(result.export)))
    assert parts.transformer.config.layer_plan == "HH"
    assert parts.transformer.config.state_rank == parts.transformer.config.ffn_rank == 0
    assert parts.settings == task.teacher.settings
    held, own = parts.transformer.state_dict(), task.teacher.model.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in own.items())
    # Stage 2 takes these layers up; another teacher is refused, and so is a layer that was not aligned.
    again = make_student(task.teacher, StudentSpec("HS", 2, 2, aligned=str(result.export)))
    name = "layers.0.self_attention.state.phi_v"
    assert torch.equal(again.state_dict()[name], held[name])
    other = load_teacher(teacher_folder(folder / "other", "SSS"), device="cpu")
    with pytest.raises(CheckpointError, match="belong to another teacher"):
        make_student(other, StudentSpec("HSS", aligned=str(result.export)))


def test_layers_that_were_not_aligned_are_named(folder, tmp_path):
    task = task_of(align_config(folder, plan="SH"))
    assert {name.split(".")[1] for name in task.trained} == {"1"}
    task.export(tmp_path / "export")
    with pytest.raises(ConfigError, match=r"Layers \[0\] are to be converted.*aligned layers \[1\]"):
        make_student(task.teacher, StudentSpec("HS", aligned=str(tmp_path / "export")))


def test_half_precision_teachers_keep_their_dtype_and_the_new_layers_float32(folder, tmp_path):
    half = teacher_folder(tmp_path / "half")
    model = load_transformer(half / "transformer", dtype=torch.float16)
    model.save_pretrained(half / "transformer")
    task = task_of(align_config(folder, teacher=str(half)))
    task.export(tmp_path / "export")
    stored = load_transformer(tmp_path / "export" / "transformer").state_dict()
    assert stored["layers.0.ffn.up.weight"].dtype == torch.float16
    assert stored["layers.0.self_attention.state.A_log"].dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in task.student.parameters())


def test_what_cannot_be_is_refused(folder, tmp_path):
    softmax = load_transformer(teacher_folder(folder / "teacher") / "transformer")
    hybrid = teacher_folder(tmp_path / "hybrid")
    convert(softmax, "HS", state_rank=0, ffn_rank=0).model.save_pretrained(hybrid / "transformer")
    with pytest.raises(ConfigError, match=r"has converted layers \(plan HS\), but a teacher is a softmax"):
        task_of(align_config(folder, teacher=str(hybrid)))
    with pytest.raises(CheckpointError, match="There is no model 'nothing'"):
        load_teacher("nothing", device="cpu")
    with pytest.raises(GeometryError, match="3 latent frames is one block"):
        task_of(align_config(folder, frames=(3,)))
    with pytest.raises(GeometryError, match="clips of 12 latent frames, but they have 9"):
        task_of(align_config(folder, frames=(12,)))
    with pytest.raises(GeometryError, match="batch_frames = 6 cannot hold a clip of 9"):
        task_of(align_config(folder, batch_frames=6))
    with pytest.raises(ConfigError, match="held_out is 8 of 8 clips"):
        task_of(align_config(folder, held_out=8))
    with pytest.raises(ConfigError, match="names 3 layers but the model has 2"):
        task_of(align_config(folder, plan="HHH"))
    with pytest.raises(ConfigError, match="converts no layer"):
        task_of(align_config(folder, plan="SS"))
    with pytest.raises(ConfigError, match="level_share is 2"):
        task_of(align_config(folder, level_share=2.0))
