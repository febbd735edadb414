"""Writing and reading video files: frame for frame, with rate, size and settings; errors come before the work."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arl2.errors import GeometryError
from arl2.video.formats import VideoFileError, check_writable
from arl2.video.pixels import from_bytes, to_bytes
from arl2.video.reading import iterate_video, read_video, video_info
from arl2.video.sheet import contact_sheet
from arl2.video.writers import load_writer, open_video

NAMES = ["clip.mp4", "clip.gif", "clip.webp", "clip"]


def moving_square(frames: int = 21, size: int = 32) -> np.ndarray:
    video = np.full((frames, size, size, 3), (15, 20, 70), dtype=np.uint8)
    for index in range(frames):
        left = index % (size - 10)
        video[index, 10:20, left : left + 10] = (220, 30, 30)
    return video


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1, 2])
def test_round_trip(tmp_path: Path, name: str, scale: int) -> None:
    video = moving_square()
    with open_video(tmp_path / name, fps=16, scale=scale, settings={"seed": 3}) as writer:
        for piece in np.split(video, [1, 4, 16]):
            writer.write(piece)
    back = read_video(tmp_path / name)
    assert back.shape == (21, 32 * scale, 32 * scale, 3)
    assert back.dtype == np.uint8
    difference = np.abs(back.astype(int) - video.repeat(scale, 1).repeat(scale, 2))
    # H.264 and webp halve the resolution of colour, which shows at the edges of single pixels.
    assert difference.mean() < {"clip": 0.01, "clip.gif": 0.01}.get(name, 3)
    info = video_info(tmp_path / name)
    assert (info.width, info.height) == (32 * scale, 32 * scale)
    assert info.fps == pytest.approx(16, rel=0.01)
    assert info.settings == ({"seed": 3} if name in ("clip.mp4", "clip") else {})


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp"])
def test_equal_neighbours_are_not_lost(tmp_path: Path, name: str) -> None:
    video = moving_square(8).repeat(2, axis=0)
    with open_video(tmp_path / name) as writer:
        writer.write(video)
    assert len(read_video(tmp_path / name)) in (8, 16)
    # A page that is shown longer than another is as many frames.
    held = np.concatenate([moving_square(4), moving_square(5)[-1:].repeat(3, axis=0)])
    with open_video(tmp_path / f"held-{name}") as writer:
        writer.write(held)
    assert len(read_video(tmp_path / f"held-{name}")) == 7


def test_mp4_is_what_players_expect(tmp_path: Path) -> None:
    import av

    with open_video(tmp_path / "clip.mp4") as writer:
        writer.write(moving_square(40))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv420p"
        assert stream.average_rate == 16
    assert (tmp_path / "clip.mp4").read_bytes().count(b"moof") >= 2


def test_killed_run_leaves_a_playable_mp4(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    program = (
        "import os, sys, numpy as np\n"
        "from arl2.video.writers import open_video\n"
        "noise = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)\n"
        "writer = open_video(sys.argv[1])\n"
        "for shift in range(120):\n"
        "    writer.write(np.roll(noise, shift, axis=2))\n"
        "os._exit(9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode == 9
    assert 48 <= sum(1 for _ in iterate_video(path)) <= 120


def test_errors_close_the_file(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with open_video(tmp_path / "clip.mp4") as writer:
            writer.write(moving_square())
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert len(read_video(tmp_path / "clip.mp4")) == 21


def test_outputs_are_checked_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(VideoFileError, match=r"\.avi.*\.mp4, \.gif, \.webp"):
        open_video(tmp_path / "clip.avi")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(VideoFileError, match="is a folder"):
        open_video(tmp_path / "folder.mp4")
    (tmp_path / "file").write_text("")
    with pytest.raises(VideoFileError, match="is a file"):
        open_video(tmp_path / "file")
    with pytest.raises(VideoFileError, match="cannot be made"):
        open_video(tmp_path / "file" / "clip.mp4")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "00000.png").write_bytes(b"")
    with pytest.raises(VideoFileError, match="not empty"):
        open_video(tmp_path / "full")
    with pytest.raises(GeometryError, match="scale=0"):
        open_video(tmp_path / "clip.mp4", scale=0)
    open_video(tmp_path / "new" / "clip.mp4").close()
    assert not (tmp_path / "new" / "clip.mp4").exists()


def test_a_place_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(VideoFileError, match="permission"):
        check_writable(tmp_path / "clip.mp4")


def test_sizes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="even sides"), open_video(tmp_path / "odd.mp4") as writer:
        writer.write(np.zeros((1, 31, 32, 3), dtype=np.uint8))
    for name in NAMES:
        with open_video(tmp_path / f"a{name}") as writer:
            writer.write(np.zeros((1, 32, 32, 3), dtype=np.uint8))
            with pytest.raises(GeometryError, match="one size"):
                writer.write(np.zeros((1, 64, 32, 3), dtype=np.uint8))


def test_damaged_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES[:3]:
        (tmp_path / name).write_bytes(b"not a video at all")
        with pytest.raises(VideoFileError, match="cannot be read"):
            read_video(tmp_path / name)
    with pytest.raises(VideoFileError, match="There is no"):
        read_video(tmp_path / "missing.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoFileError, match=r"no \.png"):
        read_video(tmp_path / "empty")
    for name in NAMES:
        with open_video(tmp_path / f"good-{name}") as writer:
            writer.write(moving_square(3))
    monkeypatch.setattr("arl2.video.images.MAX_SIDE", 16)
    for name in NAMES:
        with pytest.raises(VideoFileError, match="at most 16"):
            read_video(tmp_path / f"good-{name}")


def test_reading_stops_where_asked(tmp_path: Path) -> None:
    with open_video(tmp_path / "clip") as writer:
        writer.write(moving_square())
    assert len(read_video(tmp_path / "clip", max_frames=5)) == 5
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "clip" / "99999.png")
    with pytest.raises(VideoFileError, match="differ in size"):
        read_video(tmp_path / "clip")


def test_bytes_and_pixels() -> None:
    frames = moving_square(2)
    assert np.array_equal(to_bytes(from_bytes(frames)), frames)
    assert to_bytes(from_bytes(frames) * 3).max() == 255


def test_contact_sheet(tmp_path: Path) -> None:
    video = moving_square()
    label = "a red square moves right on navy, written at such length that it needs a second line of text"
    sheet = contact_sheet([(label, video), ("short", video[:9])], every=4, scale=2, path=tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as saved:
        assert saved.size == sheet.size
    assert sheet.width == 6 * (64 + 3) + 3
    pixels = np.array(sheet)
    first_frame = pixels[:, 3:67]
    assert any(np.array_equal(first_frame[y : y + 64], video[0].repeat(2, 0).repeat(2, 1)) for y in range(60))
    with pytest.raises(GeometryError, match="needs clips"):
        contact_sheet([])


def test_what_writes_a_file_is_loaded_ahead_and_only_where_it_is_needed():
    program = (
        "import sys; from pathlib import Path; from arl2.video.writers import load_writer\n"
        "load_writer(Path('a.y4m')); load_writer(Path('pictures')); assert 'av' not in sys.modules\n"
        "load_writer(Path('a.mp4')); assert 'av' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(VideoFileError, match=r"'a\.mov' ends in"):
        load_writer(Path("a.mov"))


def test_a_folder_of_ours_is_read_by_its_numbers(tmp_path: Path) -> None:
    frames = np.stack([np.full((8, 8, 3), value, dtype=np.uint8) for value in (10, 20, 30)])
    with open_video(tmp_path / "a", fps=8) as video:
        video.write(frames)
    (tmp_path / "a" / "00002.png").rename(tmp_path / "a" / "100000.png")
    Image.fromarray(np.full((4, 4, 3), 99, dtype=np.uint8)).save(tmp_path / "a" / "sheet.png")
    np.testing.assert_array_equal(read_video(tmp_path / "a"), frames)
    assert video_info(tmp_path / "a").width == 8
    with open_video(tmp_path / "b", fps=8) as video:
        assert video.begin_with(tmp_path / "a", frames=3, height=8, width=8)
    np.testing.assert_array_equal(read_video(tmp_path / "b"), frames)
