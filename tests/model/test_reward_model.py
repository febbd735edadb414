"""The reward model: sizes, seeded weights, and what it refuses."""

from pathlib import Path

import pytest
import torch

from arl2.errors import ConfigError
from arl2.model.reward_model import RewardModel
from support import ROUNDING, generator, relative

SIZES = {"channels": 3, "frames": 2, "height": 5, "width": 4, "words": 6, "text_width": 7, "features": 8, "space": 9}


def blocks(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 2, 5, 4, generator=generator(1))


def prompts(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 6, 7, generator=generator(2))


def test_scores_are_cosines_of_each_block_with_its_prompt() -> None:
    reward_model = RewardModel(**SIZES)
    scores = reward_model(blocks(), prompts())
    each = [reward_model(blocks()[i : i + 1], prompts()[i : i + 1]) for i in range(4)]
    assert torch.allclose(scores, torch.cat(each), atol=1e-6)
    assert bool((scores.abs() <= 1 + 1e-6).all())
    for vectors in (reward_model.embed_blocks(blocks()), reward_model.embed_prompts(prompts())):
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(4))


def test_what_moves_matters() -> None:
    """The same frames in another order are another block."""
    reward_model = RewardModel(**SIZES)
    forwards, backwards = (reward_model.embed_blocks(x) for x in (blocks(), blocks().flip(2)))
    assert not torch.allclose(forwards, backwards, atol=1e-3)


def test_the_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    one = RewardModel(**SIZES, seed=3).state_dict()
    torch.manual_seed(6)
    same, other = RewardModel(**SIZES, seed=3).state_dict(), RewardModel(**SIZES, seed=4).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stem.weight"], other["stem.weight"])


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    reward_model = RewardModel(**SIZES, seed=3).half()
    reward_model.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path, torch_dtype=torch.float32)
    assert torch.equal(loaded(blocks(), prompts()), reward_model.float()(blocks(), prompts()))


def test_other_sizes_are_refused() -> None:
    reward_model = RewardModel(**SIZES)
    with pytest.raises(ConfigError, match=r"reads blocks of \[3, 2, 5, 4\].*got \[3, 1, 5, 4\]"):
        reward_model(blocks()[:, :, :1], prompts())
    for wrong in (torch.zeros(4, 7, 7), torch.zeros(4, 6, 8)):
        with pytest.raises(ConfigError, match=r"prompts of at most 6 words of width 7; got"):
            reward_model(blocks(), wrong)


@torch.no_grad()
def test_a_prompt_may_come_without_the_zeros_that_end_it() -> None:
    reward_model, short = RewardModel(**SIZES), prompts()
    short[:, 4:] = 0
    # Two shapes, so perhaps two kernels.
    cut, padded = reward_model.embed_prompts(short[:, :4]), reward_model.embed_prompts(short)
    assert relative(cut, padded) < ROUNDING[torch.float32]


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"features": 12}, {"space": -1}])
def test_sizes_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="features a multiple of 8"):
        RewardModel(**{**SIZES, **wrong})
