"""A video that is extended keeps the frames it has, to the bit, however often that is done."""

from pathlib import Path

import av
import numpy as np
import pytest

from arl2.video.passing import passage
from arl2.video.reading import read_video
from arl2.video.writers import open_video

SIDE, FPS = 64, 16
OURS = {"arl2": "1", "fps": FPS}


def frames(count: int, seed: int) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    draw = np.random.default_rng(seed)
    circle = [(columns - 8 - i) ** 2 + (rows - 32) ** 2 < 90 for i in range(count)]
    noise = draw.normal(0, 8, (count, SIDE, SIDE, 1))
    return (np.stack(circle)[..., None] * draw.integers(60, 200, 3) + 40 + noise).clip(0, 255).astype(np.uint8)


def written(path: Path, count: int = 21, **how: object) -> Path:
    with open_video(path, fps=FPS, **{"settings": OURS, **how}) as writer:
        writer.write(frames(count, 0))
    return path


def extended(source: Path, path: Path, count: int, seed: int) -> bool:
    known = len(read_video(source))
    with open_video(path, fps=FPS, settings=OURS) as writer:
        passed = writer.begin_with(source, frames=known, height=SIDE, width=SIDE)
        writer.write(frames(count, seed))
    return passed


def test_eight_extensions_change_no_known_frame(tmp_path: Path) -> None:
    path = written(tmp_path / "0.mp4")
    first = read_video(path)
    known = first
    for number in range(1, 9):
        path, before = tmp_path / f"{number}.mp4", path
        assert extended(before, path, 12 + number, seed=number)
        found = read_video(path)
        assert len(found) == len(known) + 12 + number
        np.testing.assert_array_equal(found[: len(known)], known)
        known = found
        # What is new is as it would be alone, but for its first frames' bits.
        assert np.abs(found[-12:].astype(int) - frames(12 + number, number)[-12:]).mean() < 8
    np.testing.assert_array_equal(known[: len(first)], first)
    with av.open(str(path)) as container:
        times = [round(frame.time * FPS, 3) for frame in container.decode(video=0)]
    assert [one - times[0] for one in times] == list(range(len(known)))


@pytest.mark.parametrize("count", [8, 9, 16, 17, 33])
def test_lengths_at_the_edges_of_groups_of_pictures(tmp_path: Path, count: int) -> None:
    source = written(tmp_path / "a.mp4", count)
    assert extended(source, tmp_path / "b.mp4", 3, seed=1)
    found = read_video(tmp_path / "b.mp4")
    np.testing.assert_array_equal(found[:count], read_video(source))
    assert len(found) == count + 3


def test_what_is_not_ours_is_not_passed_through(tmp_path: Path) -> None:
    asked = {"frames": 21, "height": SIDE, "width": SIDE, "fps": FPS}
    source = written(tmp_path / "a.mp4")
    assert passage(source, **asked) is not None
    for name, value in (("frames", 20), ("height", 32), ("width", 128), ("fps", 8)):
        assert passage(source, **{**asked, name: value}) is None
    assert passage(written(tmp_path / "b.mp4", settings={"by": "others"}), **asked) is None
    assert passage(written(tmp_path / "c.mp4", settings=None), **asked) is None
    assert passage(written(tmp_path / "g.mp4", 7), **{**asked, "frames": 7}) is None
    assert passage(written(tmp_path / "d.gif"), **asked) is None
    (tmp_path / "e.mp4").write_bytes(source.read_bytes()[:900])
    assert passage(tmp_path / "e.mp4", **asked) is None
    with open_video(tmp_path / "f.gif", fps=FPS) as writer:
        assert not writer.begin_with(source, frames=21, height=SIDE, width=SIDE)
        writer.write(frames(1, 0))


def test_another_encoder_is_not_continued(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        container.metadata["comment"] = '{"arl2": "1"}'
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for frame in frames(21, 0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    assert not extended(tmp_path / "a.mp4", tmp_path / "b.mp4", 12, seed=1)
    assert len(read_video(tmp_path / "b.mp4")) == 12
