"""HLS over a real connection: segments made of frames that are encoded already, read by FFmpeg."""

import itertools
import re
import threading

import av
import pytest

from arl2.serving.live.wire import Ended
from arl2.serving.web import hls
from serving.web.fake_host import FRAMES, FakeHost
from serving.web.running import running
from serving.web.test_api import error_of, until

BLOCKS = 8  # of 4 frames at 16 a second, in segments of 2 seconds


@pytest.fixture(scope="module")
def one():
    with running(FakeHost(room=1000)) as found:
        yield found


def begun(one, stream: str, blocks: int, query: str = "") -> str:
    """The playlist once so many blocks were made while it was followed."""
    client = one.http
    answers = []

    asking = threading.Thread(target=lambda: answers.append(client.get(f"/v1/streams/{stream}/hls/index.m3u8{query}")))
    asking.start()
    until(lambda: one.host.made[stream].viewers == 1)
    one.do(one.host.advance(stream, blocks))
    asking.join()
    assert answers[0].status_code == 200, answers[0].text
    return client.get(f"/v1/streams/{stream}/hls/index.m3u8{query}").text


def test_ffmpeg_plays_the_segments_in_order(one):
    stream = one.stream()
    begun(one, stream, 3 * BLOCKS + 5)
    one.do(one.host.tell(stream, Ended("end")))
    address = f"{one.address}/v1/streams/{stream}/hls/index.m3u8"
    until(lambda: "ENDLIST" in one.http.get(address).text)
    with av.open(address) as container:
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert len(times) == 3 * BLOCKS * FRAMES
    steps = [round(16 * (later - earlier)) for earlier, later in itertools.pairwise(times)]
    assert set(steps) == {1}


def test_segments_are_numbered_by_their_blocks_and_old_ones_go(one):
    stream = one.stream()
    one.do(one.host.advance(stream, 3))  # before it is followed
    text = begun(one, stream, 10 * BLOCKS)
    numbers = [int(number) for number in re.findall(r"^(\d+)\.m4s$", text, flags=re.M)]
    assert numbers == list(range(2, 10))[-hls.KEPT_SEGMENTS :]
    assert f"#EXT-X-MEDIA-SEQUENCE:{numbers[0]}" in text
    assert re.findall(r"#EXTINF:(.*),", text) == ["2.0000"] * len(numbers)
    assert "not kept any more" in error_of(one.http.get(f"/v1/streams/{stream}/hls/1.m4s"), 404)


def test_a_player_that_sends_its_key_in_the_address_finds_it_in_the_playlist():
    with running(api_key="a&b") as locked:
        head = {"X-API-Key": "a&b"}
        stream = locked.http.post("/v1/streams", json={"prompt": "x"}, headers=head).json()["id"]
        text = begun(locked, stream, BLOCKS, "?key=a%26b")
        assert "0.m4s?key=a%26b" in text
        address = f"/v1/streams/{stream}/hls/"
        assert locked.http.get(f"{address}init.mp4?key=a%26b").content[4:8] == b"ftyp"
        assert locked.http.get(f"{address}0.m4s?key=a%26b").content.count(b"moof") == BLOCKS
        error_of(locked.http.get(f"{address}0.m4s"), 401)


def test_a_stream_that_nobody_asks_for_is_followed_no_more(monkeypatch):
    monkeypatch.setattr(hls, "IDLE_SECONDS", 0.2)
    with running() as one:
        stream = one.stream()
        begun(one, stream, BLOCKS)
        until(lambda: one.host.made[stream].viewers == 0)
        until(lambda: one.http.get(f"/v1/streams/{stream}/hls/init.mp4").status_code == 404)


def test_streams_that_show_nothing_or_are_none_say_so(monkeypatch, one):
    monkeypatch.setattr(hls, "_BEGIN_SECONDS", 0.05)
    stream = one.stream()
    answer = one.http.get(f"/v1/streams/{stream}/hls/index.m3u8")
    assert "shows nothing now" in error_of(answer, 429)
    assert answer.headers["retry-after"] == "5"
    error_of(one.http.get("/v1/streams/none/hls/index.m3u8"), 404)
    error_of(one.http.get("/v1/streams/none/hls/0.m4s"), 404)
    error_of(one.http.get(f"/v1/streams/{stream}/hls/first.m4s"), 422)
