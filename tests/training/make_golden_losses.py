"""Write golden_losses.json anew, on purpose: after another teacher, recipe or mathematics. Say why in the commit.

python tests/training/make_golden_losses.py
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from tests.training.chain import STAGES, finished, losses  # noqa: E402
from tests.training.warm import warm_python  # noqa: E402

GOLDEN = Path(__file__).parent / "golden_losses.json"


def main() -> None:
    """Run the chain once, and write its losses."""
    before = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        chain = Path(folder) / "chain"
        with warm_python(Path(folder) / "warm") as python:
            finished(chain, python)
        after = {stage: {str(step): value for step, value in losses(chain, stage).items()} for stage in STAGES}
    GOLDEN.write_text(json.dumps(after, indent=1) + "\n")
    print(f"wrote {GOLDEN}: {'the same values' if after == before else 'other values'}")


if __name__ == "__main__":
    main()
