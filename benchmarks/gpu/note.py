"""One line about a stage: how it ended, how long it took, what it printed last."""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    folder, name, code, started = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    printed = (folder / f"{name}.out").read_text(errors="replace").strip()
    errors = (folder / f"{name}.err").read_text(errors="replace").strip().splitlines()
    line = {"stage": name, "rc": code, "seconds": round(time.time() - started, 1)}
    try:
        # The last line that is an object; the whole text, where one object is printed on several lines.
        last = printed.splitlines()[-1] if printed else ""
        line["result"] = json.loads(last if last.startswith("{") and last.endswith("}") else printed)
    except ValueError:
        line["rc"] = code or 1
        errors.append("it printed no JSON")
    if line["rc"]:
        line["error"] = errors[-1] if errors else "no message"
    else:
        (folder / f"{name}.json").write_text(json.dumps(line["result"]) + "\n")
    (folder / f"{name}.line").write_text(json.dumps(line) + "\n")
    print(f"{name}: {'failed, ' + line['error'][:200] if line['rc'] else 'done'} ({line['seconds']} s)", flush=True)


if __name__ == "__main__":
    main()
