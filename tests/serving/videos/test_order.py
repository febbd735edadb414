"""Fields of a form: what is accepted, and what is refused in which words."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arl2.errors import Arl2Error
from arl2.serving.videos.order import FIELDS, FieldError, ModelFacts, read_order, seconds_of

MODEL = ModelFacts(name="shapes-75", width=64, height=48, enlarged=4, fps=16, frames=81)


def read(**fields: str):
    return read_order({"prompt": "a red circle", **fields}, MODEL, most_seconds=60)


def test_what_is_left_out_is_the_model_s() -> None:
    order = read()
    assert (order.width, order.height, order.scale, order.frames, order.seed) == (64, 48, 4, 81, None)
    assert order.options == {}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"size": "256x192"}, (64, 48, 4)),
        ({"size": "64x48"}, (64, 48, 1)),
        ({"width": "128", "height": "96"}, (64, 48, 2)),
        ({"size": "320x240"}, (320, 240, 1)),  # five times is more than the model is enlarged
        ({"size": "256x256"}, (256, 256, 1)),
    ],
)
def test_sizes(fields: dict[str, str], expected: tuple[int, int, int]) -> None:
    order = read(**fields)
    assert (order.width, order.height, order.scale) == expected


@pytest.mark.parametrize(
    ("fields", "frames"),
    [({"seconds": "4"}, 64), ({"seconds": "2.5"}, 40), ({"num_frames": "33"}, 33), ({"seconds": "4", "fps": "16"}, 64)],
)
def test_lengths(fields: dict[str, str], frames: int) -> None:
    assert read(**fields).frames == frames


def test_options_of_vllm_omni() -> None:
    order = read(seed="7", num_inference_steps="4", guidance_scale="1.5", negative_prompt="blur", model="shapes-75")
    assert order.seed == 7
    assert order.options == {"steps": 4, "guidance_scale": 1.5, "negative_prompt": "blur"}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": " \n"}, "prompt", "empty"),
        ({"prompt": "word " * 10_000}, "prompt", "10,000 words"),
        ({"prompt": "w" * 30_000}, "prompt", "30,000 letters"),
        ({"size": "big"}, "size", "such as 256x192"),
        ({"size": "64*48"}, "size", "width x height"),
        ({"size": "64x48", "width": "64"}, "size", "either size"),
        ({"width": "64"}, "width", "give both"),
        ({"width": "0", "height": "48"}, "width", "from 1"),
        ({"width": "64", "height": "99999"}, "height", "16,384"),
        ({"seconds": "0"}, "seconds", "at least one frame"),
        ({"seconds": "61"}, "seconds", "at most 60 seconds"),
        ({"seconds": "-4"}, "seconds", "a number"),
        ({"seconds": "nan"}, "seconds", "a number"),
        ({"seconds": "1e3"}, "seconds", "a number"),
        ({"seconds": "4", "num_frames": "64"}, "num_frames", "one of the two"),
        ({"num_frames": "1000000"}, "num_frames", "at most 60 seconds"),
        ({"fps": "24"}, "fps", "16 frames a second"),
        ({"seed": "-1"}, "seed", "from 0"),
        ({"seed": str(2**64)}, "seed", "from 0"),
        ({"seed": "٣"}, "seed", "whole number"),
        ({"num_inference_steps": "0"}, "num_inference_steps", "from 1"),
        ({"guidance_scale": "high"}, "guidance_scale", "a number"),
        ({"model": "sora-2"}, "model", "give 'shapes-75'"),
        ({"num_frame": "4"}, "num_frame", "Did you mean 'num_frames'"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, str], param: str, words: str) -> None:
    with pytest.raises(FieldError) as refused:
        read(**fields)
    assert refused.value.param == param
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@given(st.dictionaries(st.sampled_from(FIELDS), st.text(max_size=30)))
def test_any_text_is_an_order_or_a_sentence(fields: dict[str, str]) -> None:
    with contextlib.suppress(Arl2Error):
        order = read_order(fields, MODEL, most_seconds=60)
        assert 1 <= order.frames <= 960
        assert order.prompt.strip()


@pytest.mark.parametrize(("frames", "said"), [(64, "4"), (81, "5.06"), (40, "2.5"), (160, "10"), (1, "0.06")])
def test_seconds_are_said_as_text(frames: int, said: str) -> None:
    assert seconds_of(frames, 16) == said
