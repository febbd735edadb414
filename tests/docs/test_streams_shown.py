"""What the README shows of streams is run, on the embedded model, shortened."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from arl2.cli.main import main

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = README.partition("## Streams that go on")[2].partition("\n## ")[0]
SCRIPT = """\
- {at: 0:00, prompt: "a red circle moves right"}
- {at: 0:02, prompt: "a blue circle moves up", mode: refresh}
"""


def shown() -> list[list[str]]:
    """Words of the commands, without the reader at the end of a pipe."""
    lines = re.findall(r"^arl2 (stream .*?)(?:\s+[#|].*)?$", SECTION, flags=re.M)
    return [shlex.split(line) for line in lines]


def shortened(words: list[str]) -> list[str]:
    """The same with few video frames; what would go on for ever stops."""
    at = words.index("--forever") if "--forever" in words else words.index("--frames")
    length = ["--frames", "33" if "--script" not in words else "57"]
    return [*words[:at], *length, *words[at + (1 if words[at] == "--forever" else 2) :], "--threads", "1"]


def test_commands_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.yaml").write_text(SCRIPT)
    commands = shown()
    assert len(commands) == 5
    made = [words for words in commands if "--preview" not in words and words[-1] != "-"]
    for words in made:
        assert main(shortened(words)) == 0
    assert Path("story.mp4").exists()
    playlist = Path("run.hls/index.m3u8").read_text() if Path("run.hls/index.m3u8").exists() else ""
    playlist = playlist or next(Path("run.hls").glob("*.m3u8")).read_text()
    assert "#EXT-X-DISCONTINUITY" in playlist  # where the second run went on


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, flags=re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.split() == ["4", "4", "3", "4"]
    shutil.rmtree(tmp_path, ignore_errors=True)
