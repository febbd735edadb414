"""Stage 2: the loss is the plain formula, the context may be the student's own, and what is kept is kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests.training.conversion import FRAMES, distill_config, loop, task_of, teacher_folder

from arl2.checkpoints.load import load_transformer
from arl2.errors import CheckpointError, ConfigError
from arl2.files.records import record_to_mapping
from arl2.geometry import split_blocks
from arl2.model.passes import TeacherForcing
from arl2.pipeline.assemble import load_components
from arl2.pipeline.options import ModelSource
from arl2.training.conversion.batches import ClipBatch
from arl2.training.conversion.cluster import Cluster
from arl2.training.conversion.distill import DistillTask
from arl2.training.conversion.dry_run import Sketch
from arl2.training.conversion.pictures import RolloutSpec, roll_out
from arl2.training.conversion.students import load_teacher, with_window
from arl2.training.conversion.timestep_means import TimestepMeans
from arl2.training.engine.loop import train
from arl2.training.engine.noising import NoisyClips, noised
from arl2.training.engine.processes import Processes
from arl2.training.engine.progress import read_metrics
from arl2.training.engine.task import Batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distill")


def a_task(folder: Path, **changes: object) -> DistillTask:
    task = task_of(distill_config(folder, **changes))
    assert isinstance(task, DistillTask)
    return task


def drawn_again(task: DistillTask, batch: Batch) -> tuple[ClipBatch, NoisyClips]:
    """What the loss of a batch off policy is computed on, drawn by hand."""
    draw = _after(batch.generator)
    clips = task.clips.sample(2, FRAMES, draw)
    return clips, noised(clips.latents, split_blocks(FRAMES, 3), task.sigmas, draw)


def with_means(means: TimestepMeans) -> TimestepMeans:
    """Levels that were seen before, with means of their own."""
    means.means.copy_(torch.linspace(0.5, 2.0, 10))
    means.steps.fill_(3)
    return means


def test_the_loss_is_the_plain_formula(folder):
    task = a_task(folder, frames=(FRAMES,), on_policy_share=0.0, hidden_weight=0.5, hidden_every=1, data_weight=0.25)
    with_means(task.level_means)
    loss = task.loss(Batch.keyed(3, 1, 0, 1))

    clips, noisy = drawn_again(task, Batch.keyed(3, 1, 0, 1))
    states: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}
    flows = {}
    for name, model in (("student", task.student), ("teacher", task.teacher.model)):
        handles = [layer.register_forward_hook(lambda m, x, y, n=name: states[n].append(y)) for layer in model.layers]
        with torch.no_grad():
            flows[name] = model(noisy.noisy, noisy.timestep, clips.text, run=TeacherForcing(noisy.clean))
        for handle in handles:
            handle.remove()
    total = 0.0
    for sample in range(2):
        for block in range(3):
            part = slice(3 * block, 3 * block + 3)
            error = (flows["student"] - flows["teacher"])[sample, :, part].square().mean()
            bucket = min(int(noisy.sigma[sample, block] * 10), 9)
            total += error / torch.linspace(0.5, 2.0, 10)[bucket] / 6
    hidden = sum((a - b).square().mean() / b.square().mean() for a, b in zip(*states.values(), strict=True)) / 2
    data = (flows["student"] - (noisy.noise - noisy.clean)).square().mean()
    assert loss.value.item() == pytest.approx(float(total + 0.5 * hidden + 0.25 * data), rel=1e-5)
    assert loss.logs["hidden_error"].item() == pytest.approx(float(hidden), rel=1e-5)


def test_at_the_start_a_student_errs_in_later_blocks_only(folder):
    task = a_task(folder)
    clips = task.clips.held_out(range(2), FRAMES)
    noisy = noised(clips.latents, split_blocks(FRAMES, 3), task.sigmas, torch.Generator().manual_seed(0))
    flows = task.follow(clips, noisy)
    first, *later = noisy.block_means((flows.student - flows.teacher).square()).unbind(1)
    assert first.max() < 1e-10
    assert all(error.min() > 1e-4 for error in later)
    assert not flows.teacher.requires_grad


def test_errors_weigh_more_where_the_teacher_needs_its_memory(folder):
    """The weighted loss is the plain formula; nothing that lies within the student's window weighs more."""
    how = {"frames": (FRAMES,), "on_policy_share": 0.0, "teacher_window": "all", "student_window": 3, "plan": "HS"}
    task = a_task(folder, memory_weight=4.0, **how)
    clips = task.clips.held_out(range(2), FRAMES)
    noisy = noised(clips.latents, split_blocks(FRAMES, 3), task.sigmas, torch.Generator().manual_seed(0))
    flows = task.follow(clips, noisy)
    needed = task.memory_needed(clips, noisy, flows.teacher)
    first, second, third = needed.unflatten(2, (3, 3)).mean((1, 3, 4, 5)).unbind(1)
    assert first.max() < 1e-9
    assert min(second.min(), third.min()) > 1e-6
    with torch.no_grad():
        short = with_window(task.teacher.model, 3)(
            noisy.noisy, noisy.timestep, clips.text, run=TeacherForcing(noisy.clean)
        )
    plain = (flows.teacher - short).square().mean(1, keepdim=True) / flows.teacher.square().mean()
    torch.testing.assert_close(needed, plain)

    with_means(task.level_means)
    means = with_means(TimestepMeans(10, 0.98, torch.device("cpu")))
    loss = task.loss(Batch.keyed(3, 1, 0, 1))
    clips, noisy = drawn_again(task, Batch.keyed(3, 1, 0, 1))
    flows = task.follow(clips, noisy)
    square = (flows.student - flows.teacher).square()
    weighted = noisy.block_means(square * (1 + 4 * task.memory_needed(clips, noisy, flows.teacher)))
    expected = means.divided(weighted, noisy.sigma).mean().item()
    assert loss.value.item() == pytest.approx(expected, rel=1e-5)
    assert expected > means.divided(noisy.block_means(square), noisy.sigma).mean().item() * 1.01
    assert loss.logs["flow_error"].item() == pytest.approx(square.mean().item(), rel=1e-5)
    passes = [Sketch.of(distill_config(folder, memory_weight=w, **how)).step().teacher_flops for w in (0.0, 4.0)]
    assert passes[0] < passes[1] < 2 * passes[0]  # a shorter window is cheaper
    with pytest.raises(ConfigError, match="give a student_window shorter"):
        a_task(folder, memory_weight=1.0, teacher_window=6, student_window=6)


