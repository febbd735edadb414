"""Small files are written whole: every reader finds one of those written, and what fails leaves no trace."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from arl2.errors import ConfigError
from arl2.files.atomic import atomic_folder, write_atomically
from arl2.files.locks import is_locked, locked_folder
from arl2.files.places import check_place
from arl2.serving.outputs.hls import HlsOutput
from arl2.video.writers import open_video


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_new_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"old", "new \u00e9\n".encode(), b""):
        write_atomically(path, content)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_who_may_read(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    write_atomically(tmp_path / "open", b"a")
    write_atomically(tmp_path / "own", b"a", private=True)
    assert mode(tmp_path / "open") == mode(tmp_path / "usual")
    assert mode(tmp_path / "own") == 0o600


def test_what_fails_leaves_no_trace(tmp_path):
    taken = tmp_path / "taken"
    (taken / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):  # a folder in its place: only the last step fails
        write_atomically(taken, b"a")
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "inside"]
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "nowhere" / "a", b"a")


def test_readers_and_writers_at_once(tmp_path):
    path, written = tmp_path / "a", [bytes([number]) * 200_000 for number in range(4)]
    write_atomically(path, written[0])

    def write_often(content: bytes) -> None:
        for _ in range(20):
            write_atomically(path, content)

    writers = [threading.Thread(target=write_often, args=(content,)) for content in written]
    for writer in writers:
        writer.start()
    reads = 0
    while reads < 20 or any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in written
        reads += 1
    for writer in writers:
        writer.join()
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    mine = tmp_path / "a.json.part"
    mine.write_text("mine")
    code = (
        "import os, sys, pathlib; from arl2.files.atomic import atomic_file, atomic_folder\n"
        "with atomic_file(pathlib.Path(sys.argv[1])), atomic_folder(pathlib.Path(sys.argv[1] + 'd')): os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert len(list(tmp_path.iterdir())) == 3
    write_atomically(path, b"new")
    with atomic_folder(tmp_path / "a.jsond") as part:
        (part / "b").write_text("b")
        write_atomically(tmp_path / "a.jsond.x", b"")  # another name: not its business
        with atomic_folder(tmp_path / "a.jsond") as other:  # what a living one writes stays
            assert part.exists()
        other.parent.joinpath("a.jsond").rmdir()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.json", "a.json.part", "a.jsond", "a.jsond.x"]
    assert mine.read_text() == "mine"


def test_folders_take_their_place_whole(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as part:  # noqa: PT012
        (part / "b").write_text("half")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
    for content in ("one", "two"):
        with atomic_folder(path, replace=True, flush=True) as part:
            (part / "b").write_text(content)
        assert [(one.name, one.read_text()) for one in path.iterdir()] == [("b", content)]
    with pytest.raises(OSError, match="a"), atomic_folder(path) as part:
        (part / "b").write_text("three")
    assert (path / "b").read_text() == "two"
    path.rename(tmp_path / ".a.0123abcd.old")  # killed between the two renames
    with pytest.raises(OSError, match="a"), atomic_folder(path) as part:
        pass
    assert (path / "b").read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "far").write_text("far")
    (tmp_path / "link").symlink_to("far")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "far").read_text() == "far"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="pipes with names are POSIX's")
@pytest.mark.parametrize("linked", [False, True])
def test_a_device_or_a_pipe_is_never_replaced(tmp_path, linked):
    pipe = tmp_path / "a.arl2"
    os.mkfifo(pipe)
    place = tmp_path / "link.arl2" if linked else pipe
    if linked:
        place.symlink_to(pipe)
    there = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="a device or a pipe is there"):
        write_atomically(place, b"new")
    with pytest.raises(ConfigError, match=r"cannot be written: a device or a pipe is there, .* choose another place"):
        check_place(place, ".arl2")
    check_place(place, "y4m", in_order=True)
    assert pipe.is_fifo()
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has these locks")
@pytest.mark.parametrize("code", ["EOPNOTSUPP", "ENOLCK", "ENOSYS", "EBADF"])
def test_file_systems_without_locks_are_written_to(tmp_path, monkeypatch, code):
    def refuse(handle, how):
        number = getattr(errno, code)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    living = tmp_path / ".sheet.png.0123abcd.part"  # perhaps: nobody can tell
    living.write_bytes(b"half")
    for name in ("sheet.png", "s.arl2"):
        for content in (b"old", b"new"):
            write_atomically(tmp_path / name, content)
            assert (tmp_path / name).read_bytes() == content
    frames = np.zeros((9, 32, 32, 3), dtype=np.uint8)
    with HlsOutput(tmp_path / "k.hls", fps=8, segment_seconds=1) as output:
        output.write(frames)
    with open_video(tmp_path / "pngs", fps=8) as video:
        video.write(frames)
    with open_video(tmp_path / "a.y4m", fps=8) as video:
        video.write(frames)
    with atomic_folder(tmp_path / "model") as part:
        (part / "b").write_text("b")
    with locked_folder(tmp_path / "model"):
        assert not is_locked(tmp_path / "model")
    assert living.read_bytes() == b"half"
    living.unlink()
    names = ["a.y4m", "k.hls", "model", "pngs", "s.arl2", "sheet.png"]
    assert sorted(one.name for one in tmp_path.iterdir()) == names
    assert list(tmp_path.rglob(".*")) == []


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has these locks")
def test_files_are_locked_by_handles_that_may_write(tmp_path, monkeypatch):
    import fcntl

    modes = []

    def noted(handle, how, real=fcntl.flock):
        if stat.S_ISREG(os.fstat(handle).st_mode):
            modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)
        real(handle, how)

    monkeypatch.setattr("fcntl.flock", noted)
    write_atomically(tmp_path / "a", b"a")
    assert not is_locked(tmp_path / "a")
    assert modes == [os.O_RDWR] * 2
