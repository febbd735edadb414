"""What two ranks do for ``test_generate_together``: several commands, one after the other.

python -m tests.cli.together FOLDER     (FOLDER/model holds a model, FOLDER/prompts.txt two prompts)
"""

import functools
import os
import signal
import sys
from pathlib import Path

from arl2.cli.main import main
from arl2.rollout.blocks import Block
from arl2.streams.stream import Stream
from forked import forked_ranks

PROMPT = "a red circle moves right on navy"


def commands(place: Path) -> None:
    rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
    options = ["--model", str(place / "model"), "--device", "cpu", "--threads", "1"]
    lists = ["--prompts-file", str(place / "prompts.txt"), "-o", str(place / "videos")]
    codes = []

    def command(*words: str) -> None:
        # The store of the command before may still hold its port.
        os.environ["MASTER_PORT"] = str(port + len(codes))
        print(f"rank {rank}, command {len(codes)}", flush=True)
        codes.append(main(["generate", *words, *options]))

    command(
        PROMPT,
        "--frames",
        "33",
        "-o",
        f"{place}/two.mp4",
        "--latents",
        f"{place}/two.safetensors",
        "--sheet",
        f"{place}/two.png",
    )
    (place / "videos").mkdir(exist_ok=True)
    command(*lists, "--frames", "21")
    command(*lists, "--frames", "21")
    _interrupt_rank(1, at_block=1)
    command(PROMPT, "--frames", "69", "-o", str(place / "stopped.mp4"))
    command(PROMPT, "--frames", "33", "-o", str(place / "two.mp4"))
    (place / f"codes-{rank}").write_text(" ".join(map(str, codes)))


def _interrupt_rank(rank: int, at_block: int) -> None:
    """Ctrl-C reaches one rank alone, in the middle of a block."""
    latents_next = Stream.latents_next

    def watched(stream: Stream) -> Block:
        if stream.index == at_block and int(os.environ["RANK"]) == rank:
            signal.raise_signal(signal.SIGINT)
        return latents_next(stream)

    Stream.latents_next = watched  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(any(forked_ranks(2, functools.partial(commands, Path(sys.argv[1])))))