def test_on_policy_the_context_is_what_the_student_rolls_out(folder):
    """The clip that is scored continues its known blocks exactly as the student's stream does."""
    task = a_task(folder, on_policy_share=1.0, on_policy_known=(1,), frames=(FRAMES,))
    seen = []
    model = task.teacher.model
    forward = model.forward
    model.forward = lambda *given, run: (seen.append((run.clean, given[2])), forward(*given, run=run))[1]
    loss = task.loss(Batch.keyed(0, 0, 0, 1))
    assert loss.value.requires_grad
    (clean, text), *_ = seen
    given = task.clips.sample(2, FRAMES, _after(Batch.keyed(0, 0, 0, 1).generator)).latents
    assert torch.equal(clean[:, :, :3], given[:, :, :3])
    assert not torch.allclose(clean[:, :, 3:], given[:, :, 3:])

    draw = _after(Batch.keyed(0, 0, 0, 1).generator)
    task.clips.sample(2, FRAMES, draw)
    seed = int(torch.randint(2**62, (1,), generator=draw))
    spec = RolloutSpec(task.teacher.settings, 8, 8, FRAMES, seed)
    again = roll_out(task.student, text, spec, known=given[:, :, :3])
    assert torch.equal(again, clean)
    # Another past gives another continuation: memory was read.
    other = roll_out(task.student, text, spec, known=-given[:, :, :3])
    assert not torch.allclose(other[:, :, 3:], clean[:, :, 3:])


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_resampled_context_goes_where_the_clip_goes_and_the_teacher_keeps_the_clip(rounds, folder):
    task = a_task(
        folder, on_policy_share=0.0, resampled_share=1.0, resample_rounds=(rounds,), frames=(FRAMES,), hidden_weight=0.1
    )
    seen = {}
    for name, model in (("teacher", task.teacher.model), ("student", task.student)):
        forward, passes = model.forward, seen.setdefault(name, [])
        model.forward = lambda *given, run, forward=forward, passes=passes: (
            passes.append((run.clean, given[0])),
            forward(*given, run=run),
        )[1]
    loss = task.loss(Batch.keyed(0, 0, 0, 1))
    loss.value.backward()
    assert all(parameter.grad is not None for parameter in task.trained.values())
    given = task.clips.sample(2, FRAMES, _after(Batch.keyed(0, 0, 0, 1).generator)).latents
    ((taught, noisy),) = seen["teacher"]
    assert torch.equal(taught, given)
    *sampling, (context, same) = seen["student"]
    steps = len(task.teacher.settings.steps)
    assert (len(sampling), torch.equal(same, noisy)) == (rounds * steps, True)
    assert torch.equal(context[:, :, :3], given[:, :, :3])
    assert not torch.allclose(context[:, :, 3:], given[:, :, 3:])
    # What each round's blocks come after: the clip, then what the round before made of it.
    for number in range(rounds):
        pasts = [clean for clean, _ in sampling[number * steps : (number + 1) * steps]]
        assert all(torch.equal(past, pasts[0]) for past in pasts)
        assert torch.equal(pasts[0], given) is (number == 0)


