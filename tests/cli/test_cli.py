"""The command line: what people see, and the exit codes that scripts see."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from arl2.checkpoints import export_checkpoint
from arl2.cli import selfcheck as selfcheck_command
from arl2.cli.app import COMMANDS, GROUPS, UsageError, parse
from arl2.cli.generate import Generate
from arl2.cli.main import main
from arl2.cli.options import choices_of, options_of
from arl2.cli.rollouts import Rollouts
from arl2.cli.selfcheck import Selfcheck
from arl2.cli.standard_streams import printable
from arl2.cli.stream import Stream
from arl2.evaluation.goldens import packaged_goldens
from arl2.evaluation.selfcheck import LIMITS
from arl2.kernels.delta_rule import BACKENDS
from arl2.pipeline.options import ModelSource, SamplingOptions
from arl2.version import __version__
from support import packaged_cases, tiny_model

ROOT = Path(__file__).parents[2]


def help_of(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints with --help, its boxes taken away."""
    assert main([*words, "--help"]) == 0
    return capsys.readouterr().out


# -- help, groups, examples ----------------------------------------------------------------------------------------


def test_bare_arl2_shows_the_commands_in_groups(capsys) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    at = [shown.index(f"─ {group} ") for group in GROUPS]
    assert at == sorted(at)
    for name in COMMANDS:
        assert re.search(rf"│ {name.split()[0]} ", shown), name


