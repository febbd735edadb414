"""Viewers' sockets, over real connections: video with its metadata, control with receipts, and what is refused."""

import json
import socket as sockets
from dataclasses import replace

import av
import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

from arl2.serving.live.wire import FRAME_HEADER, EncodedFrame, Ended, StreamInfo
from arl2.serving.web import server as server_module
from arl2.serving.web import socket as socket_module
from arl2.serving.web.fragments import SharedFragments
from serving.web.fake_host import FRAMES, FakeHost
from serving.web.running import PATIENCE, running, said, say
from serving.web.test_api import until


@pytest.fixture(scope="module")
def one():
    with running(FakeHost(room=1000)) as found:
        yield found


def binary(socket) -> bytes:
    """The next binary message."""
    while isinstance(got := socket.recv(timeout=PATIENCE), str):
        pass
    return got


def close_code(socket) -> int:
    """Read to the end; the code that the server closed with."""
    try:
        while True:
            socket.recv(timeout=PATIENCE)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else 1006


def test_a_viewer_gets_blocks_with_their_metadata_and_frames(one):
    stream = one.stream()
    with one.socket(stream, "?after=-1") as socket:
        started = said(socket)
        assert (started["type"], started["stream"]["id"], started["format"]) == ("session.start", stream, "h264")
        one.do(one.host.advance(stream, 2))
        assert said(socket) == {
            "type": "video.start",
            "codec": "avc1.42c00a",
            "format": "h264",
            "width": 64,
            "height": 64,
            "fps": 16,
        }
        decoder, shown = av.CodecContext.create("h264", "r"), 0
        for block in range(2):
            head = said(socket)
            assert (head["type"], head["block"], head["frames"]) == ("video.chunk_metadata", block, FRAMES)
            for number in range(block * FRAMES, (block + 1) * FRAMES):
                data = socket.recv(timeout=PATIENCE)
                header = FRAME_HEADER.unpack(data[: FRAME_HEADER.size])
                assert header == (block, number, number % FRAMES == 0, 0, 1000.0 + number)
                shown += len(decoder.decode(av.Packet(data[FRAME_HEADER.size :])))
        assert shown + len(decoder.decode(None)) == 2 * FRAMES


def test_a_viewer_continues_after_the_last_block_that_it_has_shown(one):
    stream = one.stream()
    one.do(one.host.advance(stream, 5))
    for query, first in (("?after=2", 3), ("", 4), ("?after=-1", 0)):
        with one.socket(stream, query) as socket:
            assert said(socket, "video.chunk_metadata")["block"] == first


def test_mp4_on_the_same_kind_of_socket_is_made_once_for_all(one, monkeypatch):
    made = []
    fragment_of = SharedFragments.fragment
    monkeypatch.setattr(SharedFragments, "fragment", lambda self, frame: made.append(self) or fragment_of(self, frame))
    stream = one.stream()
    with one.socket(stream, "?format=mp4") as first, one.socket(stream, "?format=mp4") as second:
        for socket in (first, second):
            said(socket, "session.start")
        one.do(one.host.advance(stream, 2))
        videos = []
        for socket in (first, second):
            assert said(socket)["type"] == "video.start"
            init = socket.recv(timeout=PATIENCE)
            assert init[4:8] == b"ftyp"
            frames = [binary(socket) for _ in range(2 * FRAMES)]
            assert [FRAME_HEADER.unpack(one[: FRAME_HEADER.size])[1] for one in frames] == list(range(2 * FRAMES))
            videos.append(init + b"".join(one[FRAME_HEADER.size :] for one in frames))
        assert videos[0] == videos[1]
        assert {one.made for one in made} == {2 * FRAMES}
        assert len(made) == 4 * FRAMES


def test_commands_get_their_receipts_and_every_viewer_sees_them(one):
    stream = one.stream()
    with one.socket(stream) as socket, one.socket(stream) as other:
        said(socket, "session.start"), said(other, "session.start")
        say(socket, "session.interaction", action="prompt", prompt="a blue circle", key="7", mode="cut")
        for viewer in (socket, other):
            queued, applied = said(viewer), said(viewer)
            assert (queued["type"], queued["key"]) == ("session.interaction.queued", "7")
            assert (applied["type"], applied["block"]) == ("session.interaction.applied", 0)
        say(socket, "session.interaction", action="prompt", prompt="refuse")
        assert said(other, "session.interaction.refused")["error"] == "No such colour."


