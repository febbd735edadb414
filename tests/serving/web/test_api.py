"""The HTTP side, over real connections: streams, commands, snapshots, players, operations, and what is refused."""

import io
import json
import logging
import socket as sockets
import time
from dataclasses import replace

import av
import httpx
import pytest

from arl2.errors import ConfigError
from arl2.serving.live.wire import Figures
from arl2.serving.web import server as server_module
from arl2.serving.web.logs import JsonLines
from arl2.serving.web.messages import OPTIONS
from arl2.serving.web.server import bind
from serving.web.fake_host import FRAMES, MAGIC, FakeHost, Made
from serving.web.running import FACTS, PATIENCE, running


@pytest.fixture(scope="module")
def one():
    with running(FakeHost(room=1000)) as found:
        yield found


def error_of(answer: httpx.Response, status: int) -> str:
    """The sentence of an error, whose form is checked."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert error["message"].endswith((".", ")")) or "?" in error["message"]
    return error["message"]


def test_a_stream_is_begun_read_listed_and_ended(one):
    body = {"prompt": "a red circle", "seed": 7, "options": {"steps": 2}, "blocks": 9, "name": "mine"}
    made = one.http.post("/v1/streams", json=body)
    assert made.status_code == 201
    info = made.json()
    assert info["request"] == {**body, "realtime": True}
    assert (info["state"], info["width"], info["points"][0]["block"]) == ("running", 64, 0)
    assert one.http.get(f"/v1/streams/{info['id']}").json() == info
    assert info in one.http.get("/v1/streams").json()["data"]
    other = one.stream()
    assert one.http.delete(f"/v1/streams/{other}").json() == {
        "id": other,
        "object": "stream.deleted",
        "deleted": True,
    }
    assert other in error_of(one.http.get(f"/v1/streams/{other}"), 404)


def test_commands_answer_with_their_last_receipt(one):
    stream = one.stream()
    for action, body in (
        ("prompt", {"prompt": "a blue circle", "mode": "soft", "key": "k"}),
        ("pause", None),
        ("play", {"key": "again"}),
        ("rewind", {"blocks": 2, "seed": 3}),
        ("fork", {}),
    ):
        answer = one.http.post(f"/v1/streams/{stream}/{action}", json=body)
        assert answer.status_code == 200, answer.text
        receipt = answer.json()
        assert (receipt["action"], receipt["state"], receipt["block"]) == (action, "applied", 0)
        assert receipt["key"] == (body or {}).get("key", "")
    given = [(one.action, one.mode, one.blocks, one.seed) for one in one.host.made[stream].commands]
    assert given == [
        ("prompt", "soft", None, None),
        ("pause", None, None, None),
        ("play", None, None, None),
        ("rewind", None, 2, 3),
        ("fork", None, None, None),
    ]
    refused = one.http.post(f"/v1/streams/{stream}/prompt", json={"prompt": "refuse"})
    assert refused.status_code == 409
    assert refused.json()["error"]["message"] == "No such colour."
    assert refused.json()["receipt"]["state"] == "refused"
    assert "ended" in error_of(one.http.post(f"/v1/streams/{stream}/prompt", json={"prompt": "raise"}), 409)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("{", 400, "no JSON"),
        ("", 422, "missing"),
        ("[]", 422, "body"),
        ({}, 422, "'prompt' is missing"),
        ({"prompt": " "}, 422, "empty"),
        ({"prompt": "word " * 10_000}, 422, "50,000 characters"),
        ({"prompt": "\ud800"}, 422, "Unicode"),
        ({"prompt": 5}, 422, "'prompt'"),
        ({"prompt": "x", "promt": "y"}, 422, "'promt'"),
        ({"prompt": "x", "seed": -1}, 422, "'seed'"),
        ({"prompt": "x", "seed": "7"}, 422, "'seed'"),
        ({"prompt": "x", "blocks": 0}, 422, "'blocks'"),
        ({"prompt": "x", "options": {"step": 4}}, 422, "Did you mean 'steps'?"),
        ({"prompt": "x", "options": {"num_frames": 4}}, 422, "num_frames"),
        ({"prompt": "x", "options": {"steps": 0}}, 422, "steps"),
        ({"prompt": "x", "options": {"height": 0}}, 422, "height"),
        ({"prompt": "x", "name": "n" * 300}, 422, "'name'"),
    ],
)
def test_a_stream_that_cannot_be_begun_is_refused(one, body, status, words):
    before = len(one.host.made)
    content = body if isinstance(body, str) else json.dumps(body)
    answer = one.http.post("/v1/streams", content=content, headers={"Content-Type": "application/json"})
    assert words in error_of(answer, status)
    assert len(one.host.made) == before


def test_every_sampling_option_of_a_stream_is_one_of_the_library():
    assert {"steps", "window", "height"} <= set(OPTIONS)
    assert not {"seed", "num_frames"} & set(OPTIONS)


@pytest.mark.parametrize(
    ("action", "body", "words"),
    [
        ("rewind", {"blocks": -3}, "'blocks'"),
        ("rewind", {"blocks": 0}, "at least 1"),
        ("rewind", {}, "one of them"),
        ("rewind", {"block": 1, "blocks": 1}, "one of them"),
        ("rewind", {"block": -1}, "'block'"),
        ("prompt", {"prompt": ""}, "empty"),
        ("prompt", {"prompt": "x", "mode": "hard"}, "'mode'"),
        ("fork", {"seed": 2**64}, "'seed'"),
        ("pause", {"prompt": "x"}, "'prompt'"),
    ],
)
def test_a_command_that_cannot_be_is_refused(one, action, body, words):
    stream = one.stream()
    assert words in error_of(one.http.post(f"/v1/streams/{stream}/{action}", json=body), 422)
    assert one.host.made[stream].commands == []


def test_unknown_addresses_ids_and_methods(one):
    assert "no such address" in error_of(one.http.get("/v2/nothing"), 404)
    for way in ("/v1/streams/none", "/v1/streams/none/snapshot", "/v1/streams/none/live.mp4", "/v1/streams/..%2f"):
        error_of(one.http.get(way), 404)
    error_of(one.http.post("/v1/streams/none/pause"), 404)
    answer = one.http.put("/v1/streams", json={})
    assert "other methods" in error_of(answer, 405)
    assert "GET" in answer.headers["allow"] or "POST" in answer.headers["allow"]


def test_snapshots_go_out_and_come_in(one):
    stream = one.stream()
    found = one.http.get(f"/v1/streams/{stream}/snapshot", params={"kind": "light"})
    assert found.content == MAGIC + f" of {stream}, light".encode()
    assert f'filename="{stream}.arl2"' in found.headers["content-disposition"]
    made = one.http.post("/v1/streams/snapshot", content=found.content, params={"prompt": "a star", "name": "loaded"})
    assert made.status_code == 201
    assert (made.json()["prompt"], made.json()["request"]["name"]) == ("a star", "loaded")
    assert "no snapshot" in error_of(one.http.post("/v1/streams/snapshot", content=b"PK\x03\x04 something"), 422)
    assert "empty" in error_of(one.http.post("/v1/streams/snapshot"), 422)
    assert "empty" in error_of(one.http.post("/v1/streams/snapshot?prompt=%20", content=MAGIC), 422)
    assert "keeps 0" in error_of(one.http.get(f"/v1/streams/{stream}/snapshot?block=5"), 404)
    error_of(one.http.get(f"/v1/streams/{stream}/snapshot?kind=heavy"), 422)


def test_kept_blocks_are_one_mp4_that_begins_at_0(one):
    stream = one.stream()
    assert "No block" in error_of(one.http.get(f"/v1/streams/{stream}/video.mp4"), 409)
    one.do(one.host.advance(stream, 3))
    answer = one.http.get(f"/v1/streams/{stream}/video.mp4")
    assert "attachment" in answer.headers["content-disposition"]
    with av.open(io.BytesIO(answer.content)) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert [round(float(time) * 16) for time in times] == list(range(3 * FRAMES))


def test_a_player_gets_an_mp4_that_grows(one):
    stream = one.stream()
    one.do(one.host.advance(stream))
    with one.http.stream("GET", f"/v1/streams/{stream}/live.mp4?after=-1") as answer:
        pieces = answer.iter_raw()
        data = next(pieces)
        while data.count(b"moof") < FRAMES:
            data += next(pieces)
        one.do(one.host.advance(stream))
        while data.count(b"moof") < 2 * FRAMES:
            data += next(pieces)
        assert one.host.made[stream].viewers == 1
    with av.open(io.BytesIO(data)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 2 * FRAMES
    until(lambda: one.host.made[stream].viewers == 0)


def until(true) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_no_room_and_draining_say_when_to_ask_again():
    with running(FakeHost(room=1)) as full:
        full.stream()
        answer = full.http.post("/v1/streams", json={"prompt": "a star"})
        assert "no memory" in error_of(answer, 429)
        assert answer.headers["retry-after"] == "7"
        assert full.http.get("/ready").json() == {"ready": True}
        full.do(full.host.drain())
        answer = full.http.post("/v1/streams", json={"prompt": "a star"})
        assert "about to end" in error_of(answer, 503)
        assert answer.headers["retry-after"]
        assert full.http.get("/ready").status_code == 503
        assert full.http.get("/health").status_code == 200


def test_bodies_have_a_limit_whether_they_say_their_length_or_not():
    with running(most_body=1000, most_upload=2000) as small:
        assert "1,000" in error_of(small.http.post("/v1/streams", content=b"x" * 1001), 413)

        def pieces():
            for _ in range(300):
                yield b"x" * 100

        with httpx.Client(base_url=small.address) as client:
            assert "2,000" in error_of(client.post("/v1/streams/snapshot", content=pieces()), 413)
        assert small.http.post("/v1/streams/snapshot", content=MAGIC + b"x" * 1500).status_code == 201
        # JSON is parsed at once, and an address that only begins like that of an upload takes none.
        upload = {"files": {"video": b"x" * 1200}}
        for path, body in (
            ("/v1/videos", {"json": {"prompt": "x" * 1500}}),
            ("/v1/videos/v/remix", {"json": {"prompt": "x" * 1500}}),
            ("/v1/videos/v/remix", upload),
            ("/v1/videosXYZ", upload),
        ):
            assert "1,000" in error_of(small.http.post(path, **body), 413)
        assert small.http.post("/v1/videos/extensions", **upload).status_code == 404  # there are no videos here


def test_large_bodies_come_in_a_few_at_once():
    with running(FakeHost(room=1000), most_body=100, most_uploads=1) as one, connected(one) as slow:
        slow.sendall(
            b"POST /v1/streams/snapshot HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert b" 100 " in slow.recv(1000)  # now its body is waited for

        def send(size: int) -> httpx.Response:
            return one.http.post("/v1/streams/snapshot", content=MAGIC.ljust(size, b"x"))

        assert send(150).status_code == 429
        assert send(150).headers["retry-after"]
        assert send(90).status_code == 201
        slow.sendall(MAGIC.ljust(200, b"x"))
        assert b" 201 " in slow.recv(1000)
        assert send(150).status_code == 201


def test_a_key_protects_everything_but_health():
    with running(api_key="secret") as locked:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": ""}, {"Authorization": "Basic secret"}):
            answer = locked.http.get("/v1/streams", headers=header)
            assert "API key" in error_of(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        error_of(locked.http.get("/metrics"), 401)
        error_of(locked.http.post("/v1/streams?key=secret", json={"prompt": "x"}), 401)
        for header in ({"Authorization": "Bearer secret"}, {"X-API-Key": "secret"}):
            assert locked.http.get("/v1/streams", headers=header).status_code == 200
        assert locked.http.get("/v1/streams?key=secret").status_code == 200
        assert locked.http.get("/health").status_code == 200
        # A page that rebinds its name does not know the key.
        assert locked.http.get("/health", headers={"Host": "evil.test"}).status_code == 200


def test_pages_of_others_cannot_use_the_server():
    with running(allow_origins=("https://friend.test",), allow_hosts=("demo.test",)) as one:
        body = {"prompt": "a red circle"}
        for origin in ("https://evil.test", "null", "http://127.0.0.1:1", "file://"):
            assert origin in error_of(one.http.post("/v1/streams", json=body, headers={"Origin": origin}), 403)
        for origin in ("https://friend.test", one.address):
            assert one.http.post("/v1/streams", json=body, headers={"Origin": origin}).status_code == 201
        answer = one.http.get("/v1/streams", headers={"Origin": "https://friend.test"})
        assert answer.headers["access-control-allow-origin"] == "https://friend.test"
        assert "evil.test" in error_of(one.http.get("/v1/streams", headers={"Host": "evil.test:8000"}), 421)
        for name in ("localhost:1", "127.0.0.1", "[::1]:9", "demo.test", "192.168.1.7:8000"):
            assert one.http.get("/v1/streams", headers={"Host": name}).status_code == 200
        assert len(one.host.made) == 2


def test_answers_tell_browsers_to_run_nothing(one):
    for way in ("/v1/streams", "/nothing", "/health"):
        headers = one.http.get(way).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"


def test_metrics_count_what_streams_made():
    with running() as one:
        stream = one.stream()
        one.do(one.host.advance(stream, 3))
        first = figures(one)
        assert (first["arl2_blocks_total"], first["arl2_frames_total"]) == (3, 3 * FRAMES)
        assert first['arl2_streams{state="running"}'] == 1
        assert first["arl2_block_seconds_count"] == 3
        assert first["arl2_block_seconds_sum"] == pytest.approx(0.06)
        assert first["arl2_real_time_share"] == pytest.approx(0.1)
        one.do(one.host.advance(stream, 2))
        # A fork's numbers go on from its parent's, whose blocks are not made again.
        info = replace(one.host.made[stream].info, first_block=5, first_frame=5 * FRAMES, figures=Figures())
        one.host.made[stream + "f"] = Made(replace(info, id=stream + "f", parent=stream))
        one.host.made[stream + "u"] = Made(replace(info, id=stream + "u"))  # begun from a snapshot
        one.http.get("/v1/streams/none")
        one.http.request("BREW", "/v1/streams/none")
        second = figures(one)
        assert second["arl2_blocks_total"] == 5
        assert second["arl2_encoded_bytes_total"] == 500
        assert second["process_resident_memory_bytes"] > 1e6
        assert second['arl2_requests_total{method="GET",route="/v1/streams/{stream}",status="404"}'] == 1
        assert not any("BREW" in name for name in second)  # names that a client makes up are no labels
        assert any('method="other"' in name for name in second)
        # A scrape takes no longer after many blocks.
        one.host.made[stream + "u"].info = replace(one.host.made[stream + "u"].info, block=10**9 + 5)
        assert figures(one)["arl2_block_seconds_count"] == 10**9 + 5


def figures(one) -> dict[str, float]:
    lines = one.http.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_log_lines_of_requests_are_json_without_the_key(one):
    lines = io.StringIO()
    handler, logger = logging.StreamHandler(lines), logging.getLogger("arl2.serving.web.guard")
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        one.http.get("/v1/streams/none?key=secret")
        until(lambda: lines.getvalue().endswith("\n"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    line = json.loads(lines.getvalue())
    assert (line["level"], line["method"], line["path"], line["status"]) == ("info", "GET", "/v1/streams/none", 404)
    assert line["milliseconds"] >= 0
    assert "secret" not in lines.getvalue()


def test_the_api_describes_itself(one):
    described = one.http.get("/openapi.json").json()
    assert {"/v1/streams", "/v1/streams/{stream}/fork", "/metrics"} <= set(described["paths"])
    body = described["components"]["schemas"]["NewStream"]
    assert body["examples"][0]["prompt"]
    assert one.http.get("/v1/examples").json()["examples"] == list(FACTS.examples)


def test_a_connection_that_never_asks_is_closed(monkeypatch):
    monkeypatch.setattr(server_module, "SILENT_SECONDS", 0.05)
    with running() as one, connected(one) as silent:
        silent.sendall(b"GET / HT")
        assert silent.recv(100) == b""


def test_a_kept_connection_that_never_asks_again_is_closed(monkeypatch):
    monkeypatch.setattr(server_module, "SILENT_SECONDS", 0.5)
    with running() as one, connected(one) as slow:
        slow.settimeout(5)
        for _ in range(2):
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = slow.recv(4000)
            while not answer.endswith(b"}"):
                answer += slow.recv(4000)
            assert b" 200 " in answer
        slow.sendall(b"GET / HT")
        assert slow.recv(100) == b""


def test_connections_have_a_limit(monkeypatch):
    with running() as one:
        monkeypatch.setattr(server_module, "MOST_CONNECTIONS", len(one.server.server_state.connections) + 1)
        with connected(one) as kept, connected(one) as refused:
            refused.settimeout(5)
            assert refused.recv(100) == b""
            kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in kept.recv(4000)


def test_the_process_may_open_as_many_files_as_the_system_allows():
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard, 512), hard))
        server_module.raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, 65_536)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_body_that_does_not_come_is_refused():
    with running(body_seconds=0.05) as one, connected(one) as slow:
        slow.sendall(b"POST /v1/streams HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        assert b" 408 " in slow.recv(1000)


def connected(one) -> sockets.socket:
    found = sockets.create_connection(one.server.servers[0].sockets[0].getsockname())
    found.settimeout(PATIENCE)
    return found


def test_a_port_that_is_taken_and_addresses_that_are_none():
    in_use = pytest.raises(ConfigError, match="is in use; stop the other program, or give another --port")
    with bind("127.0.0.1", 0) as taken, in_use:
        bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="no address of this machine"):
        bind("192.0.2.1", 0)
    with pytest.raises(ConfigError, match="which is no address"):
        bind("no such name", 0)
