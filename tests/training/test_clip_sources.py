"""Where clips come from: the teacher's own rollouts, true scenes, and videos; each clip by its number alone."""

import json

import pytest
import torch

from arl2.errors import Arl2Error, ConfigError, GeometryError
from arl2.shapes.training.clip_source import PromptedScenes, SceneClips, SceneOpenings
from arl2.shapes.world.palette import COLOURS
from arl2.shapes.world.renderer import render
from arl2.streams.conditioning import video_latents
from arl2.training.clips.dataset import ClipSet
from arl2.training.clips.folder import ClipIndex
from arl2.training.clips.sources import Prompt, TeacherClips, fingerprint, write_clips
from arl2.training.clips.videos import VideoClips, plan_videos, read_captioned, videos_fingerprint
from arl2.training.clips.writing import ClipWriter
from arl2.video.formats import VideoFileError
from arl2.video.reading import read_video
from arl2.video.writers import open_video
from pipeline.stand_in import stand_in_pipeline

PROMPTS = [
    Prompt("a red circle moves right on navy", 5),
    Prompt("a green square bounces", 2),
    Prompt("the thing on beige", 9),
]


@pytest.fixture(scope="module")
def teacher():
    return stand_in_pipeline("SS")


def made(source, numbers: range):
    return list(source.clips(numbers, lambda done: None))


def test_a_clip_is_what_the_teacher_streams(teacher) -> None:
    source = TeacherClips(teacher, PROMPTS, latent_frames=6, batch=2)
    clips = made(source, range(3))
    for prompt, clip in zip(PROMPTS, clips, strict=True):
        blocks = teacher.stream([prompt.caption], num_frames=21, seed=[prompt.seed])
        expected = torch.cat([block.latents for block in blocks], dim=2)[0]
        torch.testing.assert_close(clip.latents, expected, atol=1e-4, rtol=1e-4)
        assert (clip.caption, clip.seed) == (prompt.caption, prompt.seed)
        rows = teacher.text.encode([prompt.caption])[0]
        assert torch.equal(clip.text, rows[: len(clip.text)])
        assert 5 <= len(clip.text) < teacher.text.length
        assert not rows[len(clip.text) :].any()
    # By its number: alone it is the same clip.
    torch.testing.assert_close(made(source, range(1, 2))[0].latents, clips[1].latents, atol=1e-4, rtol=1e-4)


def test_progress_counts_parts_of_clips(teacher) -> None:
    heard: list[float] = []
    list(TeacherClips(teacher, PROMPTS, latent_frames=6, batch=2).clips(range(3), heard.append))
    assert heard == [1.0, 2.0, 2.5, 3.0]


def test_openings_are_true_and_the_teacher_goes_on(teacher) -> None:
    scenes = PromptedScenes.sample(2, seed=4, hiding=True)
    openings = SceneOpenings.of_blocks(teacher, scenes, 1, clip_frames=6)
    opened = made(TeacherClips(teacher, scenes.prompts, latent_frames=6, openings=openings), range(2))
    free = made(TeacherClips(teacher, scenes.prompts, latent_frames=6), range(2))
    true = teacher.codec.encode(render(scenes.scenes, 21))
    for i in range(2):
        torch.testing.assert_close(opened[i].latents[:, :3], true[i, :, :3], atol=1e-5, rtol=1e-5)
        assert (opened[i].latents[:, 3:] - free[i].latents[:, 3:]).abs().max() > 1e-3
    for blocks in (0, 2):
        with pytest.raises(GeometryError, match="leave a block to generate"):
            SceneOpenings.of_blocks(teacher, scenes, blocks, clip_frames=6)