def test_commands_that_cannot_be_are_refused_to_who_gave_them(one):
    stream = one.stream()
    with one.socket(stream) as socket:
        said(socket, "session.start")
        for more, words in (
            ({"action": "prompt"}, "empty"),
            ({"action": "prompt", "prompt": "word " * 2000}, "10,000 characters"),
            ({"action": "rewind"}, "one of them"),
            ({"action": "rewind", "blocks": 0}, "at least 1"),
            ({"action": "pause", "seed": 3}, "does not go with pause"),
        ):
            say(socket, "session.interaction", key="k", **more)
            refused = said(socket)
            assert (refused["type"], refused["key"]) == ("session.interaction.refused", "k")
            assert words in refused["error"]
        assert one.host.made[stream].commands == []
        say(socket, "session.interaction", action="prompt", prompt="raise")
        assert said(socket, "session.interaction.refused")["error"] == "The stream has ended."
        # What the host has told all viewers is not told once more to the one who asked.
        say(socket, "session.interaction", action="prompt", prompt="no room", key="full")
        assert said(socket, "session.interaction.refused")["error"] == "There is no memory."
        say(socket, "session.interaction", action="prompt", prompt="a star", key="next")
        while (answer := said(socket))["type"] != "session.interaction.applied":
            assert answer["key"] == "next"


def test_messages_that_are_none_get_a_sentence_and_change_nothing(one):
    stream = one.stream()
    with one.socket(stream) as socket:
        said(socket, "session.start")
        for text, words in (
            ("{", "no JSON"),
            ("[1]", "no JSON object"),
            ("{}", "Unknown type None"),
            ('{"type": "session.start"}', "Accepted: session.interaction, ping, stop"),
            ('{"type": "session.interaction"}', "'action' is missing"),
            ('{"type": "session.interaction", "action": "jump"}', "Accepted: prompt, pause"),
            ('{"type": "session.interaction", "action": "rewind", "blocks": "2"}', "'blocks'"),
            ('{"type": "session.interaction", "action": "rewind", "blocks": NaN}', "NaN"),
            ('{"type": "session.interaction", "action": "pause", "more": 1}', "Unknown field 'more'"),
            ("[" * 60_000, "no JSON"),
        ):
            socket.send(text)
            error = said(socket)
            assert error["type"] == "error"
            assert words in error["message"]
        say(socket, "ping", sent=12)
        pong = said(socket, "pong")
        assert pong["sent"] == 12
        assert pong["time"] > 1e9


def test_binary_messages_and_endless_nonsense_end_a_socket(one, monkeypatch):
    stream = one.stream()
    with one.socket(stream) as socket:
        socket.send(b"\x00\x01")
        assert "JSON as text" in said(socket, "error")["message"]
        assert close_code(socket) == 1003
    monkeypatch.setattr(socket_module, "MOST_ERRORS", 3)
    with one.socket(stream) as socket:
        for _ in range(3):
            socket.send("nonsense")
        assert close_code(socket) == 1008


def test_a_message_that_is_too_large_ends_its_socket_only(one):
    stream = one.stream()
    with one.socket(stream) as other, one.socket(stream) as socket:
        said(other, "session.start")
        socket.send("x" * 70_000)
        assert close_code(socket) == 1009
        say(other, "ping")
        assert said(other)["type"] == "pong"


def test_stop_and_the_ends_of_a_stream_have_their_codes(one):
    stream = one.stream()
    with one.socket(stream) as socket:
        say(socket, "stop")
        assert said(socket, "done")["reason"] == "stop"
        assert close_code(socket) == 1000
    for ended, code in ((Ended("end"), 1000), (Ended("failed", "NaN."), 1000), (Ended("draining"), 1012)):
        stream = one.stream()
        with one.socket(stream) as socket:
            said(socket, "session.start")
            one.do(one.host.tell(stream, ended))
            done = said(socket, "done")
            assert (done["reason"], done["error"]) == (ended.reason, ended.error)
            assert close_code(socket) == code
    stream = one.stream()
    with one.socket(stream) as socket:
        said(socket, "session.start")
        one.http.delete(f"/v1/streams/{stream}")
        assert said(socket, "done")["reason"] == "deleted"


def test_unknown_streams_and_wrong_questions(one):
    with one.socket("none") as socket:
        assert "There is no stream 'none'" in said(socket, "error")["message"]
        assert close_code(socket) == 4404
    stream = one.stream()
    for query, words in (("?format=webm", "h264 or mp4"), ("?after=x", "-1 for all"), ("?after=-2", "-1 for all")):
        with one.socket(stream, query) as socket:
            assert words in said(socket, "error")["message"]
            assert close_code(socket) == 1008


