"""What the pages show is run: commands parse, and the README's Python works, its targets and files are there."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from arl2.checkpoints import export_checkpoint
from arl2.cli.main import build_parser, main
from arl2.evaluation.goldens import packaged_goldens
from support import tiny_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "recipes/README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]


def blocks(language: str, page: str = README) -> list[str]:
    """Fenced blocks of a language, "" for those without one."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.S | re.M)
    return [content for name, content in fenced if name == language]


def commands(page: str = README) -> list[list[str]]:
    lines = [line.split("#")[0].split(" | ")[0].strip() for block in blocks("sh", page) for line in block.splitlines()]
    # What torchrun starts is the command by its module.
    lines = [re.sub(r"^torchrun .* -m arl2\.cli\.main ", "arl2 ", line) for line in lines]
    words = [shlex.split(line.removeprefix(".venv/bin/")) for line in lines if line]
    return [line[1:] for line in words if line[0] == "arl2"]


def test_there_are_commands():
    assert len(commands()) >= 3
    assert len(commands((ROOT / "recipes/README.md").read_text())) >= 10


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page):
    for words in commands((ROOT / page).read_text()):
        build_parser().parse_args(words)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), flags=re.M)
    assert "test" in targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)


def test_inspect_and_selfcheck_run_as_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export_checkpoint(tiny_model("HS"), tmp_path / "model.pt")
    assert main(["inspect", "model.pt"]) == 0
    assert "HS  1 of 2 hybrid" in capsys.readouterr().out
    assert ["selfcheck"] in commands()
    assert main(["selfcheck"]) == 0
    shown = next(words for words in commands() if "--goldens" in words)
    assert main([str(packaged_goldens()) if word == "DIR" else word for word in shown]) == 0


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    code = next(block for block in blocks("python") if "load_transformer" in block)
    export_checkpoint(tiny_model("HS", block_frames=3, text_len=512), tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    small = code.replace("height=60, width=104", "height=4, width=6")
    assert small != code
    exec(compile(small, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"0 {torch.Size([1, 3, 3, 4, 6])}"
    assert len(lines) == 7


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_the_file_map_names_what_is_there():
    (listing,) = [block for block in blocks("") if "src/arl2/" in block]
    for room in re.findall(r"^  (\w+)/", listing, flags=re.M):
        assert (ROOT / "src" / "arl2" / room).is_dir(), room
