"""Saved, resumed, forked or rewound, a stream goes on as if nothing had happened."""

import asyncio
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arl2.errors import StreamError
from rollout.streams import OTHER, PROMPT, latents_of, same_bits, small_pipeline, take, uninterrupted
from support import relative

BLOCKS = 9
KINDS = {
    # plan, guided, further arguments, how it is rewound, how it is saved
    "exact": ("HS", False, {"sink": 2}, "exact", "exact"),
    "relative sinks": ("SS", False, {"sink": 1, "sink_positions": "relative"}, "exact", "exact"),
    "two memories": ("SH", True, {}, "exact", "exact"),
    "all hybrid, light": ("HH", False, {}, "light", "light"),
}
STEPS = st.one_of(st.just("next"), st.just("resume"), st.just("fork"), st.integers(1, 3))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=3, max_size=8))
def test_whatever_is_done_to_it_a_stream_gives_the_same_bits(kind: str, steps: list, tmp_path: Path) -> None:
    plan, guided, asked, rewinding, saving = KINDS[kind]
    pipe = small_pipeline(plan, guided)
    expected = uninterrupted(plan, guided, BLOCKS, **asked)
    stream = pipe.stream(PROMPT, seed=3, rewind_kind=rewinding, rewind_blocks=3, **asked)
    keeps = 0
    for step in ["next", "next", *steps, "next"]:
        if step == "resume":
            stream.save(tmp_path / "stream.arl2", saving)
            stream, keeps = pipe.resume(tmp_path / "stream.arl2"), 0
        elif step == "fork":
            left, stream = stream, stream.fork()
            if left.index < BLOCKS:
                next(left)  # what the one does the other does not see
        elif step == "next":
            if stream.index < BLOCKS:
                at = stream.index
                assert same_bits(next(stream), expected[at])
                keeps = min(3, keeps + 1)
        elif step <= keeps:
            at = stream.index
            stream.rewind(step)
            keeps -= step
            assert stream.index == at - step
            assert stream.video_frames == expected[stream.index].first_video_frame


@pytest.mark.parametrize(("plan", "bound"), [("SH", 1e-6), ("SS", 5e-2), ("HS", 5e-3)])
def test_a_light_snapshot_is_close_and_comes_closer(plan: str, bound: float, tmp_path: Path) -> None:
    pipe = small_pipeline(plan)
    expected = uninterrupted(plan, False, BLOCKS)
    stream = pipe.stream(PROMPT, seed=3)
    take(stream, 5)
    stream.save(tmp_path / "light.arl2", "light")
    after = take(pipe.resume(tmp_path / "light.arl2"), BLOCKS - 5)
    differences = [relative(one.latents, other.latents) for one, other in zip(after, expected[5:], strict=True)]
    assert differences[0] < bound
    assert differences[-1] <= differences[0]
    # To rewind from light points is the same as to resume.
    take(stream, 2)
    stream.rewind(2)
    assert torch.equal(latents_of(take(stream, 3)), latents_of(after[:3]))


@pytest.mark.parametrize("blocks", [0, 2])
def test_a_young_stream_is_light_and_exact(blocks: int, tmp_path: Path) -> None:
    """Its latents are all there, so windows and decoder become what they were."""
    pipe = small_pipeline("HS")
    stream = pipe.stream(PROMPT, seed=3)
    take(stream, blocks)
    stream.save(tmp_path / "young.arl2", "light")
    resumed = pipe.resume(tmp_path / "young.arl2")
    expected = uninterrupted("HS", False, BLOCKS)[blocks:]
    assert all(same_bits(one, other) for one, other in zip(take(resumed, 4), expected, strict=False))


def test_a_light_snapshot_is_light(tmp_path: Path) -> None:
    stream = small_pipeline("HS").stream(PROMPT)
    sizes = {}
    for blocks in (6, 12):
        take(stream, 6)
        for kind in ("light", "exact"):
            stream.save(tmp_path / kind, kind)
            sizes[kind, blocks] = (tmp_path / kind).stat().st_size
    assert sizes["light", 6] < sizes["exact", 6] / 2
    assert abs(sizes["light", 12] - sizes["light", 6]) < 100  # numbers get longer, nothing else