def test_contexts_are_resampled_in_few_steps_alone(folder, tmp_path):
    many = teacher_folder(tmp_path / "many")
    settings = json.loads((many / "generation.json").read_text())
    (many / "generation.json").write_text(json.dumps({**settings, "solver": "unipc"}))
    with pytest.raises(ConfigError, match="the teacher samples with unipc"):
        a_task(folder, teacher=str(many), resampled_share=0.5)
    a_task(folder, teacher=str(many))


def test_all_batches_of_a_step_roll_out_or_none(folder):
    """Processes wait for one another, so a step with one rollout takes as long as a step of them."""
    task = a_task(folder, on_policy_share=0.5, on_policy_known=(0, 1), frames=(FRAMES,))
    known = []

    def counted(clips: ClipBatch, batch: Batch) -> ClipBatch:
        known.append(int(torch.randint(2, (1,), generator=batch.common)))
        return clips

    task._rolled_out = counted
    steps = []
    for step in range(12):
        known.clear()
        for slot in range(3):
            task.loss(Batch.keyed(0, step, slot, 3))
        assert len(known) in (0, 3)
        assert len(set(known)) <= 1
        steps.append(tuple(known))
    assert len(set(steps)) == 3


def test_a_run_is_planned_with_the_share_of_its_rollouts(folder):
    """Whole steps roll out, so what they cost in the mean is their share, however many GPUs there are."""

    def flops(share: float, gpus: int) -> float:
        return Sketch.of(distill_config(folder, on_policy_share=share)).on(Cluster(gpus)).batch_flops

    none, half, all_steps = (flops(share, 1) for share in (0.0, 0.5, 1.0))
    assert none < half < all_steps
    assert half - none == pytest.approx((all_steps - none) / 2)
    assert flops(0.5, 2) == half

    def resampling(share: float, rounds: tuple[int, ...], on_policy: float = 0.0) -> float:
        changes = {"on_policy_share": on_policy, "resampled_share": share, "resample_rounds": rounds}
        return Sketch.of(distill_config(folder, **changes)).on(Cluster(1)).batch_flops - flops(on_policy, 1)

    one = resampling(1.0, (1,))
    assert one > 0
    assert resampling(0.5, (1, 3)) == pytest.approx(one)
    assert resampling(1.0, (1,), 0.75) == pytest.approx(one / 4)


