"""The toy model says what of a prompt it does not know, and refuses a subject that it cannot draw."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arl2.model.registry import find_card
from arl2.shapes.prompts.captions import PARAPHRASES, caption
from arl2.shapes.prompts.parser import EXAMPLES, MEANINGS, PromptError, canonical
from arl2.shapes.prompts.request import SceneRequest
from arl2.shapes.prompts.text import ShapesText
from arl2.shapes.prompts.unknown import REAL_MODEL, UnknownWordsWarning, check_words
from arl2.shapes.world.palette import BACKGROUNDS, COLOURS, MOTIONS, SHAPES
from arl2.text.interface import encode_captions, encode_negative


@pytest.fixture
def text() -> ShapesText:
    return ShapesText.build(width=8, seed=3)


def test_unknown_words_are_named_with_the_nearest_known_ones(text: ShapesText) -> None:
    with pytest.warns(UnknownWordsWarning) as told:
        text.encode(["a purpl circle mvoes right on navvy"])
    (said,) = {str(one.message) for one in told}
    for word, near in (("purpl", "purple"), ("mvoes", "moves"), ("navvy", "navy")):
        assert f"'{word}' (did you mean '{near}'?)" in said
    assert "triangle" in said
    assert "beige" in said


def test_a_warning_is_given_once_for_a_prompt(text: ShapesText) -> None:
    with pytest.warns(UnknownWordsWarning):
        text.encode(["a purpl circle", "a red circle"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.encode(["a red circle", "a purpl circle"])


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("a purple elephant plays tennis", "elephant"),
        ("a purple elephant plays with a ball", "elephant"),
        ("an astronaut riding a blue horse", "astronaut"),
        ("a dog chases a red ball", "dog"),
        ("A CAT walks behind a wall", "cat"),
        ("a video of a cat on navy", "cat"),
        ("a red hexagon moves right", "hexagon"),
        ("ein roter Kreis", "kreis"),
        ("红色的球 red", "红色的球"),
        ("xyz", "xyz"),
        ("12345", "12345"),
    ],
)
def test_an_unknown_subject_is_refused(text: ShapesText, prompt: str, word: str) -> None:
    with pytest.raises(PromptError) as caught:
        text.encode(["a red ball", prompt])
    said = str(caught.value)
    assert f"'{word}'" in said
    assert "\n" not in said
    assert len(said) < 600
    assert all(name in said for name in (*SHAPES, *COLOURS, *MOTIONS, *BACKGROUNDS, f"--model {REAL_MODEL}"))


def test_a_shape_that_is_misspelt_is_refused_with_the_right_one() -> None:
    with pytest.raises(PromptError, match=r"'squar', which this model cannot draw\. Did you mean 'square'"):
        check_words("a red squar moves up")


SPELT_ALIKE = "doll train rose leaf dove bee cup coin cone wallet hand ring fly lemon bell boy"


@pytest.mark.parametrize("word", SPELT_ALIKE.split())
def test_a_subject_is_refused_though_it_is_spelt_like_a_known_word(word: str) -> None:
    for prompt in (f"a {word} moves right on navy", f"a red {word} moves behind a ball"):
        with pytest.raises(PromptError) as caught:
            check_words(prompt)
        assert f"'{word}'" in str(caught.value)
        assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("word", ["big", "tall", "light", "does", "some", "doll", "leaf", "people"])
def test_another_word_is_no_misspelling(word: str) -> None:
    told = check_words(f"a red ball near a {word}")
    assert told is not None
    assert f"'{word}'" in told
    assert "did you mean" not in told


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("A photo of a red circle", None),
        ("footage of a red ball", None),
        ("Draw a red circle", None),
        ("create a red circle", None),
        ("I want a red circle", None),
        ("Please generate a red circle", None),
        ("can you draw a blue ball?", None),
        ("a close-up of a red circle moving right", "'close-up'"),
        ("camera pans over a red circle", "'camera', 'pans'"),
        ("an upside-down triangle moves left", "'upside-down'"),
    ],
)
def test_words_around_a_picture_are_no_subject(text: ShapesText, prompt: str, said: str | None) -> None:
    told = check_words(prompt)
    assert told is None if said is None else told is not None and said in told
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownWordsWarning)
        assert text.encode([prompt]).any()


@pytest.mark.parametrize("prompt", ["Draw an elephant", "the camera zooms in on an elephant with a ball"])
def test_a_picture_of_another_subject_is_refused(prompt: str) -> None:
    with pytest.raises(PromptError, match="asks for 'elephant'"):
        check_words(prompt)


def test_a_long_word_is_shown_cut(text: ShapesText) -> None:
    told = check_words("a red ball " + "x" * 100_000)
    assert told is not None
    assert len(told) < 600
    with pytest.raises(PromptError) as caught:
        text.encode(["a " + "x" * 100_000])
    assert len(str(caught.value)) < 700


def test_a_negation_is_named() -> None:
    with pytest.raises(PromptError, match=r"more than one colour .* Negations \('not'\) are not understood"):
        canonical("a red circle, not blue")


@pytest.mark.parametrize(
    "prompt",
    [
        "red",
        "a shiny red ball",
        "a video of a red ball",
        "two green boxes?",
        "hidden behind something",
        "A crimson BALL, rolling leftwards!",
        "from top to bottom",
        "a disc, no grey walls",
        "a red ball chases an elephant",
        "a rde ball",
        "the ball's colour is red",
    ],
)
def test_a_prompt_without_another_subject_is_drawn(text: ShapesText, prompt: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownWordsWarning)
        assert text.encode([prompt]).any()


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("an orange ball moves up", "'orange'"),
        ("a red ball moves slowly", "'slowly'"),
        ("three red balls", "'three'"),
        ("a grey ball bounces", "'grey'"),
        ("a white ball moves up", "'white' as the background"),
        ("a circle on a red background", "'red' as the colour of the shape"),
        ("a circle moves up on red", "'red' as the colour of the shape"),
        ("a red ball " + " ".join(f"w{i}" for i in range(500)), "and 492 more"),
    ],
)
def test_what_is_read_in_another_way_is_said(prompt: str, said: str) -> None:
    told = check_words(prompt)
    assert told is not None
    assert said in told
    assert len(told) < 800


@given(
    request=st.builds(
        SceneRequest,
        colour=st.sampled_from((None, *COLOURS)),
        shape=st.sampled_from((None, *SHAPES)),
        motion=st.sampled_from((None, *MOTIONS)),
        background=st.sampled_from((None, *BACKGROUNDS)),
        wall=st.sampled_from((None, True)),
    ),
    paraphrase=st.integers(0, PARAPHRASES - 1),
)
def test_no_caption_of_the_world_raises_or_warns(request: SceneRequest, paraphrase: int) -> None:
    assert check_words(caption(request, paraphrase)) is None


@pytest.mark.parametrize(
    "prompt",
    [
        *EXAMPLES,
        *(word for word in MEANINGS if word != "wall-less"),
        "navy blue",
        "a red dot on navy blue",
        "a grey wall",
    ],
)
def test_no_known_word_warns(prompt: str) -> None:
    assert check_words(prompt) is None


@given(prompt=st.text(max_size=200))
def test_any_text_is_understood_refused_or_told(prompt: str) -> None:
    try:
        said = check_words(prompt)
    except PromptError as error:
        said = str(error)
    assert said is None or len(said) < 900


def test_an_empty_prompt_and_negative_prompts_are_never_refused(text: ShapesText) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not text.encode(["", "  "]).any()
        for negative in ("", "blurry, low quality", "a red blue ball", "!"):
            assert encode_negative(text, negative).shape == (1, text.length, 8)
    assert not encode_negative(text, "blurry").any()
    assert torch.equal(encode_negative(text, "blurry red"), encode_negative(text, "red"))
    assert encode_negative(text, "a red blue ball").any()


def test_captions_of_clips_are_encoded_without_a_word(text: ShapesText) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        free = encode_captions(text, ["a dog chases a slow red ball"])
    assert torch.equal(free, text.encode(["a red ball"]))


def test_the_model_that_is_named_exists() -> None:
    assert find_card(REAL_MODEL).name == REAL_MODEL