def test_scenes_and_captions_depend_on_their_number_alone() -> None:
    few, many = PromptedScenes.sample(3, seed=8), PromptedScenes.sample(11, seed=8)
    assert many.prompts[:3] == few.prompts
    assert len({prompt.seed for prompt in many.prompts}) == 11
    assert PromptedScenes.sample(3, seed=9).prompts != few.prompts
    assert len({prompt.caption.split()[0] for prompt in PromptedScenes.sample(40, seed=1).prompts}) == 3  # paraphrases


@pytest.mark.parametrize(("asked", "share"), [({"no_colour": 0.0}, 0), ({"no_colour": 1.0}, 1), ({"hiding": True}, 1)])
def test_the_share_of_captions_without_colour(asked, share) -> None:
    captions = [prompt.caption for prompt in PromptedScenes.sample(20, seed=0, **asked).prompts]
    assert sum(not set(COLOURS) & set(caption.split()) for caption in captions) == 20 * share


def test_true_clips_are_encoded_renders(teacher) -> None:
    scenes = PromptedScenes.sample(3, seed=2)
    clips = made(SceneClips(teacher, scenes, latent_frames=6, batch=2), range(1, 3))
    true = teacher.codec.encode(render(scenes.scenes, 21))
    for clip, expected, prompt in zip(clips, true[1:], scenes.prompts[1:], strict=True):
        torch.testing.assert_close(clip.latents, expected, atol=1e-5, rtol=1e-5)
        assert clip.caption == prompt.caption


def test_bad_prompts_and_teachers(teacher) -> None:
    with pytest.raises(ConfigError, match=r"converted layers \(plan SH\), but a teacher is a softmax model"):
        TeacherClips(stand_in_pipeline("SH"), PROMPTS, latent_frames=6)
    with pytest.raises(ConfigError, match="There are no prompts"):
        TeacherClips(teacher, [], latent_frames=6)
    with pytest.raises(ConfigError, match="Prompt 1 is empty"):
        TeacherClips(teacher, [PROMPTS[0], Prompt(" ", 0)], latent_frames=6)
    with pytest.raises(ConfigError, match="has the seed"):
        TeacherClips(teacher, [Prompt("a", 2**63)], latent_frames=6)
    with pytest.raises(ConfigError, match="number of scenes is 0"):
        PromptedScenes.sample(0, seed=0)
    with pytest.raises(Arl2Error, match="share between 0 and 1"):
        PromptedScenes.sample(2, seed=0, no_colour=1.5)


def test_processes_share_the_shards(teacher, tmp_path) -> None:
    scenes = PromptedScenes.sample(5, seed=2)
    source = SceneClips(teacher, scenes, latent_frames=3)
    index = ClipIndex(clips=5, shard_clips=1, latents=(3, 3, 8, 8), text_width=10)
    written = [write_clips(ClipWriter(tmp_path / "two", index), source, rank=r, processes=2) for r in (1, 0)]
    assert written == [2, 3]
    done: list[float] = []
    assert write_clips(ClipWriter(tmp_path / "one", index), source, on_progress=done.append) == 5
    assert done[-1] == 5
    one, two = ClipSet.open(tmp_path / "one"), ClipSet.open(tmp_path / "two")
    assert all(torch.equal(one[i].latents, two[i].latents) for i in range(5))
    with pytest.raises(ConfigError, match="source has 3 clips"):
        write_clips(ClipWriter(tmp_path / "one", index), TeacherClips(teacher, PROMPTS, latent_frames=3))


def test_the_fingerprint_tells_prompts_apart() -> None:
    others = [PROMPTS[:2], [*PROMPTS[:2], Prompt("the thing on beige", 8)], [PROMPTS[1], PROMPTS[0], PROMPTS[2]]]
    assert len({fingerprint(one) for one in (PROMPTS, *others)}) == 4