def _after(draw: torch.Generator) -> torch.Generator:
    """Past the draw of the clip's length."""
    torch.randint(1, (1,), generator=draw)
    return draw


def test_windows_of_teacher_and_student_differ_if_asked(folder):
    task = a_task(folder, teacher_window="all", student_window=3, plan="HS")
    assert (task.teacher.model.config.window, task.student.config.window) == (None, 3)
    assert task.student.layers[1].self_attention.spec.window == 3
    latents, text = torch.randn(1, 3, 9, 8, 8), torch.randn(1, 4, 10)

    def last_flow(model: torch.nn.Module, past: torch.Tensor) -> torch.Tensor:
        run = TeacherForcing(torch.cat([past, latents[:, :, 3:]], 2))
        with torch.no_grad():
            return model(latents, torch.full((1, 9), 500.0), text, run=run)[:, :, 6:]

    teacher = load_teacher(task.config.teacher, device="cpu").model
    for window, sees in ((3, False), (6, True), (None, True)):  # through two layers, two blocks reach back a third
        model = with_window(teacher, window)
        one, other = (last_flow(model, past) for past in (latents[:, :, :3], -latents[:, :, :3]))
        assert torch.equal(one, other) is not sees
        assert model.config.window == window
    assert with_window(teacher, 6) is teacher
    # "model" is the window of the teacher's file, whatever the teacher is given here.
    assert a_task(folder, teacher_window="all", student_window="model").student.config.window == 6
    # The student's stream keeps no more than its window.
    memory = task.student.allocate_memory(batch=1, height=8, width=8)
    for start in (0, 3, 6):
        part = latents[:, :, start : start + 3]
        task.student.commit(part, torch.zeros(1, 3), text, memory)
    assert sum(x.shape[1] for x in memory.layers[1].held().values()) <= 2 * 3 * 16


@settings(deadline=None, max_examples=30)
@given(
    steps=st.lists(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 10)), min_size=1, max_size=6), max_size=5),
    cut=st.integers(1, 4),
)
def test_level_means_do_not_depend_on_how_a_step_is_cut_into_batches(steps, cut):
    whole, parts = (TimestepMeans(4, 0.9, torch.device("cpu")) for _ in range(2))
    for step in steps:
        sigma, errors = (torch.tensor([list(values)]) for values in zip(*step, strict=True))
        scaled = whole.divided(errors, sigma)
        pieces = [parts.divided(errors[:, i : i + cut], sigma[:, i : i + cut]) for i in range(0, errors.shape[1], cut)]
        seen = whole.steps[(sigma * 4).long().clamp(max=3)] > 0
        # A level that has a mean is divided by it, whatever else the batch holds.
        torch.testing.assert_close(torch.cat(pieces, 1)[seen], scaled[seen])
        for means in (whole, parts):
            means.end_step(Processes())
        torch.testing.assert_close(whole.means, parts.means)
        assert torch.equal(whole.steps, parts.steps)


def test_level_means_follow_their_level():
    means = TimestepMeans(2, 0.5, torch.device("cpu"))
    sigma = torch.tensor([[0.1, 0.9]])
    for _ in range(12):
        means.divided(torch.tensor([[1.0, 100.0]]), sigma)
        means.end_step(Processes())
    torch.testing.assert_close(means.means, torch.tensor([1.0, 100.0]))
    torch.testing.assert_close(means.divided(torch.tensor([[1.0, 100.0]]), sigma), torch.ones(1, 2))
    # A level where nothing is wrong yet is not blown up.
    means.means[0] = 0.0
    assert means.divided(torch.tensor([[1.0, 100.0]]), sigma)[0, 0] == pytest.approx(1 / (0.01 * 50))
    with pytest.raises(ConfigError, match="level_buckets is 0"):
        TimestepMeans(0, 0.5, torch.device("cpu"))


