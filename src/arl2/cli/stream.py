"""``arl2 stream PROMPT``: continuous video, to files, players, web servers or the terminal."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from arl2.cli.checks import check_source, check_there
from arl2.cli.options import options_of
from arl2.cli.ranks import require_alone
from arl2.cli.stream_options import Output, StreamOptions
from arl2.errors import ConfigError
from arl2.files.places import check_apart
from arl2.pipeline.options import SamplingOptions

if TYPE_CHECKING:
    from arl2.serving.script import Entry

# Minutes of HLS that a continuous stream keeps unless somebody says.
_KEEP_MINUTES = 30


@dataclass(frozen=True, kw_only=True)
class Stream(StreamOptions):
    __doc__ = StreamOptions.__doc__

    def run(self) -> int:
        """Stream, write, save, and say what it took; 130 if it was interrupted."""
        from arl2.serving.script import read_script
        from arl2.video.formats import check_file

        require_alone("stream")
        script = read_script(self.script) if self.script is not None else ()
        asked = replace(self, prompt=_first_prompt(self, script))
        _check_resume(asked)
        check_source(asked.source)
        saving = asked.saving
        check_apart({"--snapshot": saving.file, "--output": asked.out.output})
        if saving.file is not None:
            check_file(saving.file, ".arl2", overwrite=asked.out.overwrite or saving.file == saving.resume)
        elif saving.save_every is not None or saving.snapshot_kind is not None:
            raise ConfigError("--save-every and --snapshot-kind need a file: give --snapshot S.arl2.")
        asked = replace(asked, out=_chosen_output(asked))

        from arl2.cli.streaming import run_stream

        return run_stream(asked, script)


def _first_prompt(asked: Stream, script: "tuple[Entry, ...]") -> str | None:
    from arl2.serving.file_names import is_text

    prompt: str | None = asked.prompt
    if prompt is not None and not prompt.strip():
        raise ConfigError('The prompt is empty; give words, such as "a red circle moves right on navy".')
    if prompt is not None and not is_text(prompt):
        raise ConfigError(f"The prompt {prompt!r} is not UTF-8; check the encoding of the terminal.")
    if asked.saving.resume is not None:
        return prompt
    at_start = [entry for entry in script[:1] if not entry.at.seconds and not entry.at.frames]
    if prompt is not None and at_start:
        raise ConfigError(f"{at_start[0].where}: got a prompt at 0 and PROMPT; give one of them.")
    if prompt is None and not at_start:
        raise ConfigError("Give a prompt, a script with a prompt at 0, or --resume S.arl2.")
    return prompt if prompt is not None else at_start[0].prompt


def _check_resume(asked: Stream) -> None:
    if asked.saving.resume is None:
        return
    for option in options_of(SamplingOptions):
        if option.name != "num_frames" and getattr(asked.sampling, option.name) != option.default:
            raise ConfigError(f"{option.names[0]} does not go with --resume: the snapshot has its own; leave it out.")
    check_there({"--resume": asked.saving.resume})
    if asked.out.output is None and not asked.out.preview:
        raise ConfigError("A resumed stream needs a place: give --output or --preview.")


def _chosen_output(asked: Stream) -> Output:
    from arl2.serving.file_names import file_name
    from arl2.serving.outputs.opening import HLS_SUFFIX, check_output

    out, resumed = asked.out, asked.saving.resume is not None
    if out.output is None and not out.preview:
        seed = asked.sampling.seed or 0
        name = file_name(0, str(asked.prompt), seed=int(seed))  # type: ignore[arg-type]  # the command line gives one
        out = replace(out, output=Path(name))
    kind = None if out.output is None else check_output(out.output, going_on=resumed, overwrite=out.overwrite)
    if out.keep_minutes is not None and kind != "hls":
        raise ConfigError(f"--keep-minutes goes with a folder of segments; give --output NAME{HLS_SUFFIX}.")
    if out.keep_minutes is None and asked.forever and kind == "hls":
        out = replace(out, keep_minutes=_KEEP_MINUTES)
    return out
