"""The store of clips: what was written is read by number; a shard is whole or not there; damage is said."""

import json
import resource
import time
from pathlib import Path

import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.errors import CheckpointError, ConfigError, GeometryError, NonFiniteError
from arl2.training.clips.dataset import COLUMNS, Clip, ClipSet
from arl2.training.clips.folder import ClipIndex, marker_file, shard_file
from arl2.training.clips.writing import ClipWriter
from support import randn

SHAPE = (3, 4, 2, 5)


def index_of(clips: int = 5, shard_clips: int = 2, **facts: object) -> ClipIndex:
    return ClipIndex(clips=clips, shard_clips=shard_clips, latents=SHAPE, text_width=6, facts=facts)


def clip(number: int, words: int | None = None) -> Clip:
    text = randn(1 + number % 3 if words is None else words, 6, seed=number + 500)
    return Clip(randn(*SHAPE, seed=number), text, f"clip {number}: ein Kreis, грань", seed=number * 7)


def write(folder: Path, index: ClipIndex, shards: list[int] | None = None) -> ClipWriter:
    writer = ClipWriter(folder, index)
    for shard in writer.missing() if shards is None else shards:
        writer.write(shard, map(clip, index.clips_of(shard)))
    return writer


@settings(max_examples=8, deadline=None)
@given(clips=st.integers(1, 9), shard_clips=st.integers(1, 10))
def test_clips_come_back_by_number_whatever_the_shards(tmp_path_factory, clips, shard_clips) -> None:
    folder = tmp_path_factory.mktemp("clips")
    write(folder, index_of(clips, shard_clips, codec="c", block_frames=2))
    found = ClipSet.open(folder)
    assert (len(found), found.frames, found.latent_shape, found.text_width) == (clips, 4, SHAPE, 6)
    assert found.facts == {"codec": "c", "block_frames": 2}
    for number in reversed(range(clips)):
        one, written = found[number], clip(number)
        assert torch.equal(one.latents, written.latents.half().float())
        assert torch.equal(one.text, written.text.half().float())
        assert (one.caption, one.seed) == (written.caption, written.seed)


def test_a_batch_fills_prompts_up_with_zeros(tmp_path) -> None:
    write(tmp_path, index_of())
    found = ClipSet.open(tmp_path)
    latents, text, captions = found.batch([2, 0, 2])
    assert torch.equal(latents, torch.stack([found[2].latents, found[0].latents, found[2].latents]))
    assert text.shape == (3, 3, 6)
    assert torch.equal(text[1], torch.cat([found[0].text, torch.zeros(2, 6)]))
    assert captions == [found[i].caption for i in (2, 0, 2)]
    latents.zero_()  # what a batch holds is its own: files are not written to
    assert found[2].latents.abs().sum() > 0
    with pytest.raises(GeometryError, match="got none"):
        found.batch([])
    for number in (5, -1):
        with pytest.raises(GeometryError, match="holds clips 0 to 4"):
            found[number]


def test_shards_are_plain_arrow_files(tmp_path) -> None:
    write(tmp_path, index_of())
    with pyarrow.OSFile(str(shard_file(tmp_path, 0))) as file:
        table = pyarrow.ipc.open_stream(file).read_all()
    assert tuple(table.column_names) == COLUMNS
    assert table.column("caption").to_pylist() == [clip(0).caption, clip(1).caption]


def test_a_folder_is_gone_on_with_by_the_same_settings_alone(tmp_path) -> None:
    write(tmp_path, index_of(seed=3), [1])
    writer = ClipWriter(tmp_path, index_of(seed=3))
    assert writer.missing() == [0, 2]
    before = shard_file(tmp_path, 1).stat().st_mtime_ns
    for shard in writer.missing():
        writer.write(shard, map(clip, writer.index.clips_of(shard)))
    assert shard_file(tmp_path, 1).stat().st_mtime_ns == before
    assert [one.seed for one in map(ClipSet.open(tmp_path).__getitem__, range(5))] == [0, 7, 14, 21, 28]
    with pytest.raises(ConfigError, match="seed was 3 and is 4"):
        ClipWriter(tmp_path, index_of(seed=4))
    with pytest.raises(ConfigError, match="clips was 5 and is 6"):
        ClipWriter(tmp_path, index_of(clips=6, seed=3))


def test_what_a_stopped_shard_leaves(tmp_path) -> None:
    def until_interrupted():
        yield clip(0)
        raise KeyboardInterrupt

    writer = ClipWriter(tmp_path, index_of())
    with pytest.raises(KeyboardInterrupt):
        writer.write(0, until_interrupted())
    assert list((tmp_path / "shards").iterdir()) == []
    killed, own = (shard_file(tmp_path, 0).with_name(name) for name in (".00000.arrow.01234567.part", "a.partial"))
    for left in (killed, own):
        left.write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"lacks 3 of 3 shards \(0, 1, 2\)"):
        ClipSet.open(tmp_path)
    write(tmp_path, index_of())
    assert not killed.exists()
    assert own.read_bytes() == b"half"
    assert len(ClipSet.open(tmp_path)) == 5