@pytest.fixture
def videos(tmp_path):
    """Three videos of the world at its own size and rate: 21, 9 and 5 video frames."""
    folder = tmp_path / "videos"
    folder.mkdir()
    scenes = PromptedScenes.sample(3, seed=6)
    for name, frames, scene in (("b.y4m", 21, 0), ("a.y4m", 9, 1), ("c.y4m", 5, 2)):
        video = render(scenes.scenes.select(slice(scene, scene + 1)), frames)[0].permute(1, 2, 3, 0)
        with open_video(folder / name, fps=16) as file:
            file.write(((video + 1) * 127.5).round().byte().numpy())
        (folder / name).with_suffix(".txt").write_text(scenes.prompts[scene].caption + "\n")
    return folder


def test_videos_become_clips(teacher, videos, tmp_path) -> None:
    found = read_captioned(videos)
    assert [one.path.name for one in found] == ["a.y4m", "b.y4m", "c.y4m"]
    counts, short = plan_videos(found, tmp_path / "clips", video_frames=9, fps=16, most=5)
    assert (counts, short) == ([1, 2, 0], ["c.y4m"])
    clips = made(VideoClips(teacher, found, counts, latent_frames=3), range(3))
    assert [clip.caption for clip in clips] == [found[0].caption, found[1].caption, found[1].caption]
    second = read_video(videos / "b.y4m")[9:18]
    assert torch.equal(clips[2].latents, video_latents(teacher.codec, second, height=64, width=64)[0])
    # Counted once: the files are not decoded again.
    for one in found:
        one.path.write_bytes(b"x" * one.path.stat().st_size)
    assert plan_videos(found, tmp_path / "clips", video_frames=9, fps=16, most=1)[0] == [1, 1, 0]
    with pytest.raises(VideoFileError):
        plan_videos(found, tmp_path / "clips", video_frames=9, fps=8, most=1)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_captions_from_a_list(videos, kind) -> None:
    captions = {"a.y4m": 'one, "quoted"', "b.y4m": "two", "c.y4m": "três"}
    if kind == "csv":
        lines = ["file,caption", *(f'{n},"{c.replace(chr(34), chr(34) * 2)}"' for n, c in captions.items())]
    else:
        lines = [json.dumps({"file": n, "caption": c}) for n, c in captions.items()]
    (videos / f"captions.{kind}").write_text("\n".join(lines), encoding="utf-8")
    assert [one.caption for one in read_captioned(videos)] == list(captions.values())


def test_bad_folders_of_videos(videos, tmp_path) -> None:
    def refused(said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            read_captioned(videos)

    before = videos_fingerprint(read_captioned(videos))
    (videos / "a.txt").write_text("another")
    assert videos_fingerprint(read_captioned(videos)) != before
    (videos / "a.txt").unlink()
    refused(r"1 videos have no caption, first 'a\.y4m'; write it into a \.txt beside it")
    listed = videos / "captions.jsonl"
    listed.write_text('{"file": "a.y4m", "caption": "one"}\n{"file": "z.mp4", "caption": "two"}')
    refused(r"names 1 videos that are not in the folder, first 'z\.mp4'")
    listed.write_text('{"file": "a.y4m"}')
    refused("entry 1: both 'file' and 'caption'")
    listed.write_text('{"file": "a.y4m", "caption": "1"}\n{"file": "a.y4m", "caption": "2"}')
    refused("entry 2: 'a.y4m' has a caption already")
    listed.write_text("[1]")
    refused("line 1: this is a list; a line is a JSON object")
    listed.write_bytes(b"\xff\xfe")
    refused("UTF-8")
    (videos / "captions.csv").write_text("file,caption\n")
    refused("keep one of them")
    with pytest.raises(ConfigError, match="holds no videos"):
        read_captioned(tmp_path)
    with pytest.raises(ConfigError, match="There is no folder"):
        read_captioned(tmp_path / "nothing")


def test_videos_that_are_all_too_short(videos, tmp_path) -> None:
    with pytest.raises(ConfigError, match="All 3 videos are shorter than a clip of 81"):
        plan_videos(read_captioned(videos), tmp_path / "clips", video_frames=81, fps=16, most=1)