def test_a_rewound_stream_says_so_and_may_take_another_seed() -> None:
    stream = small_pipeline("HS").stream(PROMPT, seed=3, rewind_kind="exact")
    first = take(stream, 4)
    stream.rewind(2, seed=8)
    other = take(stream, 2)
    assert [block.cut for block in (*first, *other)] == [False] * 4 + [True, False]
    assert relative(other[0].latents, first[2].latents) > 0.1
    stream.rewind(3)
    assert same_bits(next(stream), first[1])  # the seed of that time, too
    fork = stream.fork(seed=8)
    assert torch.equal(next(fork).latents, other[0].latents)


def test_a_point_keeps_its_prompt() -> None:
    pipe = small_pipeline("HS")
    stream = pipe.stream(PROMPT, seed=3, rewind_kind="exact")
    take(stream, 3)
    stream.prompt = OTHER
    changed = take(stream, 2)
    stream.rewind(2)
    assert stream.prompt == OTHER  # the change came with the block
    assert same_bits(next(stream), changed[0])
    stream.rewind(2)
    assert stream.prompt == PROMPT
    assert same_bits(next(stream), uninterrupted("HS", False, BLOCKS)[2])


def test_what_waits_is_saved_and_forked(tmp_path: Path) -> None:
    pipe = small_pipeline("HS")
    known = latents_of(uninterrupted("HS", False, BLOCKS)[:3])
    stream = pipe.stream(PROMPT, seed=3, known=known, num_frames=40)
    next(stream)
    stream.change_prompt(OTHER, "cut")
    stream.save(tmp_path / "waiting.arl2")
    resumed, fork = pipe.resume(tmp_path / "waiting.arl2"), stream.fork()
    assert resumed.prompt == fork.prompt == OTHER
    ends = [list(one) for one in (stream, resumed, fork)]
    assert [block.denoise_seconds > 0 for block in ends[0]] == [False, False, True]
    assert [block.cut for block in ends[0]] == [True, False, False]
    assert ends[0][-1].video.shape[2] == 40 - 33
    for end in ends[1:]:
        assert all(same_bits(one, other) for one, other in zip(end, ends[0], strict=True))


def test_resuming_with_another_prompt_is_changing_it(tmp_path: Path) -> None:
    pipe = small_pipeline("HS")
    stream = pipe.stream(PROMPT, seed=3)
    take(stream, 3)
    stream.save(tmp_path / "stream.arl2")
    resumed = pipe.resume(tmp_path / "stream.arl2", prompt=OTHER)
    stream.prompt = OTHER
    assert same_bits(next(resumed), next(stream))


def test_batches_with_prompts_and_seeds_of_their_own(tmp_path: Path) -> None:
    pipe = small_pipeline("SH")
    stream = pipe.stream([PROMPT, OTHER], seed=[3, 9])
    take(stream, 2)
    stream.prompt = [OTHER, PROMPT]
    stream.save(tmp_path / "two.arl2")
    resumed = pipe.resume(tmp_path / "two.arl2")
    assert resumed.prompt == [OTHER, PROMPT]
    assert same_bits(next(resumed), next(stream))
    stream.prompt = PROMPT
    assert stream.prompt == PROMPT
    with pytest.raises(StreamError, match="Got 1 prompts for 2"):
        stream.prompt = [PROMPT]


def test_what_cannot_be_done_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    pipe = small_pipeline("HS")
    stream = pipe.stream(PROMPT, seed=3, rewind_blocks=2)
    take(stream, 3)
    for blocks in (3, 0, -1):
        with pytest.raises(StreamError, match="the stream keeps 2"):
            stream.rewind(blocks)
    block = stream.latents_next()
    for action in (stream.fork, stream.rewind, lambda: stream.save(tmp_path / "x")):
        with pytest.raises(StreamError, match="block 3 is not decoded yet"):
            action()
    assert same_bits(stream.decode(block), uninterrupted("HS", False, BLOCKS)[3])
    with pytest.raises(StreamError, match="block 4 is next"):
        stream.decode(block)
    with pipe.stream(PROMPT, seed=3) as closing:
        next(closing)
    assert closing.closed
    for action in (closing.fork, closing.rewind, lambda: next(closing), lambda: closing.prompt):
        with pytest.raises(StreamError, match="closed"):
            action()
    closing.close()


def test_async_iteration_is_iteration() -> None:
    async def gather() -> list:
        return [block async for block in small_pipeline("HS").stream(PROMPT, seed=3, num_frames=33)]

    blocks = asyncio.run(gather())
    assert all(same_bits(one, other) for one, other in zip(blocks, uninterrupted("HS", False, BLOCKS), strict=False))
    assert len(blocks) == 3