def test_a_full_disk_is_said_and_whole_shards_are_kept(tmp_path) -> None:
    index = ClipIndex(clips=4, shard_clips=2, latents=(3, 4, 64, 64), text_width=6)
    large = [Clip(randn(3, 4, 64, 64, seed=i), randn(2, 6), "large", i) for i in range(4)]
    writer = ClipWriter(tmp_path, index)
    writer.write(0, large[:2])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a full disk: the system refuses to write on
    try:
        with pytest.raises(CheckpointError, match=r"00001\.arrow cannot be written .* complete shards are kept"):
            writer.write(1, large[2:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert writer.missing() == [1]
    assert sorted(one.name for one in (tmp_path / "shards").iterdir()) == ["00000.arrow", "00000.json"]
    writer.write(1, large[2:])
    assert len(ClipSet.open(tmp_path)) == 4


def test_damage_is_named(tmp_path) -> None:
    write(tmp_path, index_of())
    whole = shard_file(tmp_path, 1).read_bytes()
    for cut in (0, 20, len(whole) - 8):
        shard_file(tmp_path, 1).write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=rf"00001\.arrow has {cut} of {len(whole)} bytes"):
            ClipSet.open(tmp_path)
    with pytest.raises(CheckpointError, match="to make that shard"):
        ClipWriter(tmp_path, index_of()).missing()
    shard_file(tmp_path, 1).write_bytes(b"\xff" * len(whole))
    with pytest.raises(CheckpointError, match=r"00001\.arrow is damaged: its checksum does not match"):
        ClipSet.open(tmp_path)
    marker_file(tmp_path, 1).write_text(json.dumps({"bytes": len(whole)}))  # as earlier versions wrote it
    with pytest.raises(CheckpointError, match="not a complete Arrow file"):
        ClipSet.open(tmp_path)
    other = shard_file(tmp_path, 2).read_bytes()  # one clip where two belong
    shard_file(tmp_path, 1).write_bytes(other)
    marker_file(tmp_path, 1).write_text(json.dumps({"bytes": len(other)}))
    with pytest.raises(CheckpointError, match="holds 1 rows"):
        ClipSet.open(tmp_path)
    marker_file(tmp_path, 1).write_text("{")
    with pytest.raises(CheckpointError, match=r"00001\.json is damaged"):
        ClipSet.open(tmp_path)
    marker_file(tmp_path, 1).unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 3 shards \(1\)"):
        ClipSet.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "arl2 clips 1"}', '{"format": "other"}'])
def test_folders_that_hold_no_clips(tmp_path, text) -> None:
    with pytest.raises(CheckpointError, match="no folder of clips"):
        ClipSet.open(tmp_path)
    (tmp_path / "clips.json").write_text(text)
    with pytest.raises(CheckpointError, match="is damaged"):
        ClipSet.open(tmp_path)


def test_clips_that_do_not_belong(tmp_path) -> None:
    writer = ClipWriter(tmp_path, index_of())
    for bad, said in (
        ([clip(0)], "takes 2 clips; got 1"),
        ([clip(0)] * 3, "takes 2 clips; got 3"),
        ([clip(0), Clip(randn(3, 4, 2, 4), randn(1, 6), "", 0)], r"Clip 1 has latents \[3, 4, 2, 4\]"),
        ([clip(0), Clip(randn(*SHAPE), randn(1, 5), "", 0)], r"text \[1, 5\]"),
    ):
        with pytest.raises(CheckpointError, match=said):
            writer.write(0, bad)
    for value in (float("nan"), 1e5):
        with pytest.raises(NonFiniteError, match="latents of clip 0"):
            writer.write(0, [Clip(torch.full(SHAPE, value), randn(1, 6), "", 0)])
    assert writer.missing() == [0, 1, 2]
    with pytest.raises(GeometryError, match="each must be 1 or more"):
        index_of(clips=0)


def test_a_missing_library_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'arl2\[train\]'"):
        ClipWriter(tmp_path, index_of())


def test_damage_inside_a_shard_is_found(tmp_path, caplog) -> None:
    """A flipped bit in a number leaves a shard that Arrow reads."""
    write(tmp_path, index_of())
    file = shard_file(tmp_path, 1)
    whole = file.read_bytes()
    place = whole.index(clip(2).latents.half().numpy().tobytes()[:32])
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(
        CheckpointError, match=r"00001\.arrow is damaged: its checksum does not match its bytes; delete"
    ):
        ClipSet.open(tmp_path)
    marker_file(tmp_path, 1).write_text(json.dumps({"bytes": len(whole), "clips": 2}))
    assert len(ClipSet.open(tmp_path)) == 5
    assert "1 of 3 shards" in caplog.text
    assert "no checksum, as those of earlier versions" in caplog.text


def test_an_index_of_ten_million_clips_is_refused_at_once(tmp_path) -> None:
    write(tmp_path, index_of())
    values = json.loads((tmp_path / "clips.json").read_text())
    (tmp_path / "clips.json").write_text(json.dumps({**values, "clips": 10_000_000}))
    began = time.process_time()
    with pytest.raises(CheckpointError, match="10,000,000 clips in 5,000,000 shards; at most 100,000 shards"):
        ClipSet.open(tmp_path)
    assert time.process_time() - began < 1
