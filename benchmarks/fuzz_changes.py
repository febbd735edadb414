"""What befalls a file: bytes that are changed, values of JSON that become others, lines that are lost, other files.

Every change is drawn from a seeded ``random.Random``, so a case is known by its kind of file and its number.
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPARSE = 12 * 2**30  # bytes that a file claims to have; it takes no room on the disk
_NUMBERS = [0, 1, -1, 2, 3, 7, 64, 255, 4096, 2**31, 2**31 - 1, 2**63, 2**64 - 1, 10**12, 10**30, -(10**9)]
_FLOATS = [0.5, -0.5, 1e-300, 1e308, float("nan"), float("inf"), float("-inf")]
_TEXTS = ["", " ", "x", "none", "true", "../x", "/etc/passwd", "a\0b", "\ud800", "\x1b[31m", "é" * 40, "x" * 100_000]

Change = Callable[[bytes, random.Random], bytes]


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def _odd_value(draw: random.Random) -> Any:
    kind = draw.randrange(9)
    if kind < 3:
        return draw.choice(_NUMBERS)
    if kind == 3:
        return draw.choice(_FLOATS)
    if kind == 4:
        return draw.choice(_TEXTS)
    if kind == 5:
        return draw.choice([None, True, False, [], {}, [[]], {"": {}}, [None]])
    if kind == 6:
        return nested(draw.choice([5, 90, 400]))
    if kind == 7:
        return [draw.choice(_NUMBERS)] * draw.choice([1, 3, 1000, 100_000])
    return {f"k{i}": i for i in range(draw.choice([1, 5, 10_000]))}


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every value inside, the keys that lead to it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, one in inner for found in _places(one, (*place, key)))]


def change_value(value: Any, draw: random.Random) -> Any:
    """A JSON value with one value inside it replaced, removed, renamed, doubled or moved."""
    *way, last = draw.choice(_places(value)[1:] or [(None,)])
    if last is None:
        return _odd_value(draw)
    holder = value
    for key in way:
        holder = holder[key]
    old, kind = holder[last], draw.randrange(9)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, dict):
        holder[draw.choice([str(last)[:-1], f"{last}s", str(last).upper(), "", "format"])] = holder.pop(last)
    elif kind == 2 and isinstance(old, int | float):
        holder[last] = draw.choice([-old, old + 1, old * 2, old // 2, float(old), str(old), [old], old * 1000])
    elif kind == 2 and isinstance(old, str):
        holder[last] = draw.choice([old[::-1], old * 2, old[:-1], [old], old.encode("utf-8").hex()])
    elif kind == 2 and isinstance(old, list):
        holder[last] = draw.choice([old * 2, old[:-1], old[1:], old[::-1], [old], dict(enumerate(map(str, old)))])
    elif kind == 3:
        other = value
        for key in draw.choice(_places(value)[1:]):
            other = other[key]
        holder[last] = json.loads(json.dumps(other))
    elif kind == 4 and isinstance(holder, dict):
        holder[draw.choice(["unknown", "_class_name", "__metadata__", "auto_map"])] = _odd_value(draw)
    else:
        holder[last] = _odd_value(draw)
    return value


def _json(content: bytes, draw: random.Random) -> bytes:
    value = json.loads(content)
    for _ in range(draw.choice([1, 1, 1, 2])):
        value = change_value(value, draw)
    return json.dumps(value).encode("utf-8")


def _json_line(content: bytes, draw: random.Random) -> bytes:
    lines = content.decode().splitlines()
    number = draw.randrange(len(lines))
    lines[number] = _json(lines[number].encode(), draw).decode("utf-8", "surrogatepass")
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def _repeated_key(content: bytes, draw: random.Random) -> bytes:
    return content.replace(b"{", b'{"%s": %d, ' % (draw.choice([b"a", b"format", b"clips"]), draw.randrange(9)), 1)


def _line(content: bytes, draw: random.Random) -> bytes:
    """A line lost, doubled, moved, or with another value behind its colon, comma or equals sign."""
    lines = content.split(b"\n")
    number, kind = draw.randrange(len(lines)), draw.randrange(5)
    if kind == 0:
        del lines[number]
    elif kind == 1:
        lines.insert(draw.randrange(len(lines)), lines[number])
    elif kind == 2:
        lines[number] = draw.choice([b"  ", b"\t", b"-", b"}", b'"', b"&a ", b"*a ", b"<<: "]) + lines[number]
    else:
        for mark in draw.sample([b":", b",", b"=", b" "], 4):
            if mark in lines[number]:
                odd = json.dumps(_odd_value(draw)).encode("utf-8")
                lines[number] = lines[number].partition(mark)[0] + mark + b" " + odd
                break
    return b"\n".join(lines)


def _bomb_of_aliases(content: bytes, draw: random.Random) -> bytes:
    levels = draw.choice([9, 30])
    if draw.random() < 0.5:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    else:
        lines = ["a0: &a0 {k0: 1, k1: 2}"]
        lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], j{i}: 1}}" for i in range(1, levels)]
    return ("\n".join(lines) + "\n").encode() + content


def _flip(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def _byte(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def _truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.choice([draw.randrange(len(content)), len(content) - 1, min(len(content), 9)])]


def _range(content: bytes, draw: random.Random) -> bytes:
    """A range deleted, doubled, set to zero, or filled with noise."""
    start = draw.randrange(len(content))
    stop = min(len(content), start + draw.choice([1, 4, 8, 16, 100, 1000]))
    piece = content[start:stop]
    new = draw.choice([b"", piece * 2, bytes(len(piece)), draw.randbytes(len(piece))])
    return content[:start] + new + content[stop:]


def _length(content: bytes, draw: random.Random) -> bytes:
    """A number of 2, 4 or 8 bytes, of either order, where formats keep lengths: near the beginning or the end."""
    width = draw.choice([2, 4, 8])
    edge = min(len(content), 256)
    place = draw.choice([draw.randrange(len(content)), draw.randrange(edge), len(content) - 1 - draw.randrange(edge)])
    number = draw.choice([0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1, len(content)])
    raw = (number % 2 ** (8 * width)).to_bytes(width, draw.choice(["little", "big"]))
    return content[:place] + raw + content[place + width :]


def _appended(content: bytes, draw: random.Random) -> bytes:
    return content + draw.choice([b"\0", b"\n\n{}", bytes(5000), content, draw.randbytes(64)])


def _other_content(content: bytes, draw: random.Random) -> bytes:
    others = [b"", b"\n", bytes(4096), draw.randbytes(4096), b"[" * 200_000, b'{"a":' * 100_000, b"{}", b"[]", b"null"]
    return draw.choice([*others, b"0", b"\xef\xbb\xbf" + content, b"%PDF-1.4", b"PK\3\4" + bytes(60), b"\x80\2}q\0."])


def _other_encoding(content: bytes, draw: random.Random) -> bytes:
    text = content.decode("latin-1")
    return draw.choice([text.encode("utf-16"), text.encode("utf-32"), text.encode("utf-8") + b"\xff\xfe"])


BYTES: tuple[Change, ...] = (_flip, _flip, _flip, _byte, _truncate, _range, _range, _length, _appended, _other_content)
TEXT: tuple[Change, ...] = (_flip, _byte, _truncate, _range, _other_content, _other_encoding, _line, _line)
JSON: tuple[Change, ...] = (*[_json] * 12, _repeated_key, *TEXT)
JSON_LINES: tuple[Change, ...] = (*[_json_line] * 8, *TEXT)
YAML: tuple[Change, ...] = (*[_line] * 6, _bomb_of_aliases, *TEXT)


def no_regular_file(path: Path, draw: random.Random) -> str:
    """Put something else in a file's place: a pipe, a device, a folder, a link to nothing, a file of 12 GB."""
    kind = draw.choice(["pipe", "device", "folder", "link to nothing", "link to itself", "sparse", "sparse"])
    if kind == "sparse":
        os.truncate(path, SPARSE)
        return kind
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name if kind == "link to itself" else "nothing")
    return kind


def change_file(path: Path, changes: tuple[Change, ...], draw: random.Random) -> str:
    """Change a file and say how; one case in 25 gets something that is no regular file, or a huge one."""
    if draw.random() < 0.04:
        return no_regular_file(path, draw)
    before, change = path.read_bytes(), draw.choice(changes)
    after = change(before, draw)
    path.write_bytes(after if after != before else _flip(before, draw))
    return change.__name__.strip("_")
