"""The verifier: sizes, seeded weights, and what it refuses."""

from pathlib import Path

import pytest
import torch

from arl2.errors import ConfigError
from arl2.model.verifier import Verifier
from support import generator

SIZES = {"channels": 3, "frames": 2, "height": 5, "width": 4, "words": 6, "text_width": 7, "features": 8, "space": 9}


def blocks(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 2, 5, 4, generator=generator(1))


def prompts(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 6, 7, generator=generator(2))


def test_scores_are_cosines_of_each_block_with_its_prompt() -> None:
    verifier = Verifier(**SIZES)
    scores = verifier(blocks(), prompts())
    each = [verifier(blocks()[i : i + 1], prompts()[i : i + 1]) for i in range(4)]
    assert torch.allclose(scores, torch.cat(each), atol=1e-6)
    assert bool((scores.abs() <= 1 + 1e-6).all())
    for vectors in (verifier.embed_blocks(blocks()), verifier.embed_prompts(prompts())):
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(4))


def test_what_moves_matters() -> None:
    """The same pictures in another order are another block."""
    verifier = Verifier(**SIZES)
    assert not torch.allclose(verifier.embed_blocks(blocks()), verifier.embed_blocks(blocks().flip(2)), atol=1e-3)


def test_the_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    one = Verifier(**SIZES, seed=3).state_dict()
    torch.manual_seed(6)
    same, other = Verifier(**SIZES, seed=3).state_dict(), Verifier(**SIZES, seed=4).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stem.weight"], other["stem.weight"])


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    verifier = Verifier(**SIZES, seed=3).half()
    verifier.save_pretrained(tmp_path)
    loaded = Verifier.from_pretrained(tmp_path, torch_dtype=torch.float32)
    assert torch.equal(loaded(blocks(), prompts()), verifier.float()(blocks(), prompts()))


def test_other_sizes_are_refused() -> None:
    verifier = Verifier(**SIZES)
    with pytest.raises(ConfigError, match=r"reads blocks of \[3, 2, 5, 4\].*these are \[3, 1, 5, 4\]"):
        verifier(blocks()[:, :, :1], prompts())
    for wrong in (torch.zeros(4, 7, 7), torch.zeros(4, 6, 8)):
        with pytest.raises(ConfigError, match=r"prompts of at most 6 words of width 7; these are"):
            verifier(blocks(), wrong)


def test_a_prompt_may_come_without_the_zeros_that_end_it() -> None:
    verifier, short = Verifier(**SIZES), prompts()
    short[:, 4:] = 0
    assert torch.equal(verifier.embed_prompts(short), verifier.embed_prompts(short[:, :4]))


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"features": 12}, {"space": -1}])
def test_sizes_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="features a multiple of 8"):
        Verifier(**{**SIZES, **wrong})
