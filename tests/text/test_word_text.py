"""The tiny text part: fixed shape, zero past the end, seeded weights, a round trip through files."""

from pathlib import Path

import pytest
import torch

from arl2.errors import Arl2Error, CheckpointError
from arl2.text.encoder import TextEncoder
from arl2.text.interface import TextPart
from arl2.text.tokenizer import PAD, UNKNOWN, build_word_tokenizer
from arl2.text.words import WordText

WORDS = ("a", "cat", "dog", "runs")


@pytest.fixture(scope="module")
def text() -> WordText:
    return WordText.build(WORDS, width=6, length=5, seed=1)


def test_ids_follow_the_vocabulary() -> None:
    tokenizer = build_word_tokenizer(WORDS, length=5)
    assert tokenizer.convert_ids_to_tokens(range(6)) == [PAD, UNKNOWN, *WORDS]
    rows = tokenizer(["A dog, runs!"], padding="max_length", truncation=True)
    assert rows["input_ids"] == [[2, 4, 1, 5, 1]]


def test_outputs_have_a_fixed_shape_and_end_in_zeros(text: WordText) -> None:
    encoded = text.encode(["a cat runs", "", "a dog runs a dog runs a dog"])
    assert encoded.shape == (3, 5, 6)
    assert isinstance(text, TextPart)
    assert (encoded[0, :3].norm(dim=1) > 0).all()
    assert encoded[0, 3:].abs().max() == 0
    assert encoded[1].abs().max() == 0
    assert torch.equal(encoded[2], text.encode(["a dog runs a dog"])[0])


def test_a_prompt_does_not_depend_on_its_batch(text: WordText) -> None:
    assert torch.equal(text.encode(["a cat"])[0], text.encode(["a dog runs", "a cat"])[1])


def test_the_order_of_words_matters_and_unknown_words_are_alike(text: WordText) -> None:
    one, other, unknown, also = text.encode(["a cat", "cat a", "a bird", "a fish"])
    assert not torch.equal(one, other)
    assert torch.equal(unknown, also)


def test_weights_depend_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (TextEncoder(9, width=4, length=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.words.weight, same.words.weight)
    assert not torch.equal(one.words.weight, other.words.weight)


def test_gradients_reach_the_words(text: WordText) -> None:
    text.encode(["a cat"]).square().sum().backward()
    gradient = text.encoder.words.weight.grad
    assert gradient is not None
    assert gradient[3].norm() > 0
    assert gradient[0].norm() == 0


def test_saving_and_loading_changes_nothing(text: WordText, tmp_path: Path) -> None:
    text.save_pretrained(tmp_path)
    loaded = WordText.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(["a dog flies"]), text.encode(["a dog flies"]))
    assert (loaded.length, loaded.width) == (5, 6)


def test_a_folder_without_the_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tokenizer"):
        WordText.from_pretrained(tmp_path)


def test_parts_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(Arl2Error, match="must be equal"):
        WordText(build_word_tokenizer(WORDS, length=5), TextEncoder(6, width=4, length=4))


@pytest.mark.parametrize("words", [("a", "a"), ("Cat",), (PAD,)])
def test_impossible_vocabularies_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(Arl2Error, match="lower-case words, each once"):
        build_word_tokenizer(words, length=5)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(Arl2Error, match="at least 1 word"):
        build_word_tokenizer(WORDS, length=0)
    with pytest.raises(Arl2Error, match="1 or more"):
        TextEncoder(0)
    with pytest.raises(Arl2Error, match="3 positions"):
        TextEncoder(6, width=4, length=3)(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool))
