"""Windows that shrink to the own block in a share of the training passes, and kinds of windowed hybrids in training."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.training.conversion import align_config, distill_config, loop, task_of

from arl2.errors import ConfigError
from arl2.files.records import record_to_mapping
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.training.conversion.align import AlignTask
from arl2.training.engine.loop import train
from arl2.training.engine.processes import Processes
from arl2.training.engine.task import Batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own-block")


def batch(step: int, slot: int = 0) -> Batch:
    return Batch.keyed(7, step, slot, 2)


def windows_of(task) -> list[int | None]:
    return [layer.self_attention.spec.window for layer in task.student.layers]


def gradients(task, step: int = 0) -> dict[str, torch.Tensor]:
    task.loss(batch(step)).value.backward()
    found = {name: x.grad.clone() for name, x in task.trained.items() if x.grad is not None}
    for x in task.trained.values():
        x.grad = None
    return found


def test_a_window_that_never_shrinks_leaves_nothing_to_learn_and_one_that_does_opens_the_state(folder):
    """The student starts as the windowed teacher, so only what a shrunk window hides is an error."""
    same, hidden = (task_of(align_config(folder, plan="WW", own_block_share=share)) for share in (0.0, 1.0))
    assert same.loss(batch(0)).value.item() < 1e-10
    assert hidden.loss(batch(0)).value.item() > 1e-3
    opened = {name for name, x in gradients(hidden).items() if float(x.abs().max()) > 0}
    assert opened == {f"layers.{i}.self_attention.openness" for i in (0, 1)}  # what stands behind a closed gate waits
    with torch.no_grad():
        for name, x in hidden.trained.items():
            if name.endswith("openness"):
                x.fill_(0.5)
    assert all(float(x.abs().max()) > 0 for x in gradients(hidden).values())


def test_each_layer_draws_for_itself_and_the_same_step_draws_the_same(folder):
    tasks = [task_of(distill_config(folder, plan="WS", own_block_share=0.5, on_policy_share=0.0)) for _ in range(2)]
    drawn = []
    for step in range(12):
        seen = []
        for task in tasks:
            loss = task.loss(batch(step, slot=step % 2)).value.item()
            seen.append((windows_of(task), loss))
        assert seen[0] == seen[1]
        drawn.append(tuple(seen[0][0]))
    # A block is three frames and the teacher's window six; layers without a state keep theirs.
    assert set(drawn) == {(3, 6), (6, 6)}
    scores = tasks[0].evaluate()
    assert scores["own_block_held_out_error"] > scores["held_out_error"]
    assert windows_of(tasks[0]) == [6, 6]


def test_other_passes_draw_a_window_for_each_layer_on_its_own(folder):
    settings = {"plan": "WW", "own_block_share": 0.25, "window_lengths": (4, 6), "on_policy_share": 0.0}
    task = task_of(distill_config(folder, **settings))
    drawn = set()
    for step in range(40):
        task.loss(batch(step))
        drawn.add(tuple(windows_of(task)))
    assert drawn == {(one, other) for one in (3, 4, 6) for other in (3, 4, 6)}
    # A window that shows less has another error than the whole one, and an evaluation sees the whole.
    task.windows.shrink(torch.tensor([False, False]), [4, None])
    assert windows_of(task) == [4, 6]
    assert task.evaluate()["own_block_held_out_error"] > 0
    assert windows_of(task) == [6, 6]


@pytest.mark.parametrize("length", [2, 7])
def test_a_length_outside_block_and_window_is_refused(length, folder):
    with pytest.raises(ConfigError, match=f"window_lengths has {length}; give latent frames from the own block, 3, to"):
        task_of(distill_config(folder, plan="WW", window_lengths=(length,)))


@pytest.mark.parametrize("config", [align_config, distill_config])
def test_layers_that_run_again_for_their_gradients_see_the_same_window(config, folder):
    settings = {"plan": "WW", "own_block_share": 0.5}
    if config is distill_config:
        settings["on_policy_share"] = 0.0
    plain, again = (task_of(config(folder, activation_checkpointing=on, **settings)) for on in (False, True))
    # A step in which one layer's window shrinks and the other's does not.
    step = next(i for i in range(100) if plain.loss(batch(i)) and len(set(windows_of(plain))) == 2)
    ours, theirs = gradients(again, step), gradients(plain, step)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-7)


def run(config, folder: Path):
    task = task_of(config)
    done = train(task, config.loop, folder, run_config=record_to_mapping(config), console=Console(quiet=True))
    return task, done


class Killed(Exception):
    pass


def test_a_run_that_was_killed_resumes_with_the_same_windows(folder, tmp_path, monkeypatch):
    config = align_config(folder, plan="WW", own_block_share=0.5, loop=loop(steps=4))
    whole, _ = run(config, tmp_path / "whole")
    with monkeypatch.context() as patched:
        loss = AlignTask.loss

        def killed(task: AlignTask, batch: Batch):
            if (batch.step, batch.slot) == (3, 1):
                raise Killed
            return loss(task, batch)

        patched.setattr(AlignTask, "loss", killed)
        with pytest.raises(Killed):
            run(config, tmp_path / "cut")
    resumed, _ = run(config, tmp_path / "cut")
    for name, x in whole.trained.items():
        assert torch.equal(resumed.trained[name], x), name


@pytest.mark.filterwarnings("ignore:There are modules")
@pytest.mark.parametrize(
    ("plan", "form"), [("WK", {"over": "evicted"}), ("GV", {"rotation": "spatial", "normalized_read": True})]
)
def test_every_kind_is_aligned_distilled_exported_and_streamed(plan, form, folder, tmp_path):
    given = {"plan": plan, "state_form": form, "own_block_share": 1.0, "loop": loop(steps=2)}
    _, first = run(align_config(folder, **given), tmp_path / "align")
    second = distill_config(folder, aligned=str(first.export), **given)
    task, done = run(second, tmp_path / "distill")
    for name, x in task.trained.items():
        assert "openness" not in name or not torch.equal(x, torch.zeros_like(x)), name
    pipe = ARL2Pipeline.from_pretrained(done.export)
    assert pipe.transformer.config.layer_plan == plan
    assert pipe.transformer.config.state_form == form
    for name in task.trained:
        # What is exported is the moving average of what trained.
        assert float(pipe.transformer.get_parameter(name).detach().abs().max()) > 0 or name.endswith(".B"), name
    with pytest.raises(ConfigError, match="give both stages the same state_form"):
        task_of(distill_config(folder, **{**given, "state_form": None, "aligned": str(first.export)}))


def test_an_error_that_first_shows_when_a_window_shrinks_does_not_blow_up_the_loss(folder):
    """The student begins as its teacher: its running mean of the error says almost nothing before that."""
    settings = {"plan": "WW", "own_block_share": 0.5, "on_policy_share": 0.0}
    task = task_of(distill_config(folder, **settings))
    values, shrunk = [], []
    for step in range(8):
        values.append(task.loss(batch(step)).value.item())
        task.end_step(Processes())
        shrunk.append(3 in windows_of(task))
    assert True in shrunk
    assert max(values) < 2000  # a thousandth of a batch's own mean is the least that its errors are divided by


def test_a_plan_without_a_state_beside_a_window_is_refused(folder):
    with pytest.raises(ConfigError, match="no layer of the plan HS has a window beside a state"):
        task_of(distill_config(folder, plan="HS", own_block_share=0.5))
    with pytest.raises(ConfigError, match="no layer of the plan WW has a window beside a state that shows more than"):
        task_of(align_config(folder, plan="WW", own_block_share=0.5, state_form={"sees": "block"}))
    with pytest.raises(ConfigError, match="that shows more than the own block"):
        task_of(distill_config(folder, plan="WW", own_block_share=0.5, student_window=3))
    with pytest.raises(ConfigError, match=r"window_lengths is \[4\], but no layer of the plan HS"):
        task_of(distill_config(folder, plan="HS", window_lengths=(4,)))
    with pytest.raises(ConfigError, match=r"own_block_share is 2; give a share from 0 to 1"):
        align_config(folder, own_block_share=2)
