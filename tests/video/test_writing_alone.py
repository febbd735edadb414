"""Writers leave files that belong to one of them, and the same bytes every time."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from arl2.video.formats import VideoFileError, check_file, check_writable
from arl2.video.reading import read_video
from arl2.video.writers import open_video

VIDEO = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.y4m", "clip"])
def test_the_second_writer_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    other = (
        "import sys, numpy as np; from arl2.video.writers import open_video\n"
        "with open_video(sys.argv[1]) as writer: writer.write(np.zeros((9, 32, 32, 3), dtype=np.uint8))\n"
    )
    late = open_video(path)
    with open_video(path) as first:
        first.write(VIDEO[:2])
        refused = subprocess.run([sys.executable, "-c", other, str(path)], capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert "is being written by another process" in refused.stderr or "is not empty" in refused.stderr
        # One that was opened before the first frame was written, too.
        with pytest.raises(VideoFileError, match="is being written by another process"):
            late.write(VIDEO)
        first.write(VIDEO[2:])
    assert len(read_video(path)) == 3
    if name != "clip":
        check_writable(path)  # free again


def test_the_same_frames_give_the_same_file(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:64, :64]
    noise = np.random.default_rng(0).normal(0, 3, (21, 64, 64, 1))
    circle = [(columns - 12 - 2 * i) ** 2 + (rows - 32) ** 2 < 80 for i in range(21)]
    video = (np.stack(circle)[..., None] * np.array([200, 30, 30]) + 40 + noise).clip(0, 255).astype(np.uint8)
    found = set()
    for number in range(40):
        # What another encoder has left in memory must not show.
        with open_video(tmp_path / f"{number}.mp4", scale=1 + number % 2) as writer:
            writer.write(video[: 1 + number % 5])
        with open_video(tmp_path / "clip.mp4") as writer:
            writer.write(video)
        found.add(hashlib.sha256((tmp_path / "clip.mp4").read_bytes()).hexdigest())
    assert len(found) == 1


@pytest.mark.parametrize(("width", "height"), [(16, 16), (64, 64), (66, 130), (254, 64), (256, 64), (320, 32)])
def test_no_size_remembers_what_was_encoded_before(tmp_path: Path, width: int, height: int) -> None:
    video = np.random.default_rng(0).integers(0, 256, (7, height, width, 3)).astype(np.uint8)
    found = set()
    for number in range(40):
        with open_video(tmp_path / "other.mp4") as writer:  # its pictures lie in the memory that comes next
            writer.write(np.full((1 + number % 3, 64, 64 + 2 * (number % 5), 3), number, np.uint8))
        with open_video(tmp_path / "clip.mp4") as writer:
            writer.write(video)
        found.add(hashlib.sha256((tmp_path / "clip.mp4").read_bytes()).hexdigest())
    assert len(found) == 1


def test_places_of_every_output_are_checked_alike(tmp_path: Path) -> None:
    for address in ("rtmp://host/live", "http://host/a.mp4", "srt://host:9000"):
        for check in (check_writable, lambda path: check_file(path, ".png")):
            with pytest.raises(VideoFileError, match=r"is an address, .* pipe it to another program"):
                check(Path(address))
    for name, check in (("a.mp4", check_writable), ("a.png", lambda path, **how: check_file(path, ".png", **how))):
        (tmp_path / name).write_bytes(b"mine")
        check(tmp_path / name)
        with pytest.raises(VideoFileError, match="is there already; choose another name, or add --overwrite"):
            check(tmp_path / name, overwrite=False)
        check(tmp_path / f"new-{name}", overwrite=False)
        assert (tmp_path / name).read_bytes() == b"mine"
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(VideoFileError, match="is a folder"):
        check_file(tmp_path / "folder.png", ".png")
    with pytest.raises(VideoFileError, match=r"must end in \.png"):
        check_file(tmp_path / "a.jpg", ".png")
