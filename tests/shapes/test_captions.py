"""Captions say what scenes are, in words of one vocabulary, and the parser reads every one of them back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arl2.errors import Arl2Error
from arl2.shapes.prompts.captions import LONGEST_CAPTION, PARAPHRASES, VOCABULARY, caption, captions_of
from arl2.shapes.prompts.parser import parse_prompt
from arl2.shapes.prompts.request import SceneRequest, requests_of
from arl2.shapes.world.palette import BACKGROUNDS, COLOURS, MOTIONS, SHAPES
from arl2.shapes.world.scene import sample_scenes

REQUESTS = st.builds(
    SceneRequest,
    colour=st.sampled_from((None, *COLOURS)),
    shape=st.sampled_from(SHAPES),
    motion=st.sampled_from((None, *MOTIONS)),
    background=st.sampled_from((None, *BACKGROUNDS)),
    wall=st.sampled_from((None, True)),
)


def test_the_canonical_caption() -> None:
    request = SceneRequest(colour="red", shape="circle", motion="right", background="navy", wall=True)
    assert caption(request) == "a red circle moves right behind a wall on navy"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (SceneRequest(shape="square", motion="bounce", background="black", wall=False), "a square bounces on black"),
        (SceneRequest(colour="cyan", motion="up"), "a cyan thing moves up"),
        (SceneRequest(wall=True), "a thing behind a wall"),
    ],
)
def test_what_is_open_is_left_out(request_: SceneRequest, said: str) -> None:
    assert caption(request_) == said


@given(request=REQUESTS, paraphrase=st.integers(0, PARAPHRASES - 1))
def test_every_caption_is_read_back(request: SceneRequest, paraphrase: int) -> None:
    assert parse_prompt(caption(request, paraphrase)) == request


@given(request=REQUESTS, paraphrase=st.integers(0, PARAPHRASES - 1))
def test_every_word_is_in_the_vocabulary(request: SceneRequest, paraphrase: int) -> None:
    words = caption(request, paraphrase).split()
    assert set(words) <= set(VOCABULARY)
    assert len(words) <= LONGEST_CAPTION


def test_paraphrases_all_differ_and_use_every_word() -> None:
    full = [
        caption(SceneRequest(colour="red", shape="circle", motion=motion, background="navy", wall=True), which)
        for which in range(PARAPHRASES)
        for motion in ("right", "bounce")
    ]
    assert len(set(full)) == len(full)
    names = {*COLOURS, *SHAPES, *MOTIONS, *BACKGROUNDS, "thing"}
    assert set(VOCABULARY) - names <= {word for said in full for word in said.split()}
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert max(len(said.split()) for said in full) == LONGEST_CAPTION


def test_scenes_hide_their_colour_or_name_it() -> None:
    scenes = sample_scenes(200, seed=0)
    colours = tuple(COLOURS)
    for said, hides, colour in zip(captions_of(scenes), scenes.hides_colour, scenes.colour, strict=True):
        assert (colours[colour] in said.split()) != hides
    assert captions_of(scenes) == [caption(request) for request in requests_of(scenes)]


def test_wrong_paraphrases_are_refused() -> None:
    with pytest.raises(Arl2Error, match=f"0 to {PARAPHRASES - 1}"):
        caption(SceneRequest(shape="circle"), PARAPHRASES)
    with pytest.raises(Arl2Error, match="one each"):
        captions_of(sample_scenes(2, seed=0), [1])


def test_a_request_outside_the_world_is_refused() -> None:
    with pytest.raises(Arl2Error, match="use red, green"):
        SceneRequest(colour="orange")
