"""Prompts cleaned as the published Wan code cleans them before its tokenizer sees them."""

import html
import re

import ftfy

from arl2.errors import ConfigError

_SHOWN = 60
_LONE_SURROGATE = re.compile("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")


def clean_prompt(prompt: str) -> str:
    """Broken encodings repaired, HTML entities resolved twice, runs of white space collapsed, ends stripped.

    Raises:
        ConfigError: nothing is left, or the prompt has half a surrogate pair, which is no character.
    """
    lone = _LONE_SURROGATE.search(prompt)
    # The repair below would turn it into a replacement sign without a word.
    if lone is not None:
        raise ConfigError(
            f"Character {lone.start()} of the prompt is U+{ord(lone[0]):04X}, half of a surrogate pair and no valid "
            "Unicode; decode the text that it came from as UTF-8."
        )
    repaired = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    cleaned = re.sub(r"\s+", " ", repaired).strip()
    if not cleaned:
        raise ConfigError(f"The prompt {prompt[:_SHOWN]!r} is empty or white space; say what the video shows.")
    return cleaned
