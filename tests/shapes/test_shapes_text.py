"""The text part of the shapes world means the same by different words, and survives saving."""

from pathlib import Path

import pytest
import torch

from arl2.shapes.prompts.captions import LONGEST_CAPTION, PARAPHRASES, captions_of
from arl2.shapes.prompts.parser import PromptError
from arl2.shapes.prompts.text import ShapesText
from arl2.shapes.world.scene import sample_scenes
from arl2.text.interface import TextPart
from arl2.text.tokenizer import UNKNOWN


@pytest.fixture(scope="module")
def text() -> ShapesText:
    return ShapesText.build(width=8, seed=3)


def test_it_is_a_text_part(text: ShapesText) -> None:
    assert isinstance(text, TextPart)
    assert text.length >= LONGEST_CAPTION
    assert text.encode(["a ball"]).shape == (1, text.length, 8)


def test_free_words_are_encoded_by_their_meaning(text: ShapesText) -> None:
    free, plain = text.encode(["scarlet ball going leftwards on navy blue", "a red circle moves left on navy"])
    assert torch.equal(free, plain)


def test_captions_are_encoded_word_for_word(text: ShapesText) -> None:
    one, other = text.encode_captions(["a red circle moves left on navy", "the red circle goes left over navy"])
    assert not torch.equal(one, other)
    assert text.encode_captions([""]).abs().max() == 0


def test_no_caption_has_an_unknown_word_or_is_cut(text: ShapesText) -> None:
    scenes = sample_scenes(3 * PARAPHRASES, seed=0)
    captions = captions_of(scenes, [index % PARAPHRASES for index in range(len(scenes))])
    rows, used = text.words.tokenizer(captions)
    unknown = text.words.tokenizer.id_of(UNKNOWN)
    assert not bool((rows == unknown).any())
    # None is cut: padding follows, or the caption has exactly the tokenizer's length.
    assert used.sum(dim=1).tolist() == [len(said.split()) for said in captions]


def test_an_unknown_prompt_is_refused(text: ShapesText) -> None:
    with pytest.raises(PromptError):
        text.encode(["a red ball", "xyz"])


def test_saving_and_loading_changes_nothing(text: ShapesText, tmp_path: Path) -> None:
    text.save_pretrained(tmp_path)
    loaded = ShapesText.from_pretrained(tmp_path)
    prompts = ["a green box falls", "yellow triangle bounces behind a wall on beige"]
    assert torch.equal(loaded.encode(prompts), text.encode(prompts))
