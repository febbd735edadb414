"""The DMD task: who is moved by what, on which blocks and levels, and that a student goes where it should."""

import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from rich.console import Console

from arl2.checkpoints.conversion import convert
from arl2.errors import CheckpointError, ConfigError
from arl2.files.plain import read_json
from arl2.files.records import record_to_mapping
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.model.verifier import Verifier
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.settings import settings_from_mapping
from arl2.shapes.training.captioned import load_export
from arl2.shapes.training.dmd import DmdConfig, DmdTask
from arl2.shapes.training.teacher import TeacherConfig, TeacherModelConfig, TeacherTask
from arl2.training.conversion.trainable import part_of
from arl2.training.engine.loop import LoopConfig, train
from arl2.training.engine.task import Batch

CODEC = str(files("arl2.shapes") / "weights" / "codec")
pytestmark = pytest.mark.filterwarnings("ignore:There are modules")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with weights of its own everywhere, and the same with its flow moved by 0.5."""
    folder = tmp_path_factory.mktemp("exports")
    task = TeacherTask(
        TeacherConfig(
            loop=LoopConfig(steps=1),
            codec=CODEC,
            latents=str(folder / "latents"),
            model=TeacherModelConfig(layer_plan="SS", num_attention_heads=2, attention_head_dim=12, ffn_dim=48),
            clips=16,
            clip_frames=9,
        )
    )
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
        task.export(folder / "plain")
        task.model.head.proj.bias.add_(0.5)
        task.export(folder / "moved")
    return folder


def config(exports: Path, **changes: object) -> DmdConfig:
    settings = DmdConfig(
        loop=LoopConfig(steps=3, warmup_steps=1, evaluate_every=100, adam_betas=(0.0, 0.99)),
        codec=CODEC,
        latents=str(exports / "latents"),
        start_from=str(exports / "plain"),
        clips=16,
        clip_frames=9,
        lengths=(3, 9),
        batch_frames=18,
        steps=(1000, 500),
        evaluation_clips=2,
        evaluation_frames=6,
    )
    return replace(settings, **changes)


def gradients(task: DmdTask, step: int) -> dict[str, torch.Tensor]:
    """By name, of one batch."""
    named = {name: p for group in task.parameter_groups() for name, p in group.parameters.items()}
    for parameter in named.values():
        parameter.grad = None
    task.loss(Batch.keyed(0, step, 0, 1)).value.backward()
    return {name: p.grad.clone() for name, p in named.items() if p.grad is not None and p.grad.abs().max() > 0}


def shift_critic(task: DmdTask) -> DmdTask:
    """Its critic's flow is 0.5 more than the real one's, everywhere."""
    with torch.no_grad():
        task.critic.model.head.proj.bias.add_(0.5)
    return task


def test_a_batch_is_decided_by_its_key_alone(exports):
    task = shift_critic(DmdTask(config(exports, own_context_share=0.5)))
    for step in (0, 1, 3):
        first, again = (task.loss(Batch.keyed(0, step, 0, 1)).value.item() for _ in range(2))
        assert first == again
        assert first != task.loss(Batch.keyed(1, step, 0, 1)).value.item()


@pytest.mark.parametrize("step", [0, 1], ids=["openings", "longer clips"])
def test_a_critic_that_says_what_the_real_one_says_moves_nothing(exports, step):
    task = DmdTask(config(exports))
    assert task.loss(Batch.keyed(0, step, 0, 1)).logs["moved"].item() == 0
    named = gradients(task, step)
    assert named
    assert all(name.startswith("critic.") for name in named)


@pytest.mark.parametrize("step", [0, 1], ids=["openings", "longer clips"])
def test_each_is_moved_by_its_own_loss(exports, step):
    """Student and critic have the gradients that they have when the other one is frozen; the real one has none."""
    task = shift_critic(DmdTask(config(exports)))
    both = gradients(task, step)
    assert {name.startswith("critic.") for name in both} == {True, False}
    assert all(parameter.grad is None for parameter in task.real.model.parameters())
    for frozen in (task.critic, task):
        parameters = [*frozen.model.parameters(), *frozen.text.words.encoder.parameters()]
        for parameter in parameters:
            parameter.requires_grad_(False)
        torch.testing.assert_close(gradients(task, step), {n: g for n, g in both.items() if _trains(task, n)})
        for parameter in parameters:
            parameter.requires_grad_(True)


def _trains(task: DmdTask, name: str) -> bool:
    return {n: p.requires_grad for group in task.parameter_groups() for n, p in group.parameters.items()}[name]


def test_what_is_made_should_go_from_the_critics_estimate_to_the_real_ones(exports):
    task = shift_critic(DmdTask(config(exports)))
    made = torch.randn(2, 16, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    captions, run = ["a red circle moves right", "a blue star on white"], TeacherForcing(made)
    step = task._better(made, captions, run, torch.Generator().manual_seed(1)) - made
    # The critic's flow is 0.5 more, its estimate 0.5 sigma less; divided by one number a block.
    there = task._noised(made, torch.Generator().manual_seed(1))
    sigma = there.sigma.repeat_interleave(3, 1)
    assert (step > 0).all()
    real = there.noisy - sigma[:, None, :, None, None] * task.real.flow(there.noisy, 1000 * sigma, captions, run)
    for clip in range(2):
        for start in (0, 3):
            span = slice(start, start + 3)
            away = (made - real)[clip, :, span].abs().mean()
            expected = torch.full_like(step[clip, :, span], float(0.5 * sigma[clip, start] / away))
            torch.testing.assert_close(step[clip, :, span], expected, rtol=1e-3, atol=1e-5)


def test_the_opening_of_a_longer_clip_is_not_taught(exports, monkeypatch):
    task = DmdTask(config(exports))
    better = task._better

    def opening_elsewhere(made, *rest):
        there = better(made, *rest).clone()
        there[:, :, :3] += 1
        return there

    monkeypatch.setattr(task, "_better", opening_elsewhere)
    assert task.loss(Batch.keyed(0, 1, 0, 1)).logs["moved"].item() == 0
    assert task.loss(Batch.keyed(0, 0, 0, 1)).logs["moved"].item() == pytest.approx(0.5)


def test_each_block_is_made_at_its_levels_and_the_last_one_alone_has_gradients(exports, monkeypatch):
    task = DmdTask(config(exports, first_block_steps=(1000, 750, 250)))
    seen: set[tuple[str, float]] = set()
    forward, run = task.model.forward, ""

    def watch(noisy, timestep, text, **options):
        level = float(timestep.unique())
        assert torch.is_grad_enabled() or level > 500 * (run == "longer")
        seen.add((run, level))
        return forward(noisy, timestep, text, **options)

    monkeypatch.setattr(task.model, "forward", watch)
    for seed in range(8):
        for step, run in enumerate(("opening", "longer")):  # noqa: B007 - read by watch
            assert task.loss(Batch.keyed(seed, step, 0, 1)).value.requires_grad
    # 750 and 250 are 900 and 500 under shift 3, 500 is 750.
    assert seen == {("opening", 1000.0), ("opening", 900.0), ("opening", 500.0), ("longer", 1000.0), ("longer", 750.0)}


def test_lengths_and_contexts_come_by_turns_the_same_on_all_processes(exports):
    def contexts() -> list[str | None]:
        kinds = [task._kind(step) for step in range(16)]
        assert [frames for frames, _ in kinds] == [3, 9] * 8
        assert not any(context for _, context in kinds[::2])
        return [context for _, context in kinds[1::2]]

    task = DmdTask(config(exports))
    assert contexts() == ["clip"] * 8
    task.config = config(exports, own_context_share=0.5)
    assert contexts() == ["clip", "rollout"] * 4
    task.config = config(exports, own_context_share=0.5, redrawn_share=0.5)
    assert contexts() == ["clip", "rollout", "redrawn", "rollout"] * 2


def test_a_redrawn_context_goes_where_the_clip_goes(exports):
    """Its opening is the clip's, each later block what the levels make of it after the clip's own blocks."""
    task = DmdTask(config(exports, redrawn_share=1.0))
    clips = task.clips.draw(2, 9, torch.Generator().manual_seed(0))
    text = task.text.encode_captions(clips.captions)
    redrawn = task._context("redrawn", clips.clean, text, torch.Generator().manual_seed(1))
    assert not redrawn.requires_grad
    assert torch.equal(redrawn[:, :, :3], clips.clean[:, :, :3])
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(clips.clean.shape, generator=draw)
    for level, after in ((1.0, 0.75), (0.75, None)):  # 500 is 750 under shift 3
        with torch.no_grad():
            flow = task.model(x, torch.full((2, 9), 1000 * level), text, run=TeacherForcing(clips.clean))
        made = x - level * flow
        if after is not None:
            x = (1 - after) * made + after * torch.randn(made.shape, generator=draw)
    torch.testing.assert_close(redrawn[:, :, 3:], made[:, :, 3:])


def test_own_context_is_what_the_model_rolls_out(exports):
    task = DmdTask(config(exports, own_context_share=1.0))
    clips = task.clips.draw(2, 9, torch.Generator().manual_seed(0))
    text = task.text.encode_captions(clips.captions)
    made = task._rolled_out(clips.clean, text, torch.Generator().manual_seed(1))
    assert made.shape == clips.clean.shape
    assert not made.requires_grad
    assert (made - clips.clean).std() > 0.1
    assert torch.equal(made, task._rolled_out(clips.clean, text, torch.Generator().manual_seed(1)))


def test_a_student_goes_to_where_the_real_one_draws(exports, tmp_path):
    """It begins with its flow moved by 0.5; at the only level, 1, what it makes is 0.5 too low."""
    loop = LoopConfig(
        steps=60, warmup_steps=1, learning_rate=3e-3, evaluate_every=100, adam_betas=(0.0, 0.99), average_decay=0.5
    )
    settings = config(
        exports, loop=loop, start_from=str(exports / "moved"), real=str(exports / "plain"), steps=(1000,), lengths=(3,)
    )
    task = DmdTask(settings)
    noise, timestep = torch.randn(8, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((8, 3), 1e3)
    captions = ["a red circle moves right"] * 8
    with torch.no_grad():
        wanted = task.real.flow(noise, timestep, captions, DiffusionForcing())

        def offset() -> float:
            flow = task.model(noise, timestep, task.text.encode_captions(captions), run=DiffusionForcing())
            return float((flow - wanted).mean())

        before = offset()
        with torch.enable_grad():
            result = train(task, loop, tmp_path / "run", run_config=record_to_mapping(settings), console=_quiet())
        assert before == pytest.approx(0.5, abs=0.01)
        assert abs(offset()) < 0.25
    generation = read_json(result.export / "generation.json")
    assert generation.pop("text") == "shapes"
    assert settings_from_mapping(generation, where="there").steps == (1000,)
    assert DmdTask(replace(settings, start_from=str(result.export))).model.config.layer_plan == "SS"


def _quiet() -> Console:
    return Console(quiet=True)


def test_a_hybrid_trains_what_its_conversion_did_and_keeps_the_rest(exports, tmp_path):
    plain, text = load_export(str(exports / "plain"))
    hybrid = convert(plain, "HS", state_rank=2, ffn_rank=2, seed=1).model
    hybrid.save_pretrained(tmp_path / "hybrid" / "transformer")
    text.save_pretrained(tmp_path / "hybrid" / "text")
    loop = LoopConfig(steps=2, warmup_steps=1, learning_rate=1e-2, evaluate_every=100, adam_betas=(0.0, 0.99))
    settings = config(exports, loop=loop, start_from=str(tmp_path / "hybrid"), real=str(exports / "moved"))
    task = shift_critic(DmdTask(settings))
    trained = {name for group in task.parameter_groups() for name in group.parameters}
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    assert trained >= {name for name in before if part_of(name, 2)}
    result = train(task, loop, tmp_path / "run", run_config=record_to_mapping(settings), console=_quiet())
    moved = {name for name, tensor in task.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(part_of(name, 2) for name in moved)
    pipe = ARL2Pipeline.from_pretrained(result.export)
    assert pipe.transformer.config.layer_plan == "HS"
    assert len(pipe("a red circle moves right", num_frames=21).frames[0]) == 21


def test_a_hybrid_keeps_the_verifier_of_its_start_and_a_teacher_does_not(exports, tmp_path):
    plain, text = load_export(str(exports / "plain"))
    start = tmp_path / "start"
    for name, model in (("hybrid", convert(plain, "HS", state_rank=2, ffn_rank=2, seed=1).model), ("teacher", plain)):
        shutil.copytree(exports / "plain", start / name)
        model.save_pretrained(start / name / "transformer")
        Verifier(16, 3, 8, 8, text.length, text.width, features=8, space=8).save_pretrained(start / name / "verifier")
        generation = {**read_json(start / name / "generation.json"), "first_block_candidates": 2}
        (start / name / "generation.json").write_text(json.dumps(generation))
        task = DmdTask(config(exports, start_from=str(start / name), real=str(exports / "moved")))
        task.export(tmp_path / name)
    pipe = ARL2Pipeline.from_pretrained(tmp_path / "hybrid")
    assert pipe.settings.first_block_candidates == 2
    assert len(pipe("a red circle moves right", num_frames=9).frames[0]) == 9
    # A teacher's text part trains on, so what read it before no longer fits.
    teacher = ARL2Pipeline.from_pretrained(tmp_path / "teacher")
    assert (teacher.verifier, teacher.settings.first_block_candidates) == (None, 1)


def test_clips_are_a_target_where_the_student_stands_on_them(exports):
    settings = config(exports, own_context_share=0.5)
    plain, pulled = (DmdTask(replace(settings, data_weight=weight)) for weight in (0.0, 2.0))
    for step, pulls in enumerate((False, True, False, False)):
        before, after = (task.loss(Batch.keyed(0, step, 0, 1)) for task in (plain, pulled))
        assert after.logs["moved"] == before.logs["moved"]
        extra = (after.value - before.value).item()
        assert extra == pytest.approx(2 * after.logs["data"].item(), rel=1e-4)
        assert (extra > 0) == pulls


def test_settings_that_cannot_be(exports, tmp_path):
    with pytest.raises(ConfigError, match="data_weight is -1"):
        config(exports, data_weight=-1.0)
    with pytest.raises(ConfigError, match="redrawn_share is 2"):
        config(exports, redrawn_share=2.0)
    with pytest.raises(ConfigError, match="bounce_weight is 0"):
        config(exports, bounce_weight=0.0)
    with pytest.raises(ConfigError, match="critic_rate is 0"):
        config(exports, critic_rate=0)
    with pytest.raises(ConfigError, match=r"leave first_block_fresh_below at 1 \(it is 0.8\)"):
        config(exports, first_block_fresh_below=0.8)
    with pytest.raises(ConfigError, match="whole blocks of 3"):
        DmdTask(config(exports, lengths=(4,)))
    with pytest.raises(CheckpointError, match=r"has no transformer/config\.json; give a model's name"):
        DmdTask(config(exports, start_from=str(tmp_path)))
    with pytest.raises(ConfigError, match="own_context_share is 2"):
        config(exports, own_context_share=2.0)