def test_every_command_says_what_it_does_and_shows_examples_that_parse(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name, command in COMMANDS.items():
        shown = help_of(*name.split(), capsys=capsys)
        assert shown.startswith(f"Usage: arl2 {name}"), name
        assert len(command.examples) >= 2, name
        for example in command.examples:
            assert example.split()[0] in shown
            assert isinstance(parse(shlex.split(example.split(" > ")[0])[1:]), command), example
            folded = shown[shown.index("Examples:") :].replace("\\\n", "")
            assert " ".join(example.split()) in " ".join(folded.split()), example


def test_every_option_is_described_by_a_noun_phrase(capsys) -> None:
    private = re.compile(r"\b(draws?|drawn|levels?|likewise|besides|anew|oracle|came)\b")
    for name, command in COMMANDS.items():
        for option in options_of(command):
            assert option.help, f"{name} {option.names[0]}"
            assert option.help[0].isupper() or option.help[0] in ".-" or option.name == "snapshot_kind", option.help
            assert option.help.endswith("."), f"{name} {option.names[0]}"
            assert not private.search(option.help), f"{name} {option.names[0]}: {option.help}"


def test_one_word_means_one_thing() -> None:
    """Options of one spelling are of one field, and of one type in every command."""
    seen: dict[str, tuple[str, object]] = {}
    for name, command in COMMANDS.items():
        for option in options_of(command):
            for spelling in option.names:
                kind = next((one for one in (int, float, Path, str, bool) if str(one)[8:-2] in str(option.hint)), None)
                assert seen.setdefault(spelling, (option.name, kind))[0] == option.name, f"{name} {spelling}"
    assert seen["--weights"][1] is seen["--prompts-file"][1] is seen["--output"][1] is Path


def test_a_sampling_option_is_one_field() -> None:
    """Every field of the two objects is an option of the commands that sample; nothing in the CLI lists them."""
    for command in (Generate, Stream, Rollouts):
        names = {option.name for option in options_of(command)}
        for kind in (SamplingOptions, ModelSource):
            assert {field.name for field in fields(kind)} <= names
    source = "".join(path.read_text() for path in (ROOT / "src/arl2/cli").glob("*.py"))
    assert "argparse" not in source


def test_what_is_given_arrives_in_the_objects() -> None:
    words = '"a cat" --frames 9 --candidates 2 --steps 1000,500 --window full --sink 1 --model m --dtype bf16 --seed 3'
    command = parse(["generate", *shlex.split(words)])
    assert isinstance(command, Generate)
    assert command.prompts == ("a cat",)
    assert command.source == ModelSource(model="m", dtype="bfloat16")
    assert command.sampling == SamplingOptions(
        num_frames=9, first_block_candidates=2, steps=(1000, 500), window=None, sink=1, seed=3
    )
    assert parse(["generate", "a", "--num_frames", "9"]) == parse(["generate", "a", "--frames=9"])
    # What is given twice: the last counts.
    assert parse(["generate", "a", "--frames", "3", "--frames", "9"]) == parse(["generate", "a", "--frames", "9"])
    assert parse(["generate", "-o", "-", "a"]) == parse(["generate", "a", "--output=-"])


def test_model_is_an_option_and_an_argument() -> None:
    for words in ("convert {} --plan HS -o out", "export {} -o out", "inspect {}", "models {}", "download {}"):
        assert parse(words.format("m").split()) == parse(words.format("--model m").split())
    for words in ("rollouts {} --videos v -o out", "sensitivity {} --aligned a -o out"):
        assert parse(words.format("m").split()) == parse(words.format("--model m").split())


def test_settings_of_a_run_stand_anywhere() -> None:
    run = ["train", "align"]
    one = parse([*run, "runs/x", "loop.steps=1", "seed=2", "--settings", "s.json", "--threads", "1"])
    assert parse([*run, "--settings", "s.json", "runs/x", "loop.steps=1", "--threads", "1", "seed=2"]) == one


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("generate a --num-frame 3", "arl2 generate: Unknown option '--num-frame'. Did you mean '--num-frames'?"),
        ("generate a --promptfile 3", "arl2 generate: Unknown option '--promptfile'. Did you mean '--prompts-file'?"),
        ("generat a", "arl2: There is no command 'generat'. Did you mean 'generate'?"),
        ("shapes scor", "arl2: There is no command 'scor'. Did you mean 'score'?"),
        ("inspect m --weights-branch emma", "arl2 inspect: Option '--weights-branch': got 'emma'. Did you mean 'ema'?"),
        ("generate a --frames", "arl2 generate: Option '--frames' needs a value."),
        ("convert m --plan HS", "arl2 convert: Option '--output' is missing."),
        ("download", "arl2 download: MODEL is missing."),
        ("selfcheck extra", "arl2 selfcheck: Unexpected 'extra'."),
        ("--vers", "arl2: Unknown option '--vers'. Did you mean '--version'?"),
        ("generate a --steps 4,x", "arl2 generate: Option '--steps': got '4,x'; give a number of steps, or timesteps"),
        ("generate a --window w", "arl2 generate: Option '--window': got 'w'; give a number of latent frames"),
        ("generate a --threads 99999", "arl2 generate: Option '--threads': got 99999; this machine has "),
    ],
)
def test_a_wrong_command_line_is_two_lines(capsys, words: str, said: str) -> None:
    assert main(words.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    first, second, *rest = shown.err.splitlines()
    assert first.startswith(said)
    assert re.fullmatch(r"see 'arl2 (\w+ )*--help'", second)
    assert rest == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sensitivity m --aligned a -o x --frames 6", "give --latent-frames 6"),
        ("sensitivity m --aligned a -o x --frames=6", "give --latent-frames 6"),
        ("inspect m --weights ema", "--weights-branch ema"),
        ("train codec r --gpus 8 --dry-run", "--gpus goes with align and distill"),
        ("train align r --gpus 8", "--gpus goes with --dry-run"),
        ("train align r --gpu-memory 80 --dry-run", "--gpu-memory goes with --gpus N"),
        ("convert m -o x --plan HS --fraction 0.5", "--fraction and --plan exclude each other"),
        ("rollouts m -o x --videos v --frames 3 --latent-frames 1", "--frames and --latent-frames exclude each other"),
        ("inspect", "Give a model"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(capsys, words: str, said: str) -> None:
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_old_spellings_are_accepted_and_not_listed(capsys) -> None:
    pairs = [
        ("export m -o x --merge-low-rank", "export m -o x --merge-lora"),
        ("rollouts m --prompts p.txt -o x", "rollouts m --prompts-file p.txt -o x"),
        (
            "sensitivity m --aligned a -o x --prompts p --count 3",
            "sensitivity m --aligned a -o x --prompts-file p --suggest 3",
        ),
        ("shapes score --model m --prompts 5", "shapes score --model m --count 5"),
        ("generate a --hybrid_layers 0 1 2", "generate a --hybrid-layers 0 1 2"),
    ]
    for old, new in pairs:
        assert parse(old.split()) == parse(new.split()), old
        command = old.split()[0] if not old.startswith("shapes") else "shapes score"
        assert "--merge-low-rank" not in help_of(*command.split(), capsys=capsys)


def test_every_command_line_of_the_pages_parses() -> None:
    """README, docs and recipes: what is shown in fenced blocks, but for what a redirection or a pipe adds."""
    pages = [ROOT / "README.md", ROOT / "recipes/README.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = []
    for page in pages:
        for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(), flags=re.S | re.M):
            lines += [re.split(r"\s#| \| | > ", line)[0] for line in block.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"^torchrun .* -m arl2\.cli\.main ", "arl2 ", line.strip()) for line in lines]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith(("arl2 ", ".venv/bin/arl2 "))]
    assert len(commands) >= 20
    for words in commands:
        try:
            parse(words)
        except UsageError as error:
            pytest.fail(f"{' '.join(words)}: {error}")


