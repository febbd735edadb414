"""``arl2 compare A B``: videos side by side, a labelled filmstrip, and their distances from the first."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.console import Console
from rich.table import Table

from arl2.cli.checks import check_there
from arl2.cli.options import Command
from arl2.errors import ConfigError
from arl2.files.places import check_apart

if TYPE_CHECKING:
    from arl2.evaluation.side_by_side import Distance


@dataclass(frozen=True, kw_only=True)
class Compare(Command):
    """Show videos side by side, and say how far each is from the first.

    Videos of other sizes are scaled to the height of the tallest, other rates follow the first one's, and a video that
    has ended keeps its last frame, paler. Distances are of frames as they are stored, where size and length are equal.

    Attributes:
        videos: Video files or folders of PNGs, two or more.
        output: Video with all of them, .mp4, .gif, .webp or .y4m (default: compare.mp4).
        strip: Labelled filmstrip, a .png (default: the name of the output, as .png).
        overwrite: Replace outputs that exist.
        as_json: Print the distances as one JSON line.
    """

    positional: ClassVar = ("videos",)
    examples: ClassVar = (
        "arl2 compare teacher.mp4 student.mp4",
        "arl2 compare a.mp4 b.mp4 c.mp4 -o all.mp4 --strip all.png --json",
    )
    videos: tuple[Path, ...] = ()
    output: Path = Path("compare.mp4")
    strip: Path | None = None
    overwrite: bool = False
    as_json: bool = False

    def run(self) -> int:
        """Write both, and print the distances."""
        if len(self.videos) < 2:
            raise ConfigError("Give two videos or more to compare: arl2 compare A.mp4 B.mp4.")
        for video in self.videos:
            check_there({"a video": video})
        strip = self.output.with_suffix(".png") if self.strip is None else self.strip

        from arl2.evaluation.side_by_side import distances, open_videos, write_side_by_side
        from arl2.video.formats import check_file, check_writable
        from arl2.video.sheet import contact_sheet

        if not self.output.suffix:
            raise ConfigError(f"The output '{self.output}' has no extension; give an .mp4, .gif, .webp or .y4m.")
        check_apart({"--output": self.output, "--strip": strip})
        for one in dict.fromkeys(self.videos):  # one may lie in another; outputs lie in none
            for name, path in (("--output", self.output), ("--strip", strip)):
                check_apart({name: path, "a video": one})
        check_writable(self.output, overwrite=self.overwrite)
        check_file(strip, ".png", overwrite=self.overwrite)
        videos = open_videos(self.videos)
        clips = write_side_by_side(videos, self.output)
        contact_sheet(clips, every=1, path=strip)
        found = distances(videos)
        if self.as_json:
            print(json.dumps([_plain(one) for one in found]))
            return 0
        _print(found, videos[0].label)
        print(f"wrote {self.output} and {strip}")
        return 0


def _plain(distance: "Distance") -> dict[str, object]:
    """For JSON, which has no infinity: equal videos have no PSNR and the mean 0."""
    values = asdict(distance)
    return {**values, "psnr": None if values["psnr"] == float("inf") else values["psnr"]}


def _print(found: "tuple[Distance, ...]", first: str) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column(f"distance from {first}")
    for heading in ("mean of 255", "PSNR, dB", "first difference"):
        table.add_column(heading, justify="right")
    for one in found:
        if one.mean is None or one.psnr is None:
            table.add_row(one.label, "-", "-", one.why_not)
        else:
            where = "none: equal" if one.first_different is None else f"frame {one.first_different}"
            table.add_row(one.label, f"{one.mean:.4g}", f"{one.psnr:.4g}", where)
    Console(highlight=False).print(table)
