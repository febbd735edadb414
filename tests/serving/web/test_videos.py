"""Video jobs as OpenAI's own client asks for them, over a real connection, and over a kill of the server."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image

from arl2.serving.videos.service import VideoService, VideoSettings
from arl2.video.reading import read_video
from pipeline.stand_in import stand_in_pipeline
from serving.web.video_server import serving

# OpenAI has closed its own service; the format and the client live on, and every method of the client says so.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")

TESTS = Path(__file__).parents[2]
SEED = {"seed": "3"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> VideoService:
    folder = tmp_path_factory.mktemp("store") / "videos"
    return VideoService(stand_in_pipeline(), folder, VideoSettings(model="stand-in"))


@pytest.fixture(scope="module")
def address(service: VideoService) -> Iterator[str]:
    with serving(service) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[OpenAI]:
    with client_of(address) as client:
        yield client


def client_of(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=30)


def made(client: OpenAI, prompt: str = "a red circle moves right", **more: str) -> openai.types.Video:
    video = client.videos.create_and_poll(
        prompt=prompt, extra_body={**SEED, "num_frames": "9", **more}, poll_interval_ms=20
    )
    assert video.status == "completed", video.error
    return video


def test_created_polled_and_downloaded(client: OpenAI) -> None:
    video = client.videos.create_and_poll(
        prompt="a red circle moves right",
        model="stand-in",
        seconds="2",  # type: ignore[arg-type]  # OpenAI's models make 4, 8 and 12
        size="128x128",  # type: ignore[arg-type]
        extra_body=SEED,
        poll_interval_ms=20,
    )
    assert (video.status, video.progress, video.error, video.object) == ("completed", 100, None, "video")
    assert (video.model, video.seconds, video.size) == ("stand-in", "2", "128x128")
    assert video.prompt == "a red circle moves right"
    assert video.created_at <= (video.completed_at or 0) < (video.expires_at or 0)
    content = client.videos.download_content(video.id)
    with av.open(io.BytesIO(content.content)) as container:
        frames = sum(1 for _ in container.decode(video=0))
        stream = container.streams.video[0]
        assert (frames, stream.width, stream.height, stream.average_rate) == (32, 128, 128, 16)
    for variant, kind in (("thumbnail", "WEBP"), ("spritesheet", "JPEG")):
        picture = client.videos.download_content(video.id, variant=variant)  # type: ignore[arg-type]
        with Image.open(io.BytesIO(picture.content)) as image:
            assert image.format == kind


def test_lists_come_in_pages(client: OpenAI) -> None:
    ids = [made(client).id for _ in range(3)]
    page = client.videos.list(limit=2)
    assert [video.id for video in page.data] == ids[:0:-1]
    assert page.has_more
    assert [video.id for video in page][:3] == ids[::-1]  # the client asks for the next pages
    oldest = [video.id for video in client.videos.list(order="asc", limit=100)]
    assert oldest[-3:] == ids
    with pytest.raises(openai.NotFoundError):
        client.videos.list(after="video_none")
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.list(limit=0)
    assert refused.value.param == "limit"


def test_remixed_extended_and_deleted(client: OpenAI, tmp_path: Path) -> None:
    video = made(client)
    remix = client.videos.remix(video.id, prompt="a blue square bounces")
    assert remix.remixed_from_video_id == video.id
    assert (remix.seconds, remix.size) == (video.seconds, video.size)
    assert client.videos.poll(remix.id, poll_interval_ms=20).status == "completed"

    clip = client.videos.download_content(video.id).content
    longer = client.videos.extend(
        prompt="a blue square bounces",
        seconds="1",  # type: ignore[arg-type]
        video=("clip.mp4", clip, "video/mp4"),
    )
    longer = client.videos.poll(longer.id, poll_interval_ms=20)
    assert longer.status == "completed", longer.error
    (tmp_path / "longer.mp4").write_bytes(client.videos.download_content(longer.id).content)
    assert len(read_video(tmp_path / "longer.mp4")) == 9 + 16
    assert longer.seconds == "1.56"

    assert client.videos.delete(video.id).deleted
    for act in (client.videos.retrieve, client.videos.delete, client.videos.download_content):
        with pytest.raises(openai.NotFoundError, match="There is no video"):
            act(video.id)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": "word " * 10_000}, "prompt", "10,000 words"),
        ({"size": "70x64"}, "size", "multiple"),
        ({"size": "huge"}, "size", "width x height"),
        ({"seconds": "100000"}, "seconds", "at most"),
        ({"seconds": "soon"}, "seconds", "a number"),
        ({"num_frames": "-1"}, "num_frames", "whole number"),
        ({"guidance_scale": "7"}, None, "guidance"),
        ({"frames": "9"}, "frames", "Did you mean 'num_frames'"),
        ({"input_reference": "https://example.org/a.png"}, "input_reference", "as a file"),
    ],
)
def test_what_cannot_be_made_is_a_sentence(
    client: OpenAI, fields: dict[str, str], param: str | None, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(prompt="a red circle", extra_body=fields)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert words in refused.value.body["message"]  # type: ignore[index]


def test_other_models_and_images_that_cannot_be_used(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.videos.create(prompt="a red circle", model="sora-2")
    assert refused.value.code == "model_not_found"
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, format="PNG")
    with pytest.raises(openai.BadRequestError, match="cannot start from one") as wrong:
        client.videos.create(prompt="a red circle", input_reference=("a.png", picture.getvalue()))
    assert wrong.value.param == "input_reference"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.videos.extend(prompt="red", seconds="4", video=("a.mp4", b"no video"))
    assert wrong.value.param == "video"


def test_other_clients(address: str, client: OpenAI) -> None:
    with httpx.Client(base_url=f"{address}/v1", timeout=30) as http:
        answer = http.post("/videos", json={"prompt": "a red circle", "num_frames": 9, "seed": 3})
        assert answer.status_code == 200, answer.text
        video = answer.json()
        assert answer.headers["openai-poll-after-ms"] == "500"
        assert client.videos.poll(video["id"], poll_interval_ms=20).status == "completed"
        whole = http.get(f"/videos/{video['id']}/content")
        assert whole.headers["content-type"] == "video/mp4"
        part = http.get(f"/videos/{video['id']}/content", headers={"Range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, b"ftyp")
        assert whole.content[4:8] == b"ftyp"
        longer = http.post(
            "/videos/extensions", data={"prompt": "a red circle", "num_frames": "12", "video": video["id"]}
        )
        assert longer.json()["num_frames"] == 21

        for wrong, status, code in (
            (http.post("/videos", content=b"{", headers={"Content-Type": "application/json"}), 400, "malformed_json"),
            (http.post("/videos", json=["a"]), 400, "malformed_json"),
            (http.post("/videos", json={"prompt": ["a"]}), 400, "invalid_value"),
            (http.post("/videos", content=b"prompt"), 415, "unsupported_media_type"),
            (http.post("/videos", data={"prompt": ["a red circle", "twice"]}), 400, "invalid_value"),
            (http.post("/videos", data={"prompt": "red"}, files={"picture": b"x"}), 400, "invalid_value"),
            (http.post("/videos/extensions", data={"prompt": "red"}), 400, "invalid_value"),
            (http.post("/videos/extensions", data={"prompt": "red", "video": "../../etc"}), 404, "not_found"),
            (http.post(f"/videos/{video['id']}/remix", json={}), 422, "invalid_value"),
            (http.get(f"/videos/{video['id']}/content?variant=audio"), 400, "invalid_value"),
            (http.get(f"/videos/{longer.json()['id']}x"), 404, "not_found"),
            (http.put("/videos"), 405, "method_not_allowed"),
        ):
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (status, code), wrong.text
            assert wrong.json()["error"]["message"]
        assert 'status="completed"' in httpx.get(f"{address}/metrics").text
        assert "/v1/videos/{video_id}/remix" in httpx.get(f"{address}/openapi.json").json()["paths"]


def test_a_full_queue_says_when_to_come_back(
    client: OpenAI, service: VideoService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "settings", replace(service.settings, most_queued=1))
    ids = [client.videos.create(prompt="a red circle", seconds="12").id]
    while client.videos.retrieve(ids[0]).status == "queued":
        time.sleep(0.005)
    ids.append(client.videos.create(prompt="a red circle", seconds="12").id)
    with pytest.raises(openai.RateLimitError, match="1 videos wait") as refused:
        client.videos.create(prompt="a red circle", seconds="12")
    assert refused.value.response.headers["retry-after"] == "10"
    assert refused.value.type == "rate_limit_error"
    with pytest.raises(openai.NotFoundError, match="has no content"):
        client.videos.download_content(ids[-1])
    for id in ids:
        client.videos.delete(id)


@pytest.mark.skipif(os.name != "posix", reason="kills are POSIX's")
def test_a_job_outlives_a_kill_of_the_server(client: OpenAI, tmp_path: Path) -> None:
    asked = {"prompt": "a red circle moves right", "extra_body": {**SEED, "num_frames": "201"}, "size": "64x64"}
    server = started(tmp_path)
    try:
        whole = client.videos.create_and_poll(**asked, poll_interval_ms=50)  # type: ignore[arg-type]
        expected = client.videos.download_content(whole.id).content
        address = address_of(server)
        with client_of(address) as other:
            id = other.videos.create(**asked).id  # type: ignore[arg-type]
            deadline = time.monotonic() + 60
            while not 0 < other.videos.retrieve(id).progress < 100:
                assert time.monotonic() < deadline
                time.sleep(0.005)
    finally:
        server.kill()
        server.communicate()
    assert not (tmp_path / "videos" / id / "video.json").exists()  # it was not finished

    server = started(tmp_path)
    try:
        with client_of(address_of(server)) as other:
            video = other.videos.poll(id, poll_interval_ms=50)
            assert video.status == "completed", video.error
            assert other.videos.download_content(id).content == expected
    finally:
        server.kill()
        server.communicate()


def started(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "serving.web.video_server", str(folder / "videos")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )


def address_of(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline().strip()