def test_control_characters_reach_no_terminal(capsys) -> None:
    assert printable("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb\nc\\u202e"
    assert main(["generate", "a", "--nothing\x1b[2J"]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "--nothing\\x1b[2J" in error


def test_ctrl_c_is_a_line_and_130_while_a_command_works(capsys, monkeypatch) -> None:
    def interrupted(self: Selfcheck) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Selfcheck, "run", interrupted)
    assert main(["selfcheck"]) == 130
    assert capsys.readouterr().err == "arl2 selfcheck: interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_ctrl_c_is_a_line_and_130_while_options_are_parsed() -> None:
    code = (
        "import os, signal, sys, arl2.cli.main as m\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'cyclopts': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.exit(m.main(['generate', 'a']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "arl2: interrupted\n")
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_what_nobody_foresaw_says_how_to_report_it(capsys, monkeypatch) -> None:
    def broken(self: Selfcheck) -> int:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Selfcheck, "run", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(["selfcheck"])
    error = capsys.readouterr().err
    assert error.startswith("arl2 selfcheck: this is a bug in arl2. Please report it")
    assert "'arl2 env'" in error


# -- the process ---------------------------------------------------------------------------------------------------


def test_help_version_and_mistakes_need_no_torch() -> None:
    code = (
        "import sys\nfrom arl2.cli.main import main\n"
        "assert main([]) == main(['stream', '--help']) == main(['--version']) == 0\n"
        "assert main(['generate', '--num-frame', '3']) == main(['shapes', 'score', '--count', 'x']) == 2\n"
        "assert main(['completion', 'bash']) == 0\n"
        "assert not {'torch', 'numpy', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    shown = subprocess.check_output([sys.executable, "-m", "arl2.cli.main", "--version"], text=True)
    assert shown == f"arl2 {__version__}\n"


def test_an_ascii_terminal_is_no_reason_to_fail() -> None:
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    for words in (["--help"], ["models", "wan2.1-1.3b", "--json"], ["generate", "a", "--é", "3"]):
        command = [sys.executable, "-m", "arl2.cli.main", *words]
        done = subprocess.run(command, env=ascii_only, capture_output=True, check=False)
        assert done.returncode == (2 if words[-1] == "3" else 0), done.stderr
        assert b"Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{shlex.quote(sys.executable)} -m arl2.cli.main shapes sample --count 3000 | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.strip().startswith("0  a ")
    assert done.stderr == ""


def test_env_says_what_a_bug_report_needs(capsys) -> None:
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["arl2"], found["torch"]) == (__version__, torch.__version__)
    assert found["threads"] == torch.get_num_threads()
    assert found["devices"][0] == "cpu"
    assert {"diffusers", "processor", "cores", "system", "instructions"} <= found.keys()
    assert main(["--version", "-v"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"arl2: {__version__}"


@pytest.mark.parametrize(("shell", "begins"), [("bash", "# Bash"), ("zsh", "#compdef arl2"), ("fish", "# Fish")])
def test_completion_knows_every_command(capsys, shell: str, begins: str) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert script.startswith(begins)
    for name in COMMANDS:
        assert name.split()[-1] in script
    for spelling in ("num-frames", "hybrid-layers", "bfloat16"):
        assert spelling in script


def test_small_models_take_one_thread_unless_told(model: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    words = ["generate", "red", "--model", model, "--frames", "9", "--quiet", "--overwrite", "-o", "a.gif"]
    try:
        torch.set_num_threads(2)
        assert main(words) == 0
        assert torch.get_num_threads() == 1
        if (os.cpu_count() or 1) > 1:
            assert main([*words, "--threads", "2"]) == 0
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# -- selfcheck and inspect -----------------------------------------------------------------------------------------


def test_selfcheck_passes_and_says_so(capsys):
    assert main(["selfcheck", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 42 + 1
    assert lines[0].startswith("ok   schedule/sigmas")
    assert "limit" in lines[0]
    assert lines[-1].startswith("42 of 42 tensors within their limit on cpu in float32")


def test_selfcheck_fails_loudly(capsys, monkeypatch, tmp_path):
    folder = str(packaged_cases(tmp_path / "goldens", "hybrid_lora"))
    monkeypatch.setitem(LIMITS, torch.float32, {"flow": 1e-12, "state": 2e-5, "kernel": 2e-5})
    assert main(["selfcheck", "--goldens", folder, "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "OVER hybrid_lora/latents" in out
    assert "state_after_block" not in out
    assert main(["selfcheck", "--goldens", folder, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == sum(not check["passed"] for check in found["checks"]) > 0
    assert 0 < found["failed"] < len(found["checks"])


def test_selfcheck_of_a_folder_that_is_none(capsys, tmp_path):
    assert main(["selfcheck", "--goldens", str(tmp_path / "no")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("arl2 selfcheck: There is no golden folder")
    assert "Traceback" not in error


@pytest.mark.parametrize("device", ["cuda:77", "mps", "meta", "toaster"])
def test_a_device_that_is_not_there(capsys, device):
    assert main(["selfcheck", "--device", device]) == 2
    assert f"Device '{device}' c" in capsys.readouterr().err


def test_choices_written_out_are_the_librarys_own():
    assert set(selfcheck_command.BACKENDS) == set(BACKENDS)
    assert {getattr(torch, name) for name in selfcheck_command.DTYPES} == set(LIMITS)
    dtypes = next(option for option in options_of(Generate) if option.name == "dtype")
    assert set(choices_of(dtypes.hint)) < set(selfcheck_command.DTYPES)


def test_inspect_shows_what_a_file_is(capsys):
    file = str(packaged_goldens() / "checkpoint_hybrid_lora.pt")
    assert main(["inspect", file, "--height", "96", "--width", "128"]) == 0
    out = capsys.readouterr().out
    for said in ("ARL2 published", "HSH  2 of 3 hybrid (67 %)", "64 = 4 heads x 16", "state 4", "all weights finite"):
        assert said in out
    assert main(["inspect", "--model", file, "--height", "96", "--width", "128", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["layer_plan"], found["height"], found["not_finite"]) == ("HSH", 96, [])
    assert main(["inspect", "--weights", file, "--height", "96", "--width", "128", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_inspect_of_a_named_model(capsys):
    assert main(["inspect", "shapes-75", "--height", "64", "--width", "64"]) == 0
    said = capsys.readouterr().out
    assert "HSHH  3 of 4 hybrid (75 %)" in said
    assert "reach back" not in said
    assert main(["inspect", "shapes-100"]) == 0
    assert "reach back 24 latent frames" in capsys.readouterr().out
    assert main(["inspect", "nothing"]) == 2
    assert "There is no model 'nothing'" in capsys.readouterr().err
    assert main(["inspect", "--weights", "nofile.pt"]) == 2
    assert "There is no 'nofile.pt' (--weights)" in capsys.readouterr().err


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


def test_lists_of_layers_are_numbers_and_never_empty() -> None:
    for words in ("--hybrid_layers 0 1", "--hybrid-layers 0,1", "--hybrid_layers=0,1"):
        command = parse(["generate", "a", *words.split()])
        assert isinstance(command, Generate)
        assert command.source.hybrid_layers == (0, 1)
    for words, said in (
        ("generate a --hybrid_layers", "'--hybrid-layers' needs one or more values"),
        ("generate a --hybrid-layers --frames 9", "'--hybrid-layers' needs one or more values"),
        ("generate --hybrid-layers 0 a", "got 'a'; give layer numbers from 0"),
    ):
        with pytest.raises(UsageError, match=said):
            parse(words.split())


def test_files_and_folders_that_are_no_models(capsys, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("a")
    for model, said in ((tmp_path / "notes.txt", "is no checkpoint: those end in .pt"), (tmp_path, "holds no model")):
        assert main(["generate", "a", "--model", str(model), "-o", str(tmp_path / "a.gif")]) == 2
        assert said in capsys.readouterr().err
