"""The command line: what people see, and the exit codes that scripts see."""

import argparse
import subprocess
import sys

import pytest
import torch

from arl2.checkpoints import export_checkpoint
from arl2.cli import selfcheck as selfcheck_command
from arl2.cli.main import COMMANDS, build_parser, main
from arl2.evaluation.goldens import packaged_goldens
from arl2.evaluation.selfcheck import LIMITS
from arl2.kernels.delta_rule import BACKENDS
from arl2.version import __version__
from support import tiny_model


def test_selfcheck_passes_and_says_so(capsys):
    assert main(["selfcheck"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 36 + 1
    assert lines[0].startswith("ok   schedule/sigmas")
    assert "limit" in lines[0]
    assert lines[-1].startswith("36 of 36 tensors within their limit on cpu in float32")


def test_selfcheck_fails_loudly(capsys, monkeypatch):
    monkeypatch.setitem(LIMITS, torch.float32, {"flow": 1e-12, "state": 2e-5, "kernel": 2e-5})
    assert main(["selfcheck", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "OVER hybrid_lora/latents" in out
    assert "state_after_block" not in out


def test_selfcheck_of_a_folder_that_is_none(capsys, tmp_path):
    assert main(["selfcheck", "--goldens", str(tmp_path / "no")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("arl2 selfcheck: There is no golden folder")
    assert "Traceback" not in error


@pytest.mark.parametrize("device", ["cuda:77", "mps", "meta", "toaster"])
def test_a_device_that_is_not_there(capsys, device):
    assert main(["selfcheck", "--device", device]) == 2
    assert f"Device '{device}' c" in capsys.readouterr().err


def test_inspect_shows_what_a_file_is(capsys):
    assert (
        main(["inspect", str(packaged_goldens() / "checkpoint_hybrid_lora.pt"), "--height", "96", "--width", "128"])
        == 0
    )
    out = capsys.readouterr().out
    for said in ("ARL2 published", "HSH  2 of 3 hybrid (67 %)", "64 = 4 heads x 16", "state 4", "all weights finite"):
        assert said in out


@pytest.mark.parametrize(
    ("window", "said"),
    [
        ({"window": 9, "sink": 3, "sink_positions": "relative"}, "window 9, sink 3 at relative positions"),
        ({"window": 9, "sink": 3}, "window 9, sink 3 at absolute positions"),
        ({"window": 9}, "window 9, sink 0"),
        ({}, "window full, sink 0"),
    ],
)
def test_inspect_says_where_sinks_stand(capsys, tmp_path, window, said):
    tiny_model("S", block_frames=3, **window).save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path), "--height", "64", "--width", "64"]) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.strip().startswith("blocks")]
    assert line.rstrip().endswith(said)


def test_inspect_of_broken_weights(capsys, tmp_path):
    model = tiny_model("SS")
    with torch.no_grad():
        model.head.proj.bias[0] = float("nan")
    export_checkpoint(model, tmp_path / "model.pt")
    assert main(["inspect", str(tmp_path / "model.pt"), "--heads", "2"]) == 1
    assert "1 tensors with NaN or infinity" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "nothing.pt")]) == 2
    assert main(["inspect", str(tmp_path / "model.pt"), "--heads", "2", "--height", "104"]) == 2
    assert "is not a multiple of the patch size" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "model.pt"), "--heads", "2", "--height", "481"]) == 2
    assert "The height 481 is not a multiple of 8 pixels" in capsys.readouterr().err


def test_inspect_of_names_that_look_like_markup(capsys, tmp_path):
    path = tmp_path / "model[bold].pt"
    export_checkpoint(tiny_model("SS"), path)
    assert main(["inspect", str(path), "--heads", "2"]) == 0
    assert "model[bold].pt" in capsys.readouterr().out.replace("\n", "")


def test_ctrl_c_is_no_traceback(capsys, monkeypatch):
    def interrupted(arguments: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(selfcheck_command, "run", interrupted)
    assert main(["selfcheck"]) == 130
    assert capsys.readouterr().err == "arl2 selfcheck: interrupted\n"


def test_choices_written_out_are_the_librarys_own():
    assert set(selfcheck_command.BACKENDS) == set(BACKENDS)
    assert {getattr(torch, name) for name in selfcheck_command.DTYPES} == set(LIMITS)


def test_every_command_has_help(capsys):
    for command in COMMANDS:
        name = command.__name__.rsplit(".", maxsplit=1)[-1]
        with pytest.raises(SystemExit, match="0"):
            build_parser().parse_args([name, "--help"])
        assert "usage: arl2" in capsys.readouterr().out


def test_help_and_version_need_no_torch():
    code = "import sys, arl2.cli.main as m; m.build_parser().format_help(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    shown = subprocess.check_output([sys.executable, "-m", "arl2.cli.main", "--version"], text=True)
    assert shown == f"arl2 {__version__}\n"
