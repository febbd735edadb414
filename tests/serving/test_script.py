"""Scripts of prompts: what is read, at which block it takes effect, and what is refused."""

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arl2.errors import ConfigError
from arl2.geometry import video_frames_of
from arl2.serving.script import BlockTimes, Entry, parse_moment, plan_script, read_script

TIMES = BlockTimes(fps=16, temporal_factor=4, block_frames=3, first_block_frames=3)


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str) -> Path:
        (tmp_path / "prompts.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "prompts.yaml"

    return write


def said(entries: tuple[Entry, ...]) -> list[tuple]:
    return [(entry.at.frames or float(entry.at.seconds), entry.prompt, entry.mode) for entry in entries]


def test_a_list_and_a_mapping_say_the_same(written) -> None:
    listed = written("- {at: 0, prompt: a}\n- {at: 0:05, prompt: b, mode: cut}\n- {at: 1:30, prompt: c, mode: soft}\n")
    first = said(read_script(listed))
    mapped = written("0: a\n0:05: {prompt: b, mode: cut}\n'1:30': {prompt: c, mode: soft}\n")
    assert first == said(read_script(mapped)) == [(0.0, "a", None), (5.0, "b", "cut"), (90.0, "c", "soft")]


@pytest.mark.parametrize(
    ("value", "frame"),
    [
        (0, 0),
        (2.5, 40),
        ("5", 80),
        ("0:05", 80),
        ("0:05.5", 88),
        ("1:00:00", 57600),
        ("80 frames", 80),
        ("81f", 81),
        ("1 frame", 1),
        (0.01, 1),
    ],
)
def test_times(value: object, frame: int) -> None:
    assert parse_moment(value).video_frame(fps=16) == frame


@pytest.mark.parametrize(
    "value", [-1, float("inf"), float("nan"), True, None, "", "soon", "-5", "1:2:3:4", "5 s", 10**12, "9" * 40, [5]]
)
def test_what_is_no_time(value: object) -> None:
    with pytest.raises(ConfigError, match="is not a time; give seconds such as 5"):
        parse_moment(value)


@given(
    fps=st.integers(1, 60),
    factor=st.integers(1, 8),
    block=st.integers(1, 6),
    first=st.data(),
    frame=st.integers(0, 5000),
)
def test_the_first_block_that_begins_then_or_later(fps, factor, block, first, frame) -> None:
    times = BlockTimes(fps, factor, block, first.draw(st.integers(1, block)))
    found = times.block_from(frame)
    assert times.begin(found) >= frame
    assert found == 0 or times.begin(found - 1) < frame
    assert times.begin(0) == 0
    assert times.begin(1) == video_frames_of(0, times.first_block_frames, factor)


def test_blocks_of_a_script(written) -> None:
    path = written("- {at: 0, prompt: a}\n- {at: 5 frames, prompt: b}\n- {at: 0:05, prompt: c, mode: cut}\n")
    # Blocks begin at video frames 0, 9, 21, ... 81.
    assert [change.block for change in plan_script(read_script(path), TIMES)] == [0, 1, 7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "- {at: 0, prompt: a}\n- {at: 0.1, prompt: b}\n- {at: 9 frames, prompt: c}",
            "entry 3: it takes effect at block 1",
        ),
        ("- {at: 0:05, prompt: a}\n- {at: 9 frames, prompt: b}", "entry 2: times grow from entry to entry"),
    ],
)
def test_entries_that_meet_at_a_block(written, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_script(read_script(written(text)), TIMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds nothing; a script is a list"),
        ("just words", "holds text; a script is a list"),
        ("[]", "holds no entries"),
        ("- a red circle", "entry 1: got text; an entry is a mapping"),
        ("- {at: 1, promt: a}", r"entry 1: Unknown setting 'promt'\. Did you mean 'prompt'"),
        ("- {at: 1, prompt: a, volume: 3}", r"Unknown setting 'volume'\. Accepted: at, prompt, mode"),
        ("- {at: 1, prompt: a, mode: refesh}", "'mode' takes one of .*refresh.*; got .refesh"),
        ("- {at: 1, prompt: a, mode: [cut]}", "'mode' takes one of .*soft.*refresh.*cut"),
        ("- {prompt: a}", "The setting 'at' has no default"),
        ("- {at: 1}", "The setting 'prompt' has no default"),
        ("- {at: 1, prompt: '  '}", "takes text that is not empty"),
        ("- {at: 1, prompt: 7}", "'prompt' takes text; got 7"),
        ("- {at: yes, prompt: a}", "True is not a time"),
        ("- {at: 2001-01-01, prompt: a}", "a value of type date is not a time"),
        ("- {at: 5, prompt: a}\n- {at: 4, prompt: b}", "entry 2: times grow .* but 4 seconds follows 5 seconds"),
        ("- {at: 5, prompt: a}\n- {at: '0:05', prompt: b}", "5 seconds follows 5 seconds"),
        ("- {at: 50f, prompt: a}\n- {at: 49f, prompt: b}", "49 frames follows 50 frames"),
        ("5: a\n5: b", "the key 5 appears twice"),
        ("- {at: 5, prompt: a, prompt: b}", "the key 'prompt' appears twice"),
        ("5: {at: 6, prompt: b}", "the key 'at' appears twice"),
        ("? [1, 2]\n: a", "is not YAML"),
        ("- {at: 5, prompt: [", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("- " * 3000, "is not YAML|an entry is a mapping"),
    ],
)
def test_broken_scripts(written, text: str, message: str) -> None:
    path = written(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_script(path)
    assert "prompts.yaml" in str(error.value)
    assert len(str(error.value)) < 500


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_script(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_script(tmp_path / "bytes.yaml")
    (tmp_path / "huge.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="is too large"):
        read_script(tmp_path / "huge.yaml")


def test_aliases_that_would_fill_memory(written) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12))
    with pytest.raises(ConfigError, match="the alias \\*a0 is not read"):
        read_script(written(bomb))


def test_fractions_are_exact() -> None:
    assert parse_moment(0.1).seconds == Fraction(1, 10)