def test_info_reaches_viewers(one):
    stream = one.stream()
    with one.socket(stream) as socket:
        said(socket, "session.start")
        info: StreamInfo = one.do(one.host.info(stream))
        one.do(one.host.tell(stream, info))
        assert said(socket, "stream.info")["stream"]["points"][0]["block"] == 0


def test_what_all_viewers_get_every_second_is_short(one):
    stream = one.stream()
    with one.socket(stream) as socket:
        said(socket, "session.start")
        info: StreamInfo = one.do(one.host.info(stream))
        prompts = tuple((block, f"{block} {'x' * 2000}") for block in range(256))
        points = tuple(replace(info.points[0], block=block, prompt=prompts[block][1]) for block in range(32))
        one.do(one.host.tell(stream, replace(info, prompts=prompts, points=points, warning="The disk is full.")))
        told = said(socket, "stream.info")["stream"]
    assert len(json.dumps(told)) < 20_000
    assert told["warning"] == "The disk is full."
    assert told["prompts"] == [[block, prompt[:200]] for block, prompt in prompts[-16:]]
    assert [point["block"] for point in told["points"]] == list(range(32))
    assert told["points"][31]["prompt"] == prompts[31][1][:200]


def test_a_wrong_key_or_origin_is_told_before_the_socket_is_closed():
    with running(api_key="secret") as locked:
        stream = locked.http.post("/v1/streams", json={"prompt": "x"}, headers={"X-API-Key": "secret"}).json()["id"]
        with locked.socket(stream, "?key=wrong") as socket:
            assert said(socket)["code"] == "wrong_key"
            assert close_code(socket) == 1008
        with locked.socket(stream, "?key=secret") as socket:
            assert said(socket)["type"] == "session.start"
        with locked.socket(stream, additional_headers={"Authorization": "Bearer secret"}) as socket:
            assert said(socket)["type"] == "session.start"
        with locked.socket(stream, "?key=secret", origin="https://evil.test") as socket:
            assert said(socket)["code"] == "unknown_origin"
            assert close_code(socket) == 1008


def test_sockets_have_a_limit():
    with running(most_sockets=1) as small:
        stream = small.stream()
        with small.socket(stream) as first:
            said(first, "session.start")
            with small.socket(stream) as second:
                assert "in use" in said(second)["message"]
                assert close_code(second) == 1013
        until(lambda: small.host.made[stream].viewers == 0)
        with small.socket(stream) as third:
            assert said(third)["type"] == "session.start"


def test_a_viewer_that_goes_away_is_no_viewer_any_more(one):
    stream = one.stream()
    with one.socket(stream) as socket:
        until(lambda: one.host.made[stream].viewers == 1)
        socket.socket.shutdown(sockets.SHUT_RDWR)
        until(lambda: one.host.made[stream].viewers == 0)


def test_a_reader_that_takes_nothing_is_cut_and_delays_nobody(monkeypatch):
    monkeypatch.setattr(server_module, "STALLED_SECONDS", 0.2)
    with running() as one:
        stream = one.stream()
        with one.socket(stream, max_queue=1, close_timeout=0.1), one.socket(stream) as quick:  # one never reads
            until(lambda: one.host.made[stream].viewers == 2)
            frame = EncodedFrame(0, 0, True, bytes(1_000_000), 0.0)
            while one.host.made[stream].viewers == 2:
                one.do(one.host.tell(stream, frame))
                assert len(binary(quick)) > 1_000_000
            say(quick, "ping")
            assert said(quick, "pong")


def test_draining_ends_viewers_with_its_code():
    with running() as one:
        stream = one.stream()
        with one.socket(stream) as socket:
            said(socket, "session.start")
            one.do(_stop(one))
            assert said(socket, "done")["reason"] == "draining"
            with pytest.raises(ConnectionClosedError) as closed:
                socket.recv(timeout=PATIENCE)
            assert closed.value.rcvd.code == 1012
        assert one.host.draining


async def _stop(one) -> None:
    one.server.stop()


def test_every_message_is_one_json_object_with_a_type(one):
    stream = one.stream()
    one.do(one.host.advance(stream))
    with one.socket(stream) as socket:
        texts = [got for _ in range(3 + FRAMES) if isinstance(got := socket.recv(timeout=PATIENCE), str)]
    assert [json.loads(text)["type"] for text in texts] == ["session.start", "video.start", "video.chunk_metadata"]
