"""The service of video jobs: made once, made again after a cut with the same bytes, and kept as long as it says."""

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.live.objects import StoreError
from arl2.serving.live.wire import DrainingError, NoRoomError, UnknownStreamError
from arl2.serving.videos import room
from arl2.serving.videos.order import FieldError
from arl2.serving.videos.service import VideoService, VideoSettings
from arl2.serving.videos.shelf import VideoRecord
from arl2.video.reading import read_video, video_info
from pipeline.stand_in import SETTINGS as MODEL
from pipeline.stand_in import stand_in_pipeline

RED = {"prompt": "a red circle moves right", "seed": "5"}
SETTINGS = VideoSettings(model="stand-in")


class Gates:
    """Turns that let a number of blocks through, and then wait: a job stands still where a test wants it."""

    def __init__(self) -> None:
        self._left, self.denoised = threading.Semaphore(0), 0
        self.waiting = threading.Event()

    def let(self, blocks: int) -> None:
        self.waiting.clear()
        self._left.release(blocks)

    @property
    @contextlib.contextmanager
    def denoise(self) -> Iterator[None]:
        if threading.current_thread().name != "arl2-videos":
            yield  # checks of requests
            return
        self.waiting.set()
        assert self._left.acquire(timeout=20)
        self.denoised += 1
        yield

    @property
    def decode(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@pytest.fixture(scope="module")
def pipe() -> ARL2Pipeline:
    return stand_in_pipeline()


@pytest.fixture
def start(pipe: ARL2Pipeline, tmp_path: Path) -> Iterator[Callable[..., VideoService]]:
    running: list[VideoService] = []

    def begin(settings: VideoSettings = SETTINGS, turns: Gates | None = None, folder: str = "videos") -> VideoService:
        running.append(VideoService(pipe, tmp_path / folder, settings, turns))
        return running[-1]

    yield begin
    for service in running:
        service.close()


def until(service: VideoService, id: str, *statuses: str) -> VideoRecord:
    deadline = time.monotonic() + 20
    while (record := service.get(id)).status not in statuses:
        assert time.monotonic() < deadline, record
        time.sleep(0.01)
    return record


def picture(size: tuple[int, int] = (64, 64)) -> io.BytesIO:
    data = io.BytesIO()
    Image.new("RGB", size, "navy").save(data, format="PNG")
    data.seek(0)
    return data


def test_a_job_becomes_a_video_and_its_pictures(start: Callable[..., VideoService], pipe: ARL2Pipeline) -> None:
    service = start()
    taken = service.create({**RED, "num_frames": "20"})
    assert (taken.status, taken.frames, taken.width, taken.height) == ("queued", 20, 256, 256)
    done = until(service, taken.id, "completed", "failed")
    assert (done.status, done.progress, done.error) == ("completed", 100, None)
    assert done.completed is not None
    assert done.expires == done.completed + 7 * 86400
    video, kind = service.content(taken.id)
    assert kind == "video/mp4"
    frames = read_video(video)
    assert frames.shape == (20, 256, 256, 3)
    expected = pipe(RED["prompt"], num_frames=20, seed=5, output_type="np").frames[0]
    # H.264 loses a little of noise.
    assert np.abs(frames[:, ::4, ::4] / 255.0 - expected).mean() < 0.06
    assert video_info(video).settings["prompt"] == RED["prompt"]
    thumbnail, kind = service.content(taken.id, "thumbnail")
    with Image.open(thumbnail) as image:
        assert (image.format, image.size, kind) == ("WEBP", (256, 256), "image/webp")
    sheet, kind = service.content(taken.id, "spritesheet")
    with Image.open(sheet) as image:
        assert (image.format, image.size, kind) == ("JPEG", (5 * 192, 4 * 192), "image/jpeg")


def test_the_same_bytes_after_a_cut(start: Callable[..., VideoService], tmp_path: Path) -> None:
    whole = start(folder="whole")
    id = until(whole, whole.create({**RED, "num_frames": "31"}).id, "completed").id
    expected = {kind: whole.content(id, kind)[0].read_bytes() for kind in ("video", "thumbnail", "spritesheet")}

    gates = Gates()
    cut = start(turns=gates)
    job = cut.create({**RED, "num_frames": "31"})
    assert gates.waiting.wait(20)
    gates.let(1)
    until_progress(cut, job.id)
    stop = threading.Thread(target=cut.close)
    stop.start()
    while not cut._closing:  # the worker is between two blocks, and waits for its turn
        time.sleep(0.001)
    gates.let(1)
    stop.join()
    assert gates.denoised == 2
    again = start()
    record = until(again, job.id, "completed")
    assert record.attempts == 1  # what was ended in order does not count
    assert {kind: again.content(job.id, kind)[0].read_bytes() for kind in expected} == expected


def until_progress(service: VideoService, id: str) -> None:
    deadline = time.monotonic() + 20
    while not service.get(id).progress:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_job_that_ends_the_server_again_and_again_fails(
    start: Callable[..., VideoService], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = Gates()
    service = start(turns=gates)
    job = service.create(RED)
    assert gates.waiting.wait(20)
    record = service._shelf.load()[0]
    assert (record.status, record.attempts) == ("in_progress", 1)
    service.delete(job.id)
    gates.let(1)
    service.close()

    left = replace(record, attempts=5)
    again = start()
    again._shelf.path(job.id, "").mkdir()
    again._shelf.write(left)
    again.close()
    failed = until(start(), job.id, "failed", "completed")
    assert failed.error == "The server ended each time that this video was made."


def test_jobs_take_turns_and_are_made_in_order(start: Callable[..., VideoService]) -> None:
    gates = Gates()
    service = start(turns=gates)
    jobs = [service.create({**RED, "num_frames": "9"}).id for _ in range(3)]
    assert gates.waiting.wait(20)
    assert [service.get(id).status for id in jobs] == ["in_progress", "queued", "queued"]
    assert service.counts() == {"queued": 2, "in_progress": 1, "completed": 0, "failed": 0}
    gates.let(1)
    until(service, jobs[0], "completed")
    assert service.get(jobs[2]).status == "queued"
    gates.let(2)
    done = [until(service, id, "completed") for id in jobs]
    assert [one.completed for one in done] == sorted(one.completed or 0 for one in done)
    assert gates.denoised == 3


def test_lists_have_pages(start: Callable[..., VideoService]) -> None:
    gates = Gates()
    service = start(turns=gates)
    ids = [service.create({**RED, "num_frames": "9"}).id for _ in range(5)]
    assert [one.id for one in service.list().records] == ids[::-1]
    first = service.list(limit=2, order="asc")
    assert ([one.id for one in first.records], first.has_more) == (ids[:2], True)
    rest = service.list(limit=3, order="asc", after=ids[1])
    assert ([one.id for one in rest.records], rest.has_more) == (ids[2:], False)
    assert service.list(after=ids[0]).records == ()
    with pytest.raises(UnknownStreamError):
        service.list(after="video_0")
    for wrong in ({"limit": 0}, {"limit": 101}, {"order": "up"}):
        with pytest.raises(FieldError):
            service.list(**wrong)
    for id in ids:
        service.delete(id)
    gates.let(1)


def test_deleted_jobs_leave_nothing(start: Callable[..., VideoService], tmp_path: Path) -> None:
    gates = Gates()
    service = start(turns=gates)
    ids = [service.create({**RED, "num_frames": "31"}).id for _ in range(2)]
    assert gates.waiting.wait(20)
    for id in ids:
        service.delete(id)
        for act in (service.get, service.delete, service.content):
            with pytest.raises(UnknownStreamError, match="There is no video"):
                act(id)
    gates.let(1)
    service.close()
    assert list((tmp_path / "videos").iterdir()) == []
    assert gates.denoised == 1


def test_a_remix_has_the_same_noise_and_options(start: Callable[..., VideoService]) -> None:
    service = start()
    first = until(service, service.create({**RED, "num_frames": "9", "size": "64x64"}).id, "completed")
    same = until(service, service.remix(first.id, RED["prompt"]).id, "completed")
    other = until(service, service.remix(first.id, "a blue square bounces").id, "completed")
    assert (same.remixed_from, same.sampling, same.frames) == (first.id, first.sampling, 9)
    videos = [service.content(one.id)[0].read_bytes() for one in (first, same, other)]
    assert videos[0] == videos[1] != videos[2]
    with pytest.raises(FieldError, match="empty"):
        service.remix(first.id, "")
    with pytest.raises(UnknownStreamError):
        service.remix("video_1", "red")


def test_an_extension_goes_on_where_the_video_ends(start: Callable[..., VideoService]) -> None:
    service = start()
    first = until(service, service.create({**RED, "num_frames": "9"}).id, "completed")
    video, _ = service.content(first.id)
    longer = [
        service.extend({**RED, "num_frames": "12"}, source).id for source in (first.id, io.BytesIO(video.read_bytes()))
    ]
    records = [until(service, id, "completed", "failed") for id in longer]
    assert [(one.status, one.frames, one.error) for one in records] == 2 * [("completed", 21, None)]
    one, other = (read_video(service.content(id)[0]) for id in longer)
    assert np.array_equal(one, other)
    assert np.array_equal(one[:9], read_video(video))  # its packets are passed through
    with pytest.raises(FieldError) as refused:
        service.extend(RED, io.BytesIO(b"no video at all"))
    assert refused.value.param == "video"
    assert str(service._shelf.folder) not in str(refused.value)
    with pytest.raises(UnknownStreamError):
        service.extend(RED, "video_2")
    short = start(replace(SETTINGS, most_seconds=0.25), folder="short")
    with pytest.raises(FieldError, match="more than 4 frames"):
        short.extend({**RED, "num_frames": "1"}, io.BytesIO(video.read_bytes()))


def test_an_image_to_start_from(tmp_path: Path, start: Callable[..., VideoService]) -> None:
    framewise = stand_in_pipeline(settings=replace(MODEL, first_block_frames=1))
    service = VideoService(framewise, tmp_path / "framewise", SETTINGS)
    with pytest.raises(FieldError) as refused:
        service.create(RED, io.BytesIO(b"\x89PNG, it says"))
    assert refused.value.param == "input_reference"
    assert str(tmp_path) not in str(refused.value)
    record = service.create({**RED, "num_frames": "13"}, picture())
    assert record.image == "input.png"
    done = until(service, record.id, "completed", "failed")
    assert done.status == "completed", done.error
    remix = until(service, service.remix(record.id, "a blue square").id, "completed", "failed")
    assert remix.image == "input.png"
    frames = [read_video(service.content(one)[0]) for one in (record.id, remix.id)]
    # The first frame is the image's, whatever follows; H.264 spends its bits by what follows, too.
    assert np.abs(frames[0][0].astype(int) - frames[1][0]).mean() < 1
    service.close()
    # A model whose first block is longer cannot.
    with pytest.raises(FieldError, match="cannot start from one"):
        start().create(RED, picture())
    assert list((tmp_path / "videos").iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "65x64"}, "size"),
        ({"size": "1x1"}, "size"),
        ({"prompt": "zyzzyva quux"}, "prompt"),
        ({"guidance_scale": "3"}, None),
        ({"negative_prompt": "blur"}, None),
    ],
)
def test_what_the_model_cannot_make_is_refused_before_work(
    start: Callable[..., VideoService], tmp_path: Path, fields: dict[str, str], param: str | None
) -> None:
    service = start()
    with pytest.raises(FieldError) as refused:
        service.create({**RED, **fields})
    assert refused.value.param == param
    assert list((tmp_path / "videos").iterdir()) == []


