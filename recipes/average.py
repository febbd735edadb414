"""The mean of two exports of one model, weight by weight: where one run draws better and the other remembers more,
halfway between the two keeps most of both (arXiv 2203.05482 and 2109.01903 average like this).

    python recipes/average.py runs/teacher-remember3/export runs/teacher-remember4/export -o runs/teacher
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file


def average(first: Path, second: Path, output: Path, share: float) -> None:
    """Copy ``second`` and put ``(1 - share) first + share second`` into its weights."""
    means = {}
    for file in sorted(second.rglob("*.safetensors")):
        place = file.relative_to(second)
        ours, theirs = load_file(first / place), load_file(file)
        if {name: one.shape for name, one in ours.items()} != {name: one.shape for name, one in theirs.items()}:
            raise SystemExit(f"'{first / place}' and '{file}' hold other tensors; give two runs of one model.")
        means[place] = {
            name: ours[name].float().lerp(theirs[name].float(), share).to(theirs[name].dtype) for name in theirs
        }
    shutil.copytree(second, output)
    for place, mean in means.items():
        save_file(mean, output / place, metadata={"format": "pt"})


def main() -> None:
    """Read the words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--share", type=float, default=0.5, help="of the second (default: 0.5)")
    given = parser.parse_args()
    if given.output.exists():
        raise SystemExit(f"'{given.output}' is there already; choose a new folder.")
    average(given.first, given.second, given.output, given.share)


if __name__ == "__main__":
    main()
