"""Prompts that are checked before they are used are encoded once, and the videos are those of the prompts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arl2.errors import Arl2Error
from arl2.pipeline.options import SamplingOptions
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving import encoded
from arl2.serving.encoded import EncodedPrompts
from arl2.serving.engine import JobSettings
from arl2.serving.file_names import plan_outputs
from arl2.serving.generation import Generation
from arl2.serving.jobs import JobList, plan_jobs
from arl2.serving.prompts_file import VideoRequest
from arl2.shapes.prompts.text import ShapesText
from pipeline.stand_in import SETTINGS, stand_in_pipeline
from text.tiny_umt5 import tiny_text

PROMPTS = ["a red circle moves right", "a blue square bounces", "a red circle moves right"]


class Counting:
    """A text part that notes what it encodes."""

    def __init__(self, inner: ShapesText) -> None:
        self.inner, self.encoded = inner, list[str]()
        self.length, self.width = inner.length, inner.width

    def encode(self, prompts: list[str]) -> Tensor:
        self.encoded += prompts
        return self.inner.encode(prompts)

    def encode_empty(self) -> Tensor:
        return self.inner.encode_empty()


@pytest.fixture
def pipe() -> ARL2Pipeline:
    return stand_in_pipeline()


@pytest.fixture
def text(pipe: ARL2Pipeline) -> Counting:
    counting = Counting(pipe.text)
    pipe.text = counting
    return counting


@torch.no_grad()
@pytest.mark.parametrize("part", ["shapes", "umt5"])
def test_embeddings_are_the_text_parts(pipe: ARL2Pipeline, part: str) -> None:
    if part == "umt5":
        pipe.text = tiny_text(torch_dtype=torch.bfloat16)
    prompts = EncodedPrompts(pipe.text, pipe.settings)
    for some in (PROMPTS[:1], PROMPTS, PROMPTS[1:]):
        expected = pipe.text.encode(some)
        found = prompts.of(some)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        assert not found.requires_grad


def test_each_prompt_is_encoded_once(pipe: ARL2Pipeline, text: Counting) -> None:
    prompts = EncodedPrompts(pipe.text, pipe.settings)
    prompts.of(PROMPTS[:1])
    first = prompts.of(PROMPTS)
    first.zero_()  # what is handed out is the caller's
    assert prompts.of(PROMPTS).abs().sum() > 0
    assert text.encoded == PROMPTS[:2]
    with pytest.raises(Arl2Error, match="which this model cannot draw"):
        prompts.of([PROMPTS[0], "hello world"])
    assert text.encoded == [*PROMPTS[:2], "hello world"]


def test_no_more_is_kept_than_there_is_room_for(pipe: ARL2Pipeline, text: Counting, monkeypatch) -> None:
    expected = EncodedPrompts(pipe.text, pipe.settings).of(PROMPTS)
    text.encoded.clear()
    monkeypatch.setattr(encoded, "_MOST_KEPT", 1)
    prompts = EncodedPrompts(pipe.text, pipe.settings)
    for _ in range(2):
        assert torch.equal(prompts.of(PROMPTS), expected)
    assert text.encoded == [*PROMPTS[:2], *PROMPTS[:2]]


def test_a_list_of_videos_encodes_its_prompts_once(pipe: ARL2Pipeline, text: Counting, tmp_path: Path) -> None:
    requests = [VideoRequest(prompt=prompt, where="a line") for prompt in PROMPTS]
    work = JobList(pipe, plan_jobs(requests, tmp_path, frames=9), JobSettings(model="stand-in"))
    work.check()
    list(work.run())
    assert not work.unfinished()
    assert text.encoded == PROMPTS[:2]


def test_several_prompts_are_encoded_once(pipe: ARL2Pipeline, text: Counting, tmp_path: Path) -> None:
    work = Generation(
        pipe,
        PROMPTS,
        plan_outputs(PROMPTS, tmp_path / "out.gif"),
        model="stand-in",
        sampling=SamplingOptions(),
        num_frames=9,
        seed=4,
        scale=1,
        keep_pictures=False,
        keep_latents=True,
    )
    work.check()
    assert text.encoded == PROMPTS[:2]


def test_a_negative_prompt_is_encoded_once_and_where_it_is_used(text: Counting, pipe: ARL2Pipeline) -> None:
    assert EncodedPrompts(pipe.text, pipe.settings).negative() is None
    guided = replace(
        SETTINGS, solver="euler", solver_steps=2, guidance_scale=2.0, negative_prompt="a green triangle falls"
    )
    pipe.settings = guided
    expected = pipe(PROMPTS[0], num_frames=9, output_type="latent").frames
    text.encoded.clear()
    prompts = EncodedPrompts(pipe.text, pipe.settings)
    for _ in range(2):
        embeddings = {"prompt_embeds": prompts.of(PROMPTS[:1]), "negative_prompt_embeds": prompts.negative()}
        assert torch.equal(pipe(**embeddings, num_frames=9, output_type="latent").frames, expected)
    assert text.encoded == [PROMPTS[0], "a green triangle falls"]
    pipe.settings = replace(guided, negative_prompt=" ")
    assert EncodedPrompts(pipe.text, pipe.settings).negative() is None