def test_no_more_than_fits_and_no_more_than_is_kept(
    start: Callable[..., VideoService], monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = Gates()
    service = start(replace(SETTINGS, most_queued=2, most_kept=2), gates)
    short = {**RED, "num_frames": "9"}
    first = service.create(short)
    assert gates.waiting.wait(20)
    others = [service.create(short) for _ in range(2)]
    with pytest.raises(NoRoomError, match="2 videos wait") as refused:
        service.create(short)
    assert refused.value.retry_after == SETTINGS.retry_after
    gates.let(3)
    until(service, others[1].id, "completed")
    newest = service.create(short)
    assert [one.id for one in service.list(order="asc").records] == [others[1].id, newest.id]
    gates.let(1)
    until(service, newest.id, "completed")
    with pytest.raises(UnknownStreamError):
        service.get(first.id)

    monkeypatch.setattr(room, "available_bytes", lambda device: 3_000_000)
    with pytest.raises(NoRoomError, match="GB of memory beside the model"):
        service.create({**RED, "size": "512x512"})


def test_finished_jobs_expire(start: Callable[..., VideoService], tmp_path: Path) -> None:
    service = start(replace(SETTINGS, keep_seconds=0.0))
    id = service.create({**RED, "num_frames": "9"}).id
    deadline = time.monotonic() + 20
    while service.list().records:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(UnknownStreamError):
        service.content(id)
    assert list((tmp_path / "videos").iterdir()) == []


def test_a_failed_job_says_why_and_ends_no_other(
    start: Callable[..., VideoService], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from arl2.video import writers

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    gates = Gates()
    service = start(turns=gates)
    with monkeypatch.context() as patched:
        patched.setattr(writers, "_encoder", lambda: full)
        failed = until(service, service.create({**RED, "num_frames": "9"}).id, "failed")
    assert failed.error_code == "storage_error"
    assert failed.error is not None
    assert "No space left on device" in failed.error
    assert str(service._shelf.folder) not in failed.error
    with pytest.raises(UnknownStreamError, match=r"has no content: .*No space left"):
        service.content(failed.id)
    gates.let(1)
    until(service, service.create({**RED, "num_frames": "9"}).id, "completed")


def test_one_service_a_folder_and_none_that_ends(start: Callable[..., VideoService]) -> None:
    service = start()
    with pytest.raises(StoreError, match="in use by process"):
        start()
    service.close()
    with pytest.raises(DrainingError):
        service.create(RED)


def test_damage_costs_one_job(
    start: Callable[..., VideoService], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = start()
    ids = [until(service, service.create({**RED, "num_frames": "9"}).id, "completed").id for _ in range(2)]
    service.close()
    (tmp_path / "videos" / ids[0] / "job.json").write_text('{"id": "half')
    (tmp_path / "videos" / ("video_" + 32 * "0")).mkdir()  # killed while it was taken
    (tmp_path / "videos" / "mine").mkdir()
    again = start()
    assert [one.id for one in again.list().records] == [ids[1]]
    assert ids[0] in caplog.text
    assert again.content(ids[1])[0].is_file()
    assert (tmp_path / "videos" / "mine").exists()
    assert not (tmp_path / "videos" / ("video_" + 32 * "0")).exists()
