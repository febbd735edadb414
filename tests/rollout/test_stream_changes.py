"""What changes a stream: new prompts in three ways, and real frames."""

import gc
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from arl2.errors import ConfigError, GeometryError, NonFiniteError, StreamError
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.denoise import Prompted, Rollout
from arl2.shapes.prompts.parser import PromptError
from arl2.video.pixels import to_bytes
from arl2.video.wan_codec import WanCodec
from rollout.streams import OTHER, PROMPT, SMALL, latents_of, same_bits, small_pipeline, take, uninterrupted
from support import ROUNDING, randn, relative, tiny_model
from video.tiny_wan import tiny_vae


def test_a_soft_change_is_new_text_on_the_same_memory() -> None:
    pipe = small_pipeline("HS")
    stream = pipe.stream(PROMPT, seed=3)
    take(stream, 4)
    memory = stream.fork()._state.rollout.memories[0]
    settings, noise = stream._state.rollout.settings, stream._state.rollout.noise
    with torch.no_grad():
        text = pipe.text.encode([OTHER])
        context = pipe.transformer.prompt_context(text)
    expected = Rollout(pipe.transformer, [Prompted(context, text, memory)], noise=noise, settings=settings).make()
    stream.change_prompt(OTHER, "soft")
    changed = next(stream)
    assert torch.equal(changed.latents, expected.latents)
    assert not changed.cut
    assert relative(changed.latents, uninterrupted("HS", False, 9)[4].latents) > 1e-5


def test_a_refresh_that_forgets_states_is_a_new_stream_that_knows_the_last_latents() -> None:
    """While the window holds the whole past, at least: and no difference means that all of it was committed again."""
    pipe = small_pipeline("HS")
    forgetful = ARL2Pipeline(pipe.transformer, pipe.codec, pipe.text, replace(SMALL, refresh_decay=0.0))
    stream = forgetful.stream(PROMPT, seed=3)
    known = latents_of(take(stream, 3))
    stream.change_prompt(OTHER, "refresh")
    changed = next(stream)
    fresh = take(pipe.stream(OTHER, seed=3, known=known), 4)[3]
    assert same_bits(changed, fresh)
    assert not changed.cut
    assert not torch.equal(changed.latents, uninterrupted("HS", False, 9)[3].latents)


def test_a_refresh_under_the_same_prompt_changes_little_and_decay_much() -> None:
    pipe = small_pipeline("HH")
    expected = uninterrupted("HH", False, 9)[6].latents
    differences = []
    for decay in (1.0, 0.0):
        own = ARL2Pipeline(pipe.transformer, pipe.codec, pipe.text, replace(SMALL, refresh_decay=decay))
        stream = own.stream(PROMPT, seed=3)
        take(stream, 6)
        stream.prompt = PROMPT
        differences.append(relative(next(stream).latents, expected))
    assert 0 < differences[0] < differences[1]
    # One softmax layer keeps what latents say, whatever the prompt: committed again they are the same.
    stream = small_pipeline("S").stream(PROMPT, seed=3)
    take(stream, 6)
    stream.prompt = PROMPT
    assert relative(next(stream).latents, uninterrupted("S", False, 9)[6].latents) < 1e-5


@pytest.mark.parametrize("sink", [0, 1])
def test_a_cut_leaves_the_last_block_alone(sink: int) -> None:
    """What comes does not depend on what was before it, only on prompt, noise and the last block."""
    pipe = small_pipeline("HS")
    stream = pipe.stream(PROMPT, seed=3, sink=sink)
    last = take(stream, 5)[-1].latents
    twin = pipe.stream("a green square moves up", seed=3, sink=sink, known=torch.cat([randn(1, 3, 12, 4, 4), last], 2))
    take(twin, 5)
    blocks = []
    for one in (stream, twin):
        one.change_prompt(OTHER, "cut")
        blocks.append(take(one, 4))
    assert [block.cut for block in blocks[0]] == [True, False, False, False]
    assert torch.equal(latents_of(blocks[0]), latents_of(blocks[1]))
    assert blocks[0][0].index == 5
    # Light points after a cut do not bring back what it cleared.
    stream.rewind(3)
    assert torch.equal(latents_of(take(stream, 3)), latents_of(blocks[0][1:]))


@pytest.mark.parametrize("mode", ["soft", "refresh", "cut"])
def test_guided_streams_change_both_memories_together(mode: str) -> None:
    stream = small_pipeline("SH", True).stream(PROMPT, seed=3)
    take(stream, 4)
    stream.change_prompt(OTHER, mode)
    assert next(stream).video.isfinite().all()
    assert len({memory.frames for memory in stream._state.rollout.memories}) == 1


def test_a_change_before_the_first_block_is_the_prompt() -> None:
    pipe = small_pipeline("HS")
    for mode in ("soft", "refresh", "cut"):
        stream = pipe.stream(OTHER, seed=3)
        stream.change_prompt(PROMPT, mode)
        assert stream.prompt == PROMPT
        assert same_bits(next(stream), uninterrupted("HS", False, 9)[0])


def test_a_refused_prompt_leaves_the_one_it_has() -> None:
    stream = small_pipeline("HS").stream(PROMPT, seed=3)
    next(stream)
    with pytest.raises(StreamError, match="keeps the prompt it has"):
        stream.prompt = "  "
    with pytest.raises(PromptError):
        stream.prompt = "hello"
    assert stream.prompt == PROMPT
    assert same_bits(next(stream), uninterrupted("HS", False, 9)[1])
    with pytest.raises(ConfigError, match="from 0 to 1"):
        replace(SMALL, refresh_decay=1.5)
    given = small_pipeline("HS").stream(prompt_embeds=randn(1, 4, 10))
    assert given.prompt is None
    given.prompt = OTHER
    assert given.prompt == OTHER


