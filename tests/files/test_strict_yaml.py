"""YAML that stands for more than it is: refused before any of it is made."""

import time

import pytest

from arl2.files.strict_yaml import parse_yaml


def bomb(step: str) -> str:
    """Each line holds the line before eight times; ``step`` says how."""
    lines = ["a0: &a0 {k0: 1}"]
    for i in range(1, 24):
        lines.append(f"a{i}: &a{i} " + step.format(own=f"k{i}", all=", ".join([f"*a{i - 1}"] * 8)))
    return "\n".join(lines)


BOMBS = {
    "lists": bomb("[{all}]"),
    "merges": bomb("{{<<: [{all}], {own}: 1}}"),
    "keys": "? &a [x, x]\n: 1\n",
    "within itself": "a: &a [1, *a]",
    "merged with itself": "a: &a {<<: *a}",
    "many": "- 1\n" * 200_000,
    "deep": "[" * 5000,
    "deep mappings": "{a: " * 3000,
    "long number": "a: " + "9" * 500_000,
    "sexagesimal": "a: 1" + ":59" * 300_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name):
    started = time.process_time()
    with pytest.raises(ValueError, match=r"\w") as refused:
        parse_yaml(BOMBS[name], aliases=True)
    assert time.process_time() - started < 10
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) <= 200


@pytest.mark.parametrize(
    "text",
    ["!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "!!python/name:os.system", "a: 2026-99-99"],
)
def test_tags_that_do_not_fit(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_yaml(text, aliases=True)


def test_values_come_as_they_are():
    text = "base: &b {x: 1, y: [a, b]}\nmid: &m {<<: *b, x: 2}\ntop: {<<: *m, z: *b}\n"
    base, mid = {"x": 1, "y": ["a", "b"]}, {"x": 2, "y": ["a", "b"]}
    assert parse_yaml(text, aliases=True) == {"base": base, "mid": mid, "top": {**mid, "z": base}}
    assert parse_yaml("", aliases=False) is None
    with pytest.raises(ValueError, match=r"the alias \*b is not read; write the value out"):
        parse_yaml(text, aliases=False)
    with pytest.raises(ValueError, match="the key 'x' appears twice"):
        parse_yaml("a: {x: 1, x: 2}", aliases=True)
