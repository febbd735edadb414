"""``arl2 stream PROMPT``: video without end, to files, players, web servers or the terminal."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from arl2.cli import words
from arl2.cli.loading import add_model_options
from arl2.errors import ConfigError

if TYPE_CHECKING:
    from arl2.serving.script import Entry

# Minutes of HLS that a stream without end keeps unless somebody says.
_KEEP_MINUTES = 30
# What a snapshot says itself.
_FROM_SNAPSHOT = ("seed", "steps", "candidates", "sink", "sink_positions", "height", "width")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "stream",
        help="a video without end",
        description="Generate video block by block, for ever if wanted, in memory that does not grow. One thread "
        "denoises, another decodes, while what is done goes to the output. Ctrl-C ends the stream after the blocks "
        "under way: outputs are whole, and with --snapshot it can go on later, exactly there. A second Ctrl-C saves "
        "nothing.",
    )
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help='such as "a red circle moves right on navy"')
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--forever", action="store_true", help="until Ctrl-C, or until the reader of a pipe goes away")
    length.add_argument("--frames", type=words.whole_from_one, help="video frames of this run")
    length.add_argument("--seconds", type=words.above_zero, help="likewise, as they are shown")
    parser.add_argument(
        "--script",
        type=Path,
        metavar="YAML",
        help="prompts and when they take effect: a list of {at: 0:05, prompt: ..., mode: soft | refresh | cut}. Times "
        "count from the beginning of the stream: seconds, a clock, or '80 frames'; each takes effect at the first "
        "block that begins then or later. An entry at 0 stands for PROMPT",
    )
    parser.add_argument("--seed", type=words.whole_from_zero, help="default: 0")
    parser.add_argument("--steps", type=words.steps, help="denoising steps of a block, as for 'arl2 generate'")
    words.add_candidates(parser)
    parser.add_argument(
        "--window",
        type=words.window,
        default="settings",
        help="latent frames that softmax layers see, or full (default: the model's)",
    )
    parser.add_argument("--sink", type=words.whole_from_zero, help="first latent frames that the window never loses")
    parser.add_argument(
        "--sink-positions", choices=("absolute", "relative"), help="where the sinks stand, seen from the window"
    )
    saved = parser.add_argument_group("snapshots")
    saved.add_argument("--snapshot", type=Path, metavar="S.arl2", help="save the stream at its end (after Ctrl-C, too)")
    saved.add_argument(
        "--save-every",
        type=words.whole_from_one,
        metavar="K",
        help="and after every K blocks (default file: --resume's)",
    )
    saved.add_argument(
        "--snapshot-kind",
        choices=("exact", "light"),
        help="exact: goes on with the same bits (default); light: small, goes on a little differently",
    )
    saved.add_argument("--resume", type=Path, metavar="S.arl2", help="go on where a snapshot ended; PROMPT changes it")
    out = parser.add_argument_group("output")
    out.add_argument(
        "-o",
        "--output",
        type=Path,
        help=".mp4, .gif, .y4m (raw; a named pipe, too), - (raw y4m to standard output), NAME.hls for a folder of "
        "HTTP Live Streaming, or a name without extension for a folder of PNGs. Cuts are marked: EXT-X-DISCONTINUITY, "
        "XCUT in y4m, else NAME.cuts.jsonl beside the video. Default: an .mp4 named after the prompt, unless --preview",
    )
    out.add_argument(
        "--keep-minutes",
        type=words.minutes_or_all,
        metavar="M",
        help="of HLS: what stays in the playlist, or all; the folder holds at most twice as much "
        f"(default: {_KEEP_MINUTES} with --forever, else all)",
    )
    out.add_argument(
        "--preview",
        action="store_true",
        help="show it in the terminal, two pixels a character: every video frame in its time, or, with an output and "
        "without --live, one of each block",
    )
    out.add_argument(
        "--policy",
        choices=("wait", "drop"),
        default="wait",
        help="when outputs are slower than the model: wait for them (default), or drop the oldest blocks' pictures",
    )
    out.add_argument("--live", action="store_true", help="no faster than it is watched")
    out.add_argument("--scale", type=words.whole_from_one, help="enlarge every pixel, as for 'arl2 generate'")
    parser.add_argument("--threads", type=words.whole_from_one, help="CPU threads of each part")
    said = parser.add_mutually_exclusive_group()
    said.add_argument("--quiet", action="store_true", help="print nothing but errors")
    said.add_argument("--json-progress", action="store_true", help="print JSON objects, one a line, on standard error")
    add_model_options(parser)
    # What options of models look at elsewhere.
    parser.set_defaults(run=run, prompts_file=None)


def run(arguments: argparse.Namespace) -> int:
    """Stream, write, save, and say what it took; 130 if it was interrupted."""
    from arl2.serving.script import read_script
    from arl2.video.formats import check_file

    script = read_script(arguments.script) if arguments.script is not None else ()
    arguments.prompt = _first_prompt(arguments, script)
    arguments.prompts = [arguments.prompt]
    _check_resume(arguments)
    arguments.snapshot = arguments.snapshot or (arguments.resume if arguments.save_every is not None else None)
    if arguments.snapshot is not None:
        check_file(arguments.snapshot, ".arl2")
    elif arguments.save_every is not None or arguments.snapshot_kind is not None:
        raise ConfigError("--save-every and --snapshot-kind need a file: give --snapshot S.arl2.")
    _choose_output(arguments)

    from arl2.cli.streaming import run_stream

    return run_stream(arguments, script)


def _first_prompt(arguments: argparse.Namespace, script: "tuple[Entry, ...]") -> str | None:
    from arl2.serving.file_names import is_text

    prompt: str | None = arguments.prompt
    if prompt is not None and not prompt.strip():
        raise ConfigError('The prompt is empty; give words, such as "a red circle moves right on navy".')
    if prompt is not None and not is_text(prompt):
        raise ConfigError(f"The prompt {prompt!r} is not UTF-8; check the encoding of the terminal.")
    if arguments.resume is not None:
        return prompt
    at_start = [entry for entry in script[:1] if not entry.at.seconds and not entry.at.frames]
    if prompt is not None and at_start:
        raise ConfigError(f"{at_start[0].where}: a prompt at 0 and PROMPT came; give one of them.")
    if prompt is None and not at_start:
        raise ConfigError("Give a prompt, a script with a prompt at 0, or --resume S.arl2.")
    return prompt if prompt is not None else at_start[0].prompt


def _check_resume(arguments: argparse.Namespace) -> None:
    if arguments.resume is None:
        return
    given = [name for name in _FROM_SNAPSHOT if vars(arguments)[name] is not None]
    if given or arguments.window != "settings":
        name = (given or ["window"])[0].replace("_", "-")
        raise ConfigError(f"--{name} does not go with --resume: the snapshot has its own; leave it out.")
    if arguments.output is None and not arguments.preview:
        raise ConfigError("A stream that goes on needs a place: give --output or --preview.")


def _choose_output(arguments: argparse.Namespace) -> None:
    from arl2.serving.file_names import file_name
    from arl2.serving.outputs.opening import HLS_SUFFIX, check_output

    if arguments.output is None and not arguments.preview:
        arguments.output = Path(file_name(0, arguments.prompt, seed=arguments.seed or 0))
    if arguments.output is not None:
        kind = check_output(arguments.output, going_on=arguments.resume is not None)
        if arguments.keep_minutes is not None and kind != "hls":
            raise ConfigError(f"--keep-minutes goes with a folder of segments; give --output NAME{HLS_SUFFIX}.")
        if arguments.keep_minutes is None and arguments.forever and kind == "hls":
            arguments.keep_minutes = _KEEP_MINUTES
    elif arguments.keep_minutes is not None:
        raise ConfigError(f"--keep-minutes goes with a folder of segments; give --output NAME{HLS_SUFFIX}.")
