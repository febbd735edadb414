"""Prompts of one command: what cannot work is refused first, and what was listed is never lost."""

import json
from pathlib import Path

import pytest

from arl2.errors import GeometryError
from arl2.pipeline.options import SamplingOptions
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.file_names import plan_outputs
from arl2.serving.generation import Generation
from arl2.serving.manifest import LISTING, read_listing, write_listing
from arl2.serving.report import BlockReport
from arl2.video.formats import VideoFileError
from pipeline.stand_in import stand_in_pipeline

PROMPTS = ["a red circle moves right", "a blue square bounces"]


class Progress:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.reports: list[BlockReport] = []

    def block(self, report: BlockReport) -> None:
        self.reports.append(report)


class Stop:
    asked = False


@pytest.fixture(scope="module")
def pipe() -> ARL2Pipeline:
    return stand_in_pipeline()


def generation(
    pipe: ARL2Pipeline, output: Path | None, *, seed: int = 0, frames: int = 9, scale: int = 1
) -> Generation:
    return Generation(
        pipe,
        PROMPTS,
        plan_outputs(PROMPTS, output, seed=seed),
        model="stand-in",
        sampling=SamplingOptions(),
        num_frames=frames,
        seed=seed,
        scale=scale,
        keep_pictures=True,
        keep_latents=True,
    )


def test_a_folder_lists_its_videos_and_reports_its_blocks(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    for seed in (0, 7):
        progress, work = Progress(), generation(pipe, tmp_path / "out", seed=seed, frames=21)
        work.check()
        work.run(Stop(), progress)
        assert [(one.index, one.blocks, one.video_frames, one.share) for one in progress.reports] == [
            (0, 2, 9, 0.5),
            (1, 2, 21, 1.0),
        ]
        assert work.places() == [tmp_path / "out"]
        assert work.video_frames == 42
    listed = read_listing(tmp_path / "out")
    # Another seed does not overwrite the first.
    assert [(one["prompt"], one["seed"]) for one in listed.values()] == [
        *zip(PROMPTS, (0, 1), strict=True),
        *zip(PROMPTS, (7, 8), strict=True),
    ]
    assert sorted([*listed, LISTING]) == sorted(one.name for one in (tmp_path / "out").iterdir())


def test_a_damaged_listing_is_met_before_the_work_and_stays(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    written = json.dumps({"file": "a.mp4", "prompt": "red"}) + "\n" + '{"file": "b.m'
    (tmp_path / LISTING).write_text(written)
    with pytest.raises(VideoFileError, match=r"manifest\.jsonl', line 2: this is not JSON"):
        generation(pipe, tmp_path).check()
    with pytest.raises(VideoFileError, match="line 2"):
        write_listing(tmp_path, [{"file": "c.mp4"}])
    assert (tmp_path / LISTING).read_text() == written
    assert [one.name for one in tmp_path.iterdir()] == [LISTING]


def test_a_scale_that_no_file_can_have_is_refused_before_the_work(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    work = generation(pipe, tmp_path / "out", scale=1_000_000)
    with pytest.raises(GeometryError, match="Got scale=1000000 for frames of 64 x 64"):
        work.check()


def test_sheet_and_latents_that_cannot_be_written_are_one_sentence(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    work = generation(pipe, tmp_path / "all.gif")
    work.run(Stop(), Progress())
    (tmp_path / "taken").mkdir()
    for write, what in ((work.write_sheet, "contact sheet"), (work.write_latents, "latents")):
        with pytest.raises(VideoFileError, match=f"The {what} could not be written to '.*taken'"):
            write(tmp_path / "taken")
        write(tmp_path / what)
        assert (tmp_path / what).stat().st_size > 1000
    assert not list(tmp_path.glob(".*"))