def test_a_run_lowers_the_error_and_exports_a_whole_student(folder, tmp_path):
    config = distill_config(
        folder,
        loop=loop(steps=8, evaluate_first=True, pictures_every=100, learning_rate=3e-2, average_decay=0.3),
        on_policy_share=0.3,
        activation_checkpointing=True,
        student_window=3,
    )
    result = train(
        task_of(config), config.loop, tmp_path, run_config=record_to_mapping(config), console=Console(quiet=True)
    )
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records[-1]["held_out_error"] < 0.9 * records[0]["held_out_error"]
    assert {"rollout_distance", "held_out_error"} <= result.scores.keys()
    assert (tmp_path / "pictures" / "step-000000008.png").exists()
    parts = load_components(ModelSource(model=str(result.export)))
    assert parts.transformer.config.layer_plan == "HS"
    assert (parts.transformer.config.state_rank, parts.transformer.config.low_rank_alpha) == (2, None)
    assert parts.settings.window == 3


def test_training_continues_from_an_export_of_stage_2(folder, tmp_path):
    task = a_task(folder, plan="HW", own_block_share=0.5)
    with torch.no_grad():
        for parameter in task.trained.values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    task.export(tmp_path / "first")
    start = {"start_from": str(tmp_path / "first"), "plan": "HW"}
    student = a_task(folder, **start).student.state_dict()
    assert all(torch.equal(student[name], parameter) for name, parameter in task.trained.items())
    for changes, named in (
        ({"plan": "WH"}, "layer_plan is HW there, WH here"),
        ({"ffn_rank": 1}, "ffn_rank is 2 there, 1 here"),
        ({"state_form": {"mixing": "interpolated"}}, "state_form is None there"),
    ):
        with pytest.raises(ConfigError, match=named):
            a_task(folder, **{**start, **changes})
    with pytest.raises(ConfigError, match="give one of them"):
        a_task(folder, **start, aligned=str(tmp_path / "aligned"))
    other = teacher_folder(tmp_path / "other")
    weights = load_transformer(other / "transformer")
    with torch.no_grad():
        weights.patch_embedding.weight.add_(1.0)
    weights.save_pretrained(other / "transformer")
    with pytest.raises(CheckpointError, match="belong to another teacher"):
        a_task(folder, **start, teacher=str(other))


def test_activation_checkpointing_changes_nothing(folder):
    gradients = []
    for checkpointing in (False, True):
        task = a_task(folder, activation_checkpointing=checkpointing, hidden_weight=0.1)
        task.loss(Batch.keyed(0, 0, 0, 1)).value.backward()
        gradients.append({name: p.grad for name, p in task.trained.items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("here", [True, False])
def test_without_shards_the_models_are_whole_as_they_are(here, folder):
    task = a_task(folder)
    models = task.teacher, task.student
    with task.full_weights(here=here):
        assert (task.teacher, task.student) == models


def test_settings_that_cannot_be(folder):
    config = distill_config(folder)
    for name, value, said in (
        ("on_policy_share", 2.0, "on_policy_share is 2"),
        ("resampled_share", -0.5, "resampled_share is -0.5"),
        ("resample_rounds", (0,), "resample_rounds is"),
        ("resample_rounds", (), "give numbers from 1"),
        ("hidden_every", 0, "hidden_every 1 or more"),
        ("data_weight", -1.0, "must be 0 or more"),
        ("on_policy_known", (), "numbers of blocks"),
    ):
        with pytest.raises(ConfigError, match=said):
            replace(config, **{name: value})
    with pytest.raises(ConfigError, match="leaves nothing of a clip of 6 latent frames"):
        task_of(replace(config, on_policy_known=(0, 2)))
