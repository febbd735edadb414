"""The tiny text part: fixed shape, zero past the end, seeded weights, a round trip through files."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from arl2.errors import Arl2Error, CheckpointError
from arl2.text.encoder import TextEncoder
from arl2.text.interface import TextPart
from arl2.text.tokenizer import PAD, UNKNOWN, WordTokenizer, build_word_tokenizer
from arl2.text.words import WordText

WORDS = ("a", "cat", "dog", "runs")


@pytest.fixture(scope="module")
def text() -> WordText:
    return WordText.build(WORDS, width=6, length=5, seed=1)


def test_ids_follow_the_vocabulary() -> None:
    tokenizer = build_word_tokenizer(WORDS, length=5)
    assert tokenizer.words_of(range(7)) == [PAD, UNKNOWN, *WORDS, None]
    ids, mask = tokenizer(["A dog, runs!", "dog", "a dog runs a dog runs"])
    assert ids.tolist() == [[2, 4, 1, 5, 1], [4, 0, 0, 0, 0], [2, 4, 5, 2, 4]]
    assert mask.sum(dim=1).tolist() == [5, 1, 5]


def test_transformers_reads_the_tokenizer_and_gives_the_same_ids(tmp_path: Path) -> None:
    tokenizer = build_word_tokenizer(WORDS, length=5)
    tokenizer.save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    theirs.save_pretrained(tmp_path / "theirs")
    for mine in (
        tokenizer,
        WordTokenizer.from_pretrained(tmp_path),
        WordTokenizer.from_pretrained(tmp_path / "theirs"),
    ):
        prompts = ["A dog, runs!", "", "<pad> cat <unk>", "a bird", "a cat runs a cat runs"]
        rows = theirs(prompts, padding="max_length", truncation=True, return_tensors="pt")
        ids, mask = mine(prompts)
        assert torch.equal(ids, rows["input_ids"])
        assert torch.equal(mask, rows["attention_mask"].bool())


@pytest.mark.parametrize("length", [0, -1, 5.0, True, None, "5", 10**30])
def test_a_tokenizer_without_a_length_is_refused(tmp_path: Path, length: object) -> None:
    build_word_tokenizer(WORDS, length=5).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
    with pytest.raises(CheckpointError, match="model_max_length"):
        WordTokenizer.from_pretrained(tmp_path)


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
