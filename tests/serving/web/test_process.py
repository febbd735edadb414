"""The real command: killed and started again, drained, asked by real clients. One server for what needs no kill."""

import hashlib
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest

from arl2.pipeline.pipeline import ARL2Pipeline
from served import PATIENCE, Served, Viewer, served
from serving.web.test_api import error_of

RED, BLUE = "a red circle moves right on navy", "a blue circle moves left on navy"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("serve") / "store") as found:
        yield found


def begun(server: Served, **more) -> str:
    return server.post("/v1/streams", prompt=RED, seed=5, **more)["id"]


def numbers(viewer: Viewer) -> list[int]:
    return [head["block"] for head in viewer.blocks]


def test_kills_in_mid_stream_lose_and_repeat_nothing(tmp_path: Path):
    """Twice, around a new prompt: every block once, in order, with the bits of a stream that was never killed."""
    applied = []
    with served(tmp_path / "store") as server:
        stream = begun(server, blocks=10)
        viewer = Viewer(server, stream)
        kills = [(2, 3), (6, 1)]

        def look(block: int, frame: int) -> None:
            if kills and (block, frame) == kills[0]:
                kills.pop(0)
                server.end()
                server.start(ready=False)
            elif not applied and block == 4:
                applied.append(server.post(f"/v1/streams/{stream}/prompt", prompt=BLUE)["block"])

        viewer.watch(9, look)
        assert not kills
        assert viewer.reconnects >= 2
        assert numbers(viewer) == list(range(10))
        frames = [head["frame"] for head in viewer.blocks]
        assert frames == [sum(head["frames"] for head in viewer.blocks[:n]) for n in range(10)]
        assert [head["digest"] for head in viewer.blocks] == unkilled(10, applied[0])


def unkilled(blocks: int, change: int) -> list[str]:
    """Digests of the same stream, made by the library."""
    pipe, found = ARL2Pipeline.from_pretrained("shapes-100"), []
    with pipe.stream(RED, seed=5) as stream:
        for number in range(blocks):
            if number == change:
                stream.change_prompt(BLUE)
            found.append(hashlib.blake2b(next(stream).pixels().tobytes(), digest_size=16).hexdigest())
    return found


def test_commands_reach_a_real_stream_and_their_receipts_the_viewers(server):
    stream = begun(server)
    viewer, receipts = Viewer(server, stream), []

    def look(block: int, frame: int) -> None:
        if (block, frame) == (1, 2):
            receipts.append(server.post(f"/v1/streams/{stream}/prompt", prompt=BLUE, mode="cut", key="k"))
        elif (block, frame) == (6, 2):
            receipts.append(server.post(f"/v1/streams/{stream}/rewind", blocks=1))

    viewer.watch(9, look)
    changed, back = receipts
    assert (changed["state"], changed["key"]) == ("applied", "k")
    assert numbers(viewer) == list(range(10))
    heads = {head["block"]: head for head in viewer.blocks}
    assert (heads[changed["block"] - 1]["prompt"], heads[changed["block"]]["prompt"]) == (RED, BLUE)
    assert heads[back["block"]]["cut"]
    assert heads[back["block"]]["index"] == back["to"] < back["block"] - 1
    told = [(text["action"], text["state"]) for text in viewer.texts if "interaction" in text["type"]]
    assert told == [(action, state) for action in ("prompt", "rewind") for state in ("queued", "applied")]
    server.post(f"/v1/streams/{stream}/pause")
    assert server.http.get(f"/v1/streams/{stream}").json()["state"] == "paused"
    fork = server.post(f"/v1/streams/{stream}/fork", seed=9)["fork"]
    assert server.http.get(f"/v1/streams/{fork}").json()["parent"] == stream
    for name in (stream, fork):
        server.http.delete(f"/v1/streams/{name}")


def test_snapshots_are_those_of_the_library(server):
    stream = begun(server)
    Viewer(server, stream).watch(1)
    data = server.http.get(f"/v1/streams/{stream}/snapshot").content
    with ARL2Pipeline.from_pretrained("shapes-100").resume_bytes(data) as resumed:
        assert resumed.index >= 2
    made = server.http.post("/v1/streams/snapshot", content=data)
    assert made.status_code == 201, made.text
    assert "snapshot" in error_of(server.http.post("/v1/streams/snapshot", content=data[:1000]), 422)
    server.http.delete(f"/v1/streams/{made.json()['id']}")
    server.http.delete(f"/v1/streams/{stream}")


def test_players_read_the_video(server):
    stream = begun(server)
    with av.open(f"{server.address}/v1/streams/{stream}/live.mp4") as container:
        frames = itertools.islice(container.decode(video=0), 30)
        times = [round(16 * float(frame.pts * frame.time_base)) for frame in frames]
    assert times == list(range(times[0], times[0] + 30))
    with av.open(f"{server.address}/v1/streams/{stream}/hls/index.m3u8") as container:
        shown = [frame.width for frame in itertools.islice(container.decode(video=0), 12)]
    assert shown == [256] * 12
    server.http.delete(f"/v1/streams/{stream}")


def test_bad_input_disturbs_no_stream(server):
    stream = begun(server)
    viewer = Viewer(server, stream)
    viewer.watch(1)
    error_of(server.http.post("/v1/streams", json={"prompt": "zebra"}), 422)
    error_of(server.http.post("/v1/streams", json={"prompt": RED, "options": {"height": 65}}), 422)
    error_of(server.http.post(f"/v1/streams/{stream}/prompt", json={"prompt": "zebra"}), 409)
    error_of(server.http.post(f"/v1/streams/{stream}/rewind", json={"block": 999}), 409)
    error_of(server.http.post(f"/v1/streams/{stream}/fork", json={"block": 999}), 409)
    viewer.watch(viewer.last + 2)
    assert numbers(viewer) == list(range(viewer.last + 1))
    server.http.delete(f"/v1/streams/{stream}")


def test_a_second_server_on_the_port_or_the_store_is_one_sentence(server):
    port, store = str(server.port), server.words[server.words.index("--store") + 1]
    for words, said in ((["--port", port], "is in use"), (["--port", "0", "--store", store], "process")):
        command = [sys.executable, "-m", "arl2.cli.main", "serve", *words]
        found = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=os.environ)
        assert found.returncode == 2
        assert said in found.stderr.splitlines()[-1]
        assert "Traceback" not in found.stderr


def test_ctrl_c_saves_streams_and_the_next_start_continues_them(tmp_path: Path):
    with served(tmp_path / "store") as server:
        stream, codes = begun(server), []

        def restart() -> None:
            codes.append(server.process.wait(PATIENCE))
            server.start()
            assert server.http.get(f"/v1/streams/{stream}").json()["state"] == "asleep"

        def look(block: int, frame: int) -> None:
            if (block, frame) == (2, 3):
                server.process.send_signal(signal.SIGINT)

        viewer = Viewer(server, stream, on_lost=restart)
        viewer.watch(5, look)
        assert codes == [0]
        assert numbers(viewer) == list(range(6))
        assert "draining" in {text.get("reason") for text in viewer.texts}
        assert "Traceback" not in server.said
        for one in (signal.SIGTERM, signal.SIGINT):
            server.process.send_signal(one)
        assert server.process.wait(PATIENCE) in (0, 130)