def tensors_alive() -> list[torch.Tensor]:
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is torch.Tensor and one.layout is torch.strided]


def test_what_a_stream_keeps_does_not_grow() -> None:
    stream = small_pipeline("HS").stream(PROMPT, seed=3, sink=1, rewind_blocks=2)
    take(stream, 4)
    others = tensors_alive()  # of other tests as well; held here, or their places would be taken by new ones
    known = {id(one) for one in others}
    kept = []
    for _ in range(3):
        for mode in ("soft", "refresh", "cut"):
            stream.change_prompt(OTHER, mode)
            take(stream, 4)
        kept.append(sum(one.nbytes for one in tensors_alive() if id(one) not in known))
    assert kept[0] == kept[1] == kept[2]


def test_two_threads_give_the_same_bits() -> None:
    stream = small_pipeline("HS").stream(PROMPT, seed=3, rewind_kind="exact")
    made, decoded, ready = [], [], threading.Semaphore(0)

    def decode() -> None:
        for i in range(6):
            ready.acquire()
            decoded.append(stream.decode(made[i]))

    thread = threading.Thread(target=decode)
    thread.start()
    for _ in range(6):
        made.append(stream.latents_next())
        ready.release()
    thread.join()
    assert all(same_bits(one, other) for one, other in zip(decoded, uninterrupted("HS", False, 9), strict=False))
    stream.rewind(4)
    assert same_bits(next(stream), decoded[2])


def test_real_frames_join_the_stream() -> None:
    """The codec of the stand-in encodes group by group: as if all had been known from the start."""
    pipe = small_pipeline("HS")
    with torch.no_grad():
        video = (randn(1, 3, 9 + 24, 32, 32) / 2).clamp(-1, 1)
        known = pipe.codec.encode(video)
    expected = take(pipe.stream(PROMPT, seed=3, known=known), 5)
    stream = pipe.stream(PROMPT, seed=3, known=known[:, :, :3])
    blocks = take(stream, 1)
    stream.extend_with(video[:, :, 9:])
    blocks += take(stream, 4)
    assert [block.cut for block in blocks] == [False, True, False, False, False]
    assert [block.denoise_seconds == 0 for block in blocks] == [True, True, True, False, False]
    assert all(relative(one.latents, other.latents) < 1e-5 for one, other in zip(blocks, expected, strict=True))
    stream.rewind(4)  # the frames wait again
    assert all(torch.equal(one.latents, other.latents) for one, other in zip(take(stream, 4), blocks[1:], strict=True))


def test_real_frames_as_bytes_may_begin_a_stream() -> None:
    pipe = small_pipeline("HS")
    clip = to_bytes(uninterrupted("HS", False, 9)[0].video[0])
    stream = pipe.stream([PROMPT, OTHER], seed=3)
    stream.extend_with(clip)
    first = next(stream)
    assert not first.cut
    assert first.video.shape == (2, 3, 9, 32, 32)
    assert relative(first.latents[0], first.latents[1]) < ROUNDING[torch.float32]


def test_an_encoder_goes_on_from_the_pictures_before() -> None:
    """Wan's encoder remembers: led up to the cut it makes nearly what it makes of the whole video."""
    text = small_pipeline("S").text
    codec = WanCodec(tiny_vae())
    model = tiny_model("S", block_frames=3, text_len=text.length, in_channels=4, out_channels=4)
    pipe = ARL2Pipeline(model, codec, text, SMALL)
    stream = pipe.stream(PROMPT)
    shown = torch.cat([block.video.clamp(-1, 1) for block in take(stream, 3)], dim=2)
    real = (randn(1, 3, 12, 32, 32) / 2).clamp(-1, 1)
    stream.extend_with(real)
    ours = next(stream).latents
    with torch.no_grad():
        whole = codec.encode(torch.cat([shown, real], dim=2))[:, :, -3:]
        alone = codec.encode(torch.cat([real[:, :, :1], real], dim=2))[:, :, -3:]
    assert relative(ours, whole) < relative(alone, whole) / 10


def test_frames_that_do_not_fit_are_refused() -> None:
    stream = small_pipeline("HS").stream(PROMPT, seed=3, num_frames=33)
    video = torch.zeros(1, 3, 13, 32, 32)
    with pytest.raises(GeometryError, match="give 9 or 21"):
        stream.extend_with(video)
    next(stream)
    with pytest.raises(GeometryError, match="13 video frames do not fill whole blocks here; give 12 or 24"):
        stream.extend_with(video)
    with pytest.raises(GeometryError, match=r"give 12\.$"):
        stream.extend_with(video[:, :, :4])
    with pytest.raises(GeometryError, match="longer than the 33 requested"):
        stream.extend_with(video[:, :, :1].expand(-1, -1, 36, -1, -1))
    with pytest.raises(GeometryError, match="64 x 32 pixels, but this stream is 32 x 32"):
        stream.extend_with(np.zeros((12, 32, 64, 3), dtype=np.uint8))
    with pytest.raises(GeometryError, match="Got 2 videos for 1"):
        stream.extend_with(torch.zeros(2, 3, 12, 32, 32))
    with pytest.raises(NonFiniteError):
        stream.extend_with(torch.full((1, 3, 12, 32, 32), torch.nan))
    assert same_bits(next(stream), uninterrupted("HS", False, 9)[1])
