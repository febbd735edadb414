"""Small files are written whole: every reader finds one of those written, and what fails leaves no trace."""

import os
import stat
import threading
from pathlib import Path

import pytest

from arl2.files.whole import write_whole


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_new_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"old", "new \u00e9\n".encode(), b""):
        write_whole(path, content)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_who_may_read(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    write_whole(tmp_path / "open", b"a")
    write_whole(tmp_path / "own", b"a", private=True)
    assert mode(tmp_path / "open") == mode(tmp_path / "usual")
    assert mode(tmp_path / "own") == 0o600


def test_what_fails_leaves_no_trace(tmp_path):
    taken = tmp_path / "taken"
    (taken / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):  # a folder in its place: only the last step fails
        write_whole(taken, b"a")
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "inside"]
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "a", b"a")


def test_readers_and_writers_at_once(tmp_path):
    path, written = tmp_path / "a", [bytes([number]) * 200_000 for number in range(4)]
    write_whole(path, written[0])

    def write_often(content: bytes) -> None:
        for _ in range(20):
            write_whole(path, content)

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
