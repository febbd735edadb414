"""Free words become requests; nothing known, or two values for one thing, is an error that teaches."""

import pytest

from arl2.errors import Arl2Error
from arl2.shapes.prompts.captions import VOCABULARY
from arl2.shapes.prompts.parser import EXAMPLES, SYNONYMS, PromptError, canonical, complete, parse_prompt
from arl2.shapes.prompts.request import SceneRequest
from arl2.shapes.world.palette import BACKGROUNDS, COLOURS, MOTIONS, SHAPES


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A crimson BALL, rolling leftwards!", SceneRequest(colour="red", shape="circle", motion="left")),
        ("two green boxes?", SceneRequest(colour="green", shape="square")),
        (
            "the turquoise pyramid climbs upwards on a cream ground",
            SceneRequest(colour="cyan", shape="triangle", motion="up", background="beige"),
        ),
        ("a ball from left to right", SceneRequest(shape="circle", motion="right")),
        ("a ball from the right to the left", SceneRequest(shape="circle", motion="left")),
        ("from top to bottom", SceneRequest(motion="down")),
        ("falls down", SceneRequest(motion="down")),
        ("hidden behind something", SceneRequest(wall=True)),
        ("a violet disc without a wall", SceneRequest(colour="purple", shape="circle", wall=False)),
        ("a disc, no grey walls", SceneRequest(shape="circle", wall=False)),
        ("not behind the wall, a box", SceneRequest(shape="square", wall=False)),
        ("a red dot on navy blue", SceneRequest(colour="red", shape="circle", background="navy")),
        ("an astronaut riding a blue horse", SceneRequest(colour="blue")),
    ],
)
def test_free_words_are_understood(prompt: str, expected: SceneRequest) -> None:
    assert parse_prompt(prompt) == expected


@pytest.mark.parametrize("prompt", ["", "   ", "an astronaut riding a horse", "红色的球", "12345"])
def test_nothing_known_is_an_error_with_examples(prompt: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse_prompt(prompt)
    assert isinstance(caught.value, Arl2Error)
    assert all(example in str(caught.value) for example in EXAMPLES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "both"),
    [
        ("a red blue ball", "colour (red, blue)"),
        ("a ball and a box", "shape (circle, square)"),
        ("a ball bounces up", "motion (bounce, up)"),
        ("a white ball on black", "background (white, black)"),
    ],
)
def test_contradictions_are_refused(prompt: str, both: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse_prompt(prompt)
    assert f"more than one {both}" in str(caught.value)


def test_saying_the_same_twice_is_fine() -> None:
    assert parse_prompt("a red scarlet ball, a circle") == SceneRequest(colour="red", shape="circle")


def test_long_prompts_are_shortened_in_errors() -> None:
    with pytest.raises(PromptError) as caught:
        parse_prompt("nothing " * 100)
    assert len(str(caught.value)) < 300


def test_every_name_of_the_world_is_understood() -> None:
    for attribute, names in (
        ("colour", COLOURS),
        ("shape", SHAPES),
        ("motion", MOTIONS),
        ("background", BACKGROUNDS),
    ):
        assert tuple(SYNONYMS[attribute]) == tuple(names)
        for name in names:
            assert getattr(parse_prompt(name), attribute) == name


def test_no_word_means_two_things() -> None:
    words = [word for values in SYNONYMS.values() for words in values.values() for word in words.split()]
    assert len(set(words)) == len(words)


def test_open_attributes_become_plain_ones_but_for_the_colour() -> None:
    assert complete(SceneRequest(colour="red")) == SceneRequest(
        colour="red", shape="circle", motion="right", background="black", wall=False
    )
    assert complete(SceneRequest(shape="square")).colour is None


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("scarlet box drifts leftwards behind a barrier", "a red square moves left behind a wall on black"),
        ("triangle", "a triangle moves right on black"),
        ("a BLUE ball bounces over white", "a blue circle bounces on white"),
    ],
)
def test_prompts_have_a_canonical_caption(prompt: str, said: str) -> None:
    assert canonical(prompt) == said
    assert set(said.split()) <= set(VOCABULARY)
    assert canonical(said) == said
