"""The reward model task: captions and their blocks find each other, drawn and hidden blocks count against."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from arl2.cli.main import main
from arl2.errors import ConfigError
from arl2.model.reward_model import RewardModel
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.shapes.training.reward_model import RewardModelConfig, RewardModelTask
from arl2.shapes.world.renderer import visible_share
from arl2.shapes.world.scene import sample_scenes
from arl2.training.engine.loop import LoopConfig, train
from arl2.training.engine.task import Batch

pytestmark = pytest.mark.filterwarnings("ignore:There are modules")
LOOP = LoopConfig(steps=30, warmup_steps=2, learning_rate=0.01, average_decay=0.5, evaluate_every=100)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RewardModelConfig:
    """Few openings and a few that the embedded model drew."""
    folder = tmp_path_factory.mktemp("verifier")
    words = ["rollouts", "--model", "shapes-teacher", "--shapes-prompts", "4", "--latent-frames", "3", "--quiet"]
    # Two scenes of the openings' own seed: their captions are known.
    words += ["--steps", "2", "--candidates", "1", "--seed", "2", "-o", str(folder / "drawn")]
    assert main(words) == 0
    return RewardModelConfig(
        loop=LOOP,
        latents=str(folder / "latents"),
        openings=48,
        drawn=str(folder / "drawn"),
        batch=24,
        hidden_batch=4,
        drawn_batch=4,
        evaluation_openings=24,
    )


def test_openings_that_hide_their_object_fit_no_caption(config: RewardModelConfig) -> None:
    task = RewardModelTask(config)
    shown = visible_share(sample_scenes(48, seed=2), 9)[:, [0, 8]].amax(1) >= config.shows
    assert 0 < int((~shown).sum()) == len(task.hidden)
    assert int(shown.sum()) == len(task.true) == len(task.true_of)
    assert len(RewardModelTask(replace(config, shows=0.0)).hidden) == 0


def test_every_drawn_block_stands_beside_a_true_one_of_its_caption(config: RewardModelConfig) -> None:
    task = RewardModelTask(config)
    assert len(task.drawn) == 4
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        assert torch.equal(task.true_of[task._true_with(task.drawn_of, draw)], task.drawn_of)


def test_the_loss_is_what_the_formula_says(config: RewardModelConfig) -> None:
    """Written out for single blocks and captions, from the same draws."""
    task = RewardModelTask(replace(config, batch=5, hidden_batch=2, drawn_batch=2))
    told = task.loss(Batch.keyed(0, 0, 0, 1))
    assert told.samples == 9
    draw = Batch.keyed(0, 0, 0, 1).generator
    drawn = torch.randint(len(task.drawn), (2,), generator=draw)
    hidden = torch.randint(len(task.hidden), (2,), generator=draw)
    paired = task._true_with(task.drawn_of[drawn], draw)
    chosen = [*paired.tolist(), *torch.randint(len(task.true), (3,), generator=draw).tolist()]
    blocks = torch.cat((task.true[chosen], task.hidden[hidden], task.drawn[drawn])).float()
    asked = task.true_of[chosen].tolist()

    def score(block: int, caption: int) -> torch.Tensor:
        fit = task.model(blocks[block : block + 1], task.text[caption : caption + 1])[0]
        return task.model.scale.exp() * fit

    of_block = of_caption = torch.zeros(())
    for block, caption in enumerate(asked):
        among = torch.stack([score(block, other) for other in range(len(task.captions))])
        of_block = of_block - among.log_softmax(0)[caption] / 5
        others = torch.stack([score(other, caption) for other in range(9)]).softmax(0)
        own = torch.tensor([asked[other] == caption if other < 5 else False for other in range(9)])
        of_caption = of_caption - others[own].sum().log() / 5
    assert torch.allclose(told.value, of_block + of_caption, atol=1e-5)


def test_a_run_learns_resumes_to_the_bit_and_is_exported(config: RewardModelConfig, tmp_path: Path) -> None:
    whole = train(RewardModelTask(config), config.loop, tmp_path / "whole", run_config={})
    short = replace(config.loop, steps=30, checkpoint_every=10)
    train(RewardModelTask(config), replace(short, max_minutes=0.0), tmp_path / "cut", run_config={})
    train(RewardModelTask(config), short, tmp_path / "cut", run_config={})
    one, other = (
        RewardModel.from_pretrained(tmp_path / name / "export", torch_dtype=torch.float32).state_dict()
        for name in ("whole", "cut")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.step == 30
    task = RewardModelTask(config)
    before = task.loss(Batch.keyed(7, 0, 0, 1)).value.item()
    task.model.load_state_dict(one)
    assert task.loss(Batch.keyed(7, 0, 0, 1)).value.item() < 0.6 * before
    assert task.evaluate()["true_first"] == 1


def test_what_does_not_fit_is_refused(config: RewardModelConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"drawn_batch is 4.*batch is 3; give at most as many"):
        replace(config, batch=3)
    with pytest.raises(ConfigError, match="hidden_batch is -1; give a whole number from 0"):
        replace(config, hidden_batch=-1)
    with pytest.raises(ConfigError, match="shows"):
        replace(config, shows=1.5)
    words = ["rollouts", "--model", "shapes-teacher", "--latent-frames", "3", "--quiet", "--steps", "2"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    assert main([*words, "--candidates", "1", "--prompts", str(prompts), "-o", str(tmp_path / "other")]) == 0
    with pytest.raises(ConfigError, match="has the caption 'a red circle moves right on black', which no true"):
        RewardModelTask(replace(config, drawn=str(tmp_path / "other")))
    words = [*words[:3], "--latent-frames", "6", *words[5:], "--candidates", "1", "--shapes-prompts", "1"]
    assert main([*words, "--seed", "2", "-o", str(tmp_path / "long")]) == 0
    with pytest.raises(ConfigError, match=r"sample them with 'arl2 rollouts --latent-frames 3'"):
        RewardModelTask(replace(config, drawn=str(tmp_path / "long")))


def test_the_shipped_reward_model_reads_what_the_shipped_model_draws() -> None:
    pipe = ARL2Pipeline.from_pretrained("shapes")
    config, codec = pipe.transformer.config, files("arl2.shapes") / "weights" / "codec"
    assert codec.is_dir()
    assert pipe.verifier.block_shape[:2] == (config.in_channels, config.block_frames)
    assert (pipe.verifier.config.words, pipe.verifier.config.text_width) == (pipe.text.length, pipe.text.width)
    assert pipe.settings.first_block_candidates > 1
