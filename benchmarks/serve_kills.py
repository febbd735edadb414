"""kill -9 of ``arl2 serve`` at random moments, with new prompts between: blocks lost, repeated, and other bits.

    python benchmarks/serve_kills.py --kills 50

A viewer watches one stream over its socket and reconnects with ``after=``. What it has seen at the end is compared with
the same stream, with the prompts at the same blocks, made by the library in one go.
"""

import argparse
import hashlib
import json
import random
import tempfile
import time
from pathlib import Path

from arl2.pipeline.pipeline import ARL2Pipeline
from served import Viewer, served

PROMPTS = (
    "a red circle moves right on navy",
    "a blue circle moves left on navy",
    "a green square moves up on black",
    "a yellow triangle bounces on black",
)
SEED = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--every", type=int, default=2, help="blocks between two kills, on average")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    blocks = asked.kills * asked.every + 4
    moments = sorted(chance.sample(range(1, blocks - 2), asked.kills))
    changes: dict[int, str] = {}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder) / "store") as server:
        stream = server.post("/v1/streams", prompt=PROMPTS[0], seed=SEED, blocks=blocks)["id"]
        viewer, left, frame_of = Viewer(server, stream), list(moments), chance.randrange(1, 12)

        def look(block: int, frame: int) -> None:
            nonlocal frame_of
            if left and block >= left[0] and frame >= frame_of:
                left.pop(0)
                frame_of = chance.randrange(1, 12)
                if chance.random() < 0.3:
                    prompt = chance.choice(PROMPTS)
                    changes[server.post(f"/v1/streams/{stream}/prompt", prompt=prompt)["block"]] = prompt
                server.end()
                server.start(ready=False)

        viewer.watch(blocks - 1, look, patience=3600)
        seen = [head["block"] for head in viewer.blocks]
        digests = [head["digest"] for head in viewer.blocks]
    lost, repeated = len(set(range(blocks)) - set(seen)), len(seen) - len(set(seen))
    expected = unkilled(blocks, changes)
    different = sum(one != other for one, other in zip(digests, expected, strict=False))
    figures = {
        "kills": asked.kills - len(left),
        "blocks": blocks,
        "prompts": len(changes),
        "lost": lost,
        "repeated": repeated,
        "different": different,
        "reconnects": viewer.reconnects,
        "seconds": round(time.monotonic() - begun),
    }
    print(json.dumps(figures))
    if lost or repeated or different or left:
        raise SystemExit(1)


def unkilled(blocks: int, changes: dict[int, str]) -> list[str]:
    """Digests of the stream, made in one go."""
    found = []
    with ARL2Pipeline.from_pretrained("shapes-75").stream(PROMPTS[0], seed=SEED) as stream:
        for number in range(blocks):
            if number in changes:
                stream.change_prompt(changes[number])
            found.append(hashlib.blake2b(next(stream).pixels().tobytes(), digest_size=16).hexdigest())
    return found


if __name__ == "__main__":
    main()
