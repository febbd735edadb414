"""Lists of videos: finished ones stay, others are made again, and a cut leaves nothing that looks finished."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from arl2.errors import Arl2Error, ConfigError
from arl2.pipeline.options import SamplingOptions
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.engine import BlockDone, JobSettings
from arl2.serving.file_names import file_name
from arl2.serving.jobs import Finished, JobList, Skipped, latent_bytes, plan_jobs
from arl2.serving.manifest import manifest_path, model_hash, read_manifest
from arl2.serving.prompts_file import VideoRequest
from arl2.video.reading import read_video, video_info
from arl2.video.writers import open_video
from pipeline.stand_in import stand_in_pipeline

SETTINGS = JobSettings(model="stand-in")
REQUESTS = [
    VideoRequest(prompt="a red circle moves right", where="line 1"),
    VideoRequest(prompt="a blue square bounces", seed=77, frames=20, file="blue.gif", where="line 2"),
]


@pytest.fixture(scope="module")
def pipe() -> ARL2Pipeline:
    return stand_in_pipeline()


def events(work: JobList) -> list[str]:
    return [type(event).__name__ for event in work.run() if not isinstance(event, BlockDone)]


def test_a_list_is_made_and_made_once(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    jobs = plan_jobs(REQUESTS, tmp_path / "out", seed=5, frames=9)
    work = JobList(pipe, jobs, SETTINGS)
    work.check()
    done = list(work.run())
    assert [type(event) for event in done] == [BlockDone, Finished, BlockDone, BlockDone, Finished]
    assert [(e.blocks, e.video_frames) for e in done if isinstance(e, BlockDone)] == [(1, 9), (2, 9), (2, 20)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [jobs[0].path.name, manifest_path(jobs[0].path).name, "blue.gif", "blue.json"]
    )
    assert (jobs[0].seed, jobs[1].seed) == (5, 77)
    manifest = read_manifest(jobs[1].path)
    assert manifest is not None
    assert (manifest.prompt, manifest.seed, manifest.frames, manifest.model) == (REQUESTS[1].prompt, 77, 20, "stand-in")
    assert len(read_video(jobs[1].path)) in (19, 20)
    assert video_info(jobs[0].path).settings["prompt"] == REQUESTS[0].prompt
    latents = pipe(REQUESTS[1].prompt, num_frames=20, seed=77, output_type="latent").frames
    assert manifest.latents_sha256 == hashlib.sha256(latent_bytes(latents)).hexdigest()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert [type(event) for event in JobList(pipe, jobs, SETTINGS).run()] == [Skipped, Skipped]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_only_what_matches_counts_as_finished(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    jobs = plan_jobs(REQUESTS[:1], tmp_path, frames=9)
    work = JobList(pipe, jobs, SETTINGS)
    assert events(work) == ["Finished"]
    assert not work.unfinished()
    (job,) = jobs
    manifest = manifest_path(job.path)
    written = manifest.read_text()

    for changed in (replace(job, seed=1), replace(job, prompt="red"), replace(job, frames=10)):
        assert JobList(pipe, [changed], SETTINGS).unfinished() == (changed,)
    for settings in (
        replace(SETTINGS, sampling=SamplingOptions(steps=(1000,))),
        replace(SETTINGS, sampling=SamplingOptions(window=3)),
        replace(SETTINGS, scale=2),
    ):
        assert JobList(pipe, jobs, settings).unfinished() == jobs
    assert not JobList(pipe, jobs, replace(SETTINGS, model="the same elsewhere")).unfinished()
    other = stand_in_pipeline()
    with torch.no_grad():
        other.transformer.head.proj.bias[0] += 1
    assert JobList(other, jobs, SETTINGS).unfinished() == jobs

    values = json.loads(written)
    for damage in ("", "{", "[]", json.dumps({**values, "complete": False}), json.dumps({**values, "more": 1})):
        manifest.write_text(damage)
        assert work.unfinished() == jobs, damage
    manifest.write_text(json.dumps({**values, "file_bytes": "many"}))
    assert work.unfinished() == jobs
    manifest.write_text(written)
    video = job.path.read_bytes()
    job.path.write_bytes(video[:-1])
    assert work.unfinished() == jobs
    job.path.unlink()
    assert work.unfinished() == jobs
    assert events(work) == ["Finished"]
    again = json.loads(manifest.read_text())
    assert again["latents_sha256"] == values["latents_sha256"]


def test_names_hold_the_seed_but_folders_of_earlier_versions_are_recognised(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    (job,) = plan_jobs(REQUESTS[:1], tmp_path, seed=4, frames=9)
    assert job.path.name == file_name(0, job.prompt, seed=4)
    old = replace(job, path=tmp_path / file_name(0, job.prompt))
    assert events(JobList(pipe, [old], SETTINGS)) == ["Finished"]
    assert plan_jobs(REQUESTS[:1], tmp_path, seed=4, frames=9) == (old,)
    assert events(JobList(pipe, [old], SETTINGS)) == ["Skipped"]
    # Another seed is another video, beside it.
    assert plan_jobs(REQUESTS[:1], tmp_path, seed=5, frames=9)[0].path.name == file_name(0, job.prompt, seed=5)


def test_a_cut_leaves_a_video_to_look_at_and_no_manifest(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    jobs = plan_jobs(REQUESTS[:1], tmp_path, frames=33)
    work = JobList(pipe, jobs, SETTINGS)
    assert events(work) == ["Finished"]
    remade = JobList(pipe, jobs, replace(SETTINGS, sampling=SamplingOptions(steps=(1000,))))
    run = remade.run()
    next(run)
    # From the first block on the old manifest is gone: it speaks of another video.
    assert not manifest_path(jobs[0].path).exists()
    next(run)
    run.close()
    assert len(read_video(jobs[0].path)) == 21
    assert remade.unfinished() == jobs


def test_what_cannot_be_made_is_refused_before_the_work(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    bad = VideoRequest(prompt="hello world", where="line 3")
    with pytest.raises(Arl2Error, match=r"^line 3: .*which this model cannot draw"):
        JobList(pipe, plan_jobs([*REQUESTS, bad], tmp_path), SETTINGS).check()
    start = VideoRequest(prompt="red", image=tmp_path / "a.png", where="line 4")
    with pytest.raises(Arl2Error, match=r"^line 4: An image is one latent frame, but this model's first block has 3"):
        JobList(pipe, plan_jobs([start], tmp_path), SETTINGS).check()
    with pytest.raises(ConfigError, match="whole numbers that fall from at most 1000"):
        JobList(
            pipe, plan_jobs(REQUESTS, tmp_path), replace(SETTINGS, sampling=SamplingOptions(steps=(500, 1000)))
        ).check()
    same = [VideoRequest(prompt="red", file=name, where=name) for name in ("a.mp4", "A.gif")]
    with pytest.raises(ConfigError, match=r"A.gif: the name 'A.gif' is taken by a.mp4"):
        plan_jobs(same, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(Arl2Error, match=r"^line 1: .* cannot be made"):
        plan_jobs(REQUESTS, tmp_path / "file" / "out")
    own = VideoRequest(prompt="red", file="own.mp4", video=tmp_path / "own.mp4", where="line 6")
    (tmp_path / "own.mp4").write_text("")
    with pytest.raises(Arl2Error, match=r"^line 6: '.*own.mp4' is what the video starts with"):
        plan_jobs([own], tmp_path)
    gone = VideoRequest(prompt="red", video=tmp_path / "gone.mp4", where="line 5")
    with pytest.raises(Arl2Error, match=r"^line 5: There is no '.*gone.mp4'"):
        list(JobList(pipe, plan_jobs([gone], tmp_path), SETTINGS).run())


def test_going_on_with_a_video(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    (first,) = plan_jobs([VideoRequest(prompt="red", file="first.mp4")], tmp_path, frames=24)
    assert events(JobList(pipe, [first], SETTINGS)) == ["Finished"]
    requests = [VideoRequest(prompt="red", file="more.mp4"), VideoRequest(prompt="red", file="end.mp4", frames=33)]
    jobs = plan_jobs(requests, tmp_path, video=first.path)
    for settings, frames in ((SETTINGS, [45, 33]), (replace(SETTINGS, only_new=True), [24, 12])):
        work = JobList(pipe, jobs, settings)
        assert events(work) == ["Finished", "Finished"]
        assert [len(read_video(job.path)) for job in jobs] == frames
        manifests = [read_manifest(job.path) for job in jobs]
        assert [one.frames for one in manifests if one is not None] == frames
        assert not work.unfinished()
    first.path.write_bytes(first.path.read_bytes() + b"another file")
    assert JobList(pipe, jobs, replace(SETTINGS, only_new=True)).unfinished() == jobs


def test_a_folder_of_pictures_is_told_from_another(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    with open_video(tmp_path / "clip") as writer:
        writer.write(np.zeros((9, 64, 64, 3), dtype=np.uint8))
    jobs = plan_jobs([VideoRequest(prompt="red", frames=21)], tmp_path / "out", video=tmp_path / "clip")
    assert events(JobList(pipe, jobs, SETTINGS)) == ["Finished"]
    assert not JobList(pipe, jobs, SETTINGS).unfinished()
    assert JobList(pipe, [replace(jobs[0], video=None)], SETTINGS).unfinished()
    (tmp_path / "clip" / "00003.png").write_bytes((tmp_path / "clip" / "00003.png").read_bytes() + b" ")
    assert JobList(pipe, jobs, SETTINGS).unfinished() == jobs


def test_the_models_hash(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    before = model_hash(pipe)
    assert before == model_hash(stand_in_pipeline())
    pipe.save_pretrained(tmp_path / "saved")
    assert before == model_hash(ARL2Pipeline.from_pretrained(tmp_path / "saved"))
    assert before != model_hash(ARL2Pipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16))
    assert before != model_hash(stand_in_pipeline("SS"))
    changed = stand_in_pipeline()
    with torch.no_grad():
        next(changed.codec.parameters()).add_(1)
    assert before != model_hash(changed)


def test_large_tensors_are_sampled_from_end_to_end(monkeypatch: pytest.MonkeyPatch, pipe: ARL2Pipeline) -> None:
    monkeypatch.setattr("arl2.streams.model_hash._WHOLE", 64)
    monkeypatch.setattr("arl2.streams.model_hash._PIECE", 8)
    before = model_hash(pipe)
    weight = pipe.transformer.patch_embedding.weight
    for place in (0, -1):
        flat = weight.detach().view(-1)
        kept = float(flat[place])
        flat[place] = kept + 1
        assert model_hash(pipe) != before
        flat[place] = kept
    assert model_hash(pipe) == before
