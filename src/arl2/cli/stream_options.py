"""The options of ``arl2 stream``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from arl2.cli.checks import exclusive
from arl2.cli.options import Command
from arl2.cli.progress import Reporting
from arl2.pipeline.options import ModelSource, SamplingOptions


@dataclass(frozen=True, kw_only=True)
class Snapshots:
    """Saving the stream, and resuming it.

    Attributes:
        snapshot: File to save the stream in at its end (after Ctrl-C, too), an .arl2.
        save_every: Blocks between saves (default file: that of --resume).
        snapshot_kind: exact resumes with the same bits (the default); light is small and resumes a little differently.
        resume: Snapshot to resume; a PROMPT changes the prompt.
    """

    snapshot: Path | None = None
    save_every: int | None = None
    snapshot_kind: Literal["exact", "light"] | None = None
    resume: Path | None = None

    @property
    def file(self) -> Path | None:
        """Where the stream is saved."""
        return self.snapshot or (self.resume if self.save_every is not None else None)


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the video goes.

    Attributes:
        output: .mp4, .gif, .y4m (raw; a named pipe, too), - (raw y4m to standard output), NAME.hls for a folder of
            HTTP Live Streaming, or a name without extension for a folder of PNGs. Cuts are marked: EXT-X-DISCONTINUITY,
            XCUT in y4m, else NAME.cuts.jsonl beside the video (default: an .mp4 named after the prompt and the seed,
            unless --preview).
        overwrite: Replace outputs that exist.
        keep_minutes: Minutes of HLS that stay in the playlist, or all; the folder holds at most twice as much
            (default: 30 with --forever, else all).
        preview: Show the video in the terminal, two pixels a character: every video frame in its time, or, with an
            output and without --live, one of each block.
        policy: When blocks are made. wait: as early as possible, and when outputs are slower, the model waits for them.
            drop: as early as possible; the oldest blocks' frames are dropped. just-in-time: a block begins when no more
            than one is left to watch, so that a new prompt shows soon.
        live: Sample no faster than the video is watched.
        scale: Factor that enlarges every pixel (default: 4 for 64-pixel videos, 1 for large ones).
    """

    output: Path | None = None
    overwrite: bool = False
    keep_minutes: float | Literal["all"] | None = None
    preview: bool = False
    policy: Literal["wait", "drop", "just-in-time"] = "wait"
    live: bool = False
    scale: int | None = None


@dataclass(frozen=True, kw_only=True)
class StreamOptions(Command):
    """Generate a continuous stream block by block, for ever if wanted, in memory that does not grow.

    One thread denoises, another decodes, while finished blocks go to the output. Ctrl-C ends the stream after the
    current blocks: outputs are complete, and with --snapshot the stream can be resumed exactly there. A second Ctrl-C
    saves nothing.

    Attributes:
        prompt: What the video shows.
        forever: Run until Ctrl-C, or until the reader of a pipe goes away.
        seconds: Length of this run in seconds of video, instead of --frames.
        script: Prompts and when they take effect, a YAML list of {at: 0:05, prompt: ..., mode: soft | refresh | cut}.
            Times count from the beginning of the stream: seconds, a clock, or '80 frames'. Each takes effect at the
            first block that begins then or later. An entry at 0 stands for PROMPT.
        threads: CPU threads of each part (default: 1 for small models, else all cores).
    """

    positional: ClassVar = ("prompt",)
    light: ClassVar = True
    examples: ClassVar = (
        'arl2 stream "a red circle moves right on navy" --forever --preview',
        'arl2 stream "a red circle moves right on navy" --frames 801 -o run.hls --snapshot run.arl2 --save-every 20',
    )
    prompt: str | None = None
    forever: bool = False
    seconds: float | None = None
    script: Path | None = None
    threads: int | None = None
    saving: Snapshots = field(default_factory=Snapshots)
    out: Output = field(default_factory=Output)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    source: ModelSource = field(default_factory=ModelSource)
    reporting: Reporting = field(default_factory=Reporting)

    def __post_init__(self) -> None:
        lengths = {"--forever": self.forever, "--frames": self.sampling.num_frames, "--seconds": self.seconds}
        exclusive(lengths, required=True)
