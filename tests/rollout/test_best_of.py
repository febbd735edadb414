"""Best of N: the first block is the candidate that the verifier prefers, and everything after it is as ever."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arl2.errors import CheckpointError, ConfigError
from arl2.model.reward_model import RewardModel
from arl2.pipeline.options import ModelSource
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.pipeline.resolve import resolve_source
from arl2.pipeline.rewriting import write_pipeline
from arl2.rollout.best_of import BestOf, SideBySide
from arl2.rollout.generator import generate_blocks
from arl2.rollout.noise import GivenNoise, SeededNoise
from rollout.streams import GUIDED, OTHER, PROMPT, SMALL, latents_of, same_bits, small_pipeline, take

CANDIDATES = 3


def verifier_of(pipe: ARL2Pipeline, seed: int = 0) -> RewardModel:
    text = pipe.text
    return RewardModel(3, 3, 4, 4, text.length, text.width, features=8, space=8, seed=seed).eval()


def choosing(plan: str = "HS", *, guided: bool = False, candidates: int = CANDIDATES) -> ARL2Pipeline:
    """The small pipeline with a verifier of random weights."""
    plain = small_pipeline(plan, guided)
    settings = replace(GUIDED if guided else SMALL, first_block_candidates=candidates)
    return ARL2Pipeline(plain.transformer, plain.codec, plain.text, settings, verifier_of(plain))


def first_blocks(pipe: ARL2Pipeline, prompt: str, seed: int) -> Tensor:
    """All candidates of a stream, each drawn by itself."""
    one = pipe.stream(prompt, seed=seed, first_block_candidates=1)
    rollout = one._state.rollout
    drawn = []
    for number in range(CANDIDATES):
        rollout.noise = SeededNoise([seed]).candidate(number)
        drawn.append(rollout._denoise(*rollout.next_block()))
    return torch.cat(drawn)


@pytest.mark.parametrize(("plan", "guided"), [("HS", False), ("S", False), ("HS", True)])
def test_the_preferred_candidate_begins_the_stream(plan: str, guided: bool) -> None:
    pipe = choosing(plan, guided=guided)
    chosen = set()
    for seed in range(6):
        drawn = first_blocks(pipe, PROMPT, seed)
        scores = pipe.verifier(drawn, pipe.text.encode([PROMPT]).expand(CANDIDATES, -1, -1))
        best = int(scores.argmax())
        chosen.add(best)
        made = pipe.stream(PROMPT, seed=seed).latents_next().latents
        assert torch.allclose(made[0], drawn[best], atol=1e-5)
    assert len(chosen) > 1  # or the test says nothing


def test_prompts_of_a_batch_choose_for_themselves() -> None:
    pipe = choosing()
    together = pipe.stream([PROMPT, OTHER, PROMPT], seed=[4, 5, 9]).latents_next().latents
    for i, (prompt, seed) in enumerate([(PROMPT, 4), (OTHER, 5), (PROMPT, 9)]):
        alone = pipe.stream(prompt, seed=seed).latents_next().latents
        assert torch.allclose(together[i], alone[0], atol=1e-5)


def test_later_blocks_go_on_from_the_chosen_one() -> None:
    """As from a first block that was given: memory holds it alone."""
    pipe = choosing()
    made = take(pipe.stream(PROMPT, seed=3), 3)
    after = take(pipe.stream(PROMPT, seed=3, known=made[0].latents), 3)
    assert torch.equal(latents_of(made), latents_of(after))


def test_one_candidate_is_the_stream_without_a_verifier() -> None:
    plain, one = small_pipeline("HS"), choosing(candidates=1)
    pairs = zip(take(plain.stream(PROMPT, seed=3), 2), take(one.stream(PROMPT, seed=3), 2), strict=True)
    assert all(same_bits(*pair) for pair in pairs)
    asked = choosing().stream(PROMPT, seed=3, first_block_candidates=1)
    assert same_bits(next(asked), next(plain.stream(PROMPT, seed=3)))


def test_a_stream_resumed_or_rewound_to_its_start_chooses_again(tmp_path: Path) -> None:
    pipe = choosing()
    expected = take(pipe.stream(PROMPT, seed=3), 2)
    stream = pipe.stream(PROMPT, seed=3, rewind_blocks=4)
    stream.save(tmp_path / "start.arl2")
    forked = stream.fork()
    for begun in (stream, forked, pipe.resume(tmp_path / "start.arl2")):
        assert all(same_bits(*pair) for pair in zip(take(begun, 2), expected, strict=True))
    stream.rewind(2)
    rewound = take(stream, 2)
    assert torch.equal(latents_of(rewound), latents_of(expected))


def test_a_prompt_changed_before_the_start_is_the_one_it_chooses_by() -> None:
    pipe = choosing()
    stream = pipe.stream(PROMPT, seed=3)
    stream.change_prompt(OTHER)
    assert torch.allclose(next(stream).latents, next(pipe.stream(OTHER, seed=3)).latents, atol=1e-6)


def test_a_saved_pipeline_keeps_its_verifier(tmp_path: Path) -> None:
    pipe = choosing()
    pipe.save_pretrained(tmp_path)
    loaded = ARL2Pipeline.from_pretrained(tmp_path)
    assert same_bits(next(loaded.stream(PROMPT, seed=3)), next(pipe.stream(PROMPT, seed=3)))
    (tmp_path / "verifier" / "diffusion_pytorch_model.safetensors").write_bytes(b"none")
    with pytest.raises(CheckpointError, match=r"is not a whole \.safetensors file"):
        ARL2Pipeline.from_pretrained(tmp_path)


def test_known_latents_begin_a_stream_without_a_choice() -> None:
    pipe = choosing()
    known = torch.randn(1, 3, 3, 4, 4)
    assert torch.equal(next(pipe.stream(PROMPT, seed=3, known=known)).latents, known)


def test_a_picture_that_the_verifier_does_not_read_is_drawn_once(caplog: pytest.LogCaptureFixture) -> None:
    pipe, plain = choosing(), small_pipeline("HS")
    large = next(pipe.stream(PROMPT, seed=3, height=64, width=64))
    assert "the first block is a single sample, not the best of 3" in caplog.text
    assert same_bits(large, next(plain.stream(PROMPT, seed=3, height=64, width=64)))
    with pytest.raises(ConfigError, match=r"scores first blocks of \[3, 3, 4, 4\] .*, and these are \[3, 3, 8, 8\]"):
        pipe.stream(PROMPT, height=64, width=64, first_block_candidates=2)


def test_candidates_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="this model has none; leave first_block_candidates at 1"):
        small_pipeline("HS").stream(PROMPT, first_block_candidates=2)
    with pytest.raises(ConfigError, match="Got first_block_candidates 0; give a whole number from 1"):
        choosing().stream(PROMPT, first_block_candidates=0)
    with pytest.raises(ConfigError, match="Got first_block_candidates 0"):
        replace(SMALL, first_block_candidates=0)


def test_the_generator_chooses_too() -> None:
    pipe = choosing()
    rollout = pipe.stream(PROMPT, seed=3)._state.rollout
    asked = {"sampler": rollout.settings.sampler, "height": 4, "width": 4, "frames": 3}
    best = BestOf(pipe.verifier, CANDIDATES)
    text = pipe.text.encode([PROMPT]).detach()
    made = next(generate_blocks(pipe.transformer, text, noise=SeededNoise([3]), best_of=best, **asked))
    assert torch.equal(made.latents, next(pipe.stream(PROMPT, seed=3)).latents)
    given = GivenNoise(torch.randn(1, 3, 3, 4, 4), {(0, 0): torch.randn(1, 3, 3, 4, 4)}, 3)
    with pytest.raises(ConfigError, match="leave first_block_candidates at 1"):
        next(generate_blocks(pipe.transformer, text, noise=given, best_of=best, **asked))


def test_candidates_have_noise_of_their_own() -> None:
    source, shape = SeededNoise([1, 2]), (2, 3, 3, 4, 4)
    draws = [source.candidate(number).sample(0, index, shape) for number in range(3) for index in range(3)]
    assert torch.equal(draws[0], source.sample(0, 0, shape))
    assert len({draw.numpy().tobytes() for draw in draws}) == len(draws)
    both = SideBySide([source, source.candidate(1)])
    assert torch.equal(both.sample(0, 2, (4, *shape[1:])), torch.cat((draws[2], draws[5])))
    with pytest.raises(ConfigError, match="2 seeds for a batch of 1"):
        both.check(2)


def test_a_model_written_anew_keeps_its_verifier(tmp_path: Path) -> None:
    pipe = choosing()
    pipe.save_pretrained(tmp_path / "own")
    source = resolve_source(ModelSource(model=str(tmp_path / "own")))
    write_pipeline(source, source.weights.exact_transformer(), tmp_path / "again")
    again = ARL2Pipeline.from_pretrained(tmp_path / "again")
    assert same_bits(next(again.stream(PROMPT, seed=3)), next(pipe.stream(PROMPT, seed=3)))
