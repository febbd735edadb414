"""Prompts as Wan cleans them."""

import pytest

from arl2.text.umt5 import clean_prompt


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("a cat", "a cat"),
        ("  a\t\tcat \n runs ", "a cat runs"),
        ("cat &amp;amp; dog", "cat & dog"),
        ("a&nbsp;&nbsp;cat", "a cat"),
        ("caf\u00c3\u00a9", "caf\u00e9"),
        ("\u201ca cat\u201d", '"a cat"'),
        ("\ufb02ag", "flag"),
        ("a\u3000cat", "a cat"),
        ("a \ud83d\ude00", "a \U0001f600"),
        ("\u732b\u304c\u8d70\u308b", "\u732b\u304c\u8d70\u308b"),
    ],
)
def test_prompts_come_out_clean_and_stay_so(prompt: str, cleaned: str) -> None:
    assert clean_prompt(prompt) == cleaned
    assert clean_prompt(cleaned) == cleaned
