"""The mean of exports of one model, weight by weight: where one run draws better and another remembers more, their mean
keeps most of both (arXiv 2203.05482 and 2109.01903 average like this).

    python recipes/average.py runs/teacher-remember3/export runs/teacher-remember4/export -o runs/teacher
    python recipes/average.py runs/stage2/export runs/dmd1/export runs/dmd2/export --share 0.8 -o runs/mean

The second line gives 0.2 of the first model and 0.4 of each other.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file


def average(first: Path, others: Sequence[Path], output: Path, share: float) -> None:
    """Copy the last one, and put ``(1 - share) first + share`` of the mean of ``others`` into its weights."""
    folders = (first, *others)
    files = [{file.relative_to(folder) for file in folder.rglob("*.safetensors")} for folder in folders]
    for folder, found in zip(folders, files, strict=True):
        if not found:
            raise SystemExit(f"'{folder}' holds no .safetensors; give the folder of an export.")
    for folder, found in zip(folders, files, strict=True):
        if found != files[-1]:
            odd = sorted(map(str, found ^ files[-1]))[0]
            raise SystemExit(f"'{odd}' is in one of '{folder}' and '{others[-1]}' alone; give runs of one model.")
    means = {}
    for place in sorted(files[-1]):
        ours, *theirs = (load_file(folder / place) for folder in folders)
        shapes = [{name: one.shape for name, one in weights.items()} for weights in (ours, *theirs)]
        for folder, shape in zip(folders, shapes, strict=True):
            if shape != shapes[-1]:
                raise SystemExit(
                    f"'{folder / place}' and '{others[-1] / place}' hold other tensors; give runs of one model."
                )
        means[place] = {
            name: ours[name].float().lerp(sum(one[name].float() for one in theirs) / len(theirs), share).to(last.dtype)
            for name, last in theirs[-1].items()
        }
    shutil.copytree(others[-1], output)
    for place, mean in means.items():
        save_file(mean, output / place, metadata={"format": "pt"})


def main() -> None:
    """Read the words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("others", type=Path, nargs="+", help="the last one gives the settings and the precision")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--share", type=float, default=0.5, help="weight of all but the first (default: 0.5)")
    given = parser.parse_args()
    if not 0 <= given.share <= 1:
        raise SystemExit(f"--share is {given.share}; give 0 to 1.")
    if given.output.exists():
        raise SystemExit(f"'{given.output}' is there already; choose a new folder.")
    average(given.first, given.others, given.output, given.share)


if __name__ == "__main__":
    main()
