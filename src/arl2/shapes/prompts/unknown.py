"""Words of a prompt that the shapes world does not know: warned about, or refused where they are the subject.

A word that this world does not know changes nothing in the video. That is worth a warning where a shape is named, and
an error where the shape is what is unknown: the video would show something else.
"""

import difflib
import re
import warnings

from arl2.shapes.prompts.parser import EXAMPLES, MEANINGS, PHRASES, PromptError, shortened
from arl2.shapes.world.palette import BACKGROUNDS, COLOURS, MOTIONS, SHAPES

# Words that a sentence needs and that ask for nothing which a video could lack.
_ARTICLES = "a an the one this that its"
_LINKS = (
    "and while as is are was be it which there of to from at by in into on onto over upon against with across along "
    "through toward towards past out front side sides top bottom edge middle centre center"
)
_VERBS = (
    "move moves moving moved go goes going gone travel travels travelling traveling slide slides sliding roll rolls "
    "rolling drift drifts drifting fly flies flying float floats floating glide glides gliding run runs running pass "
    "passes passing come comes coming hide hides hiding hidden disappears reappears around"
)
_PICTURES = "video videos clip film movie animation gif picture image scene show shows showing"
_GROUNDS = "background backgrounds ground backdrop screen canvas"
_QUALITIES = "colour color coloured colored shaped direction"
_UNNAMED = "thing things object objects shape shapes something figure form"
_UNSAID = {
    *f"{_ARTICLES} {_LINKS} {_VERBS} {_PICTURES} {_GROUNDS} {_QUALITIES} {_UNNAMED}".split(),
}
KNOWN = {*MEANINGS, *_UNSAID}
"""Every word that is understood, or rightly passed over."""
_MISSPELT = sorted({*MEANINGS, *f"{_VERBS} {_UNNAMED}".split()})

# Words beside a noun: not drawn, and never the subject themselves.
_BESIDE = (
    "small big large little tiny huge slow slowly fast quick quickly quietly smoothly gently suddenly bright dark "
    "light shiny single simple flat solid plain two three four five many several not no very"
)
_MODIFIERS = frozenset(_BESIDE.split())
_OF_PICTURE = re.compile(rf"^.*\b(?:{_PICTURES.replace(' ', '|')})\b(?: [^ ]+)? of ")
_GREY_WALL = re.compile(r"\b(?:grey|gray) (?=walls?\b|barrier\b|pillar\b|fence\b|occluder\b)")
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_POSSESSIVE = re.compile(r"['\u2019]s\b")
REAL_MODEL = "causal-forcing"
_NEAR = 0.75  # of difflib's ratio: "purpl", "mvoes" and "navvy" are near to a known word, "elephant" is not
_MOST_NAMED = 8
_GROUND_WORDS = "|".join(_GROUNDS.split())


class UnknownWordsWarning(UserWarning):
    """A prompt holds words that the model of the shapes world passes over."""


def check_words(prompt: str) -> str | None:
    """Refuse a prompt whose subject is unknown.

    Args:
        prompt: as it was typed.

    Returns:
        A sentence about what else in it is not understood; None if nothing.

    Raises:
        PromptError: The prompt asks for something else than the shapes of this world.
    """
    words = _words(prompt)
    unknown = list(dict.fromkeys(word for word in words if word not in KNOWN))
    nearest = {word: _nearest(word) if number < _MOST_NAMED else None for number, word in enumerate(unknown)}
    subject = _unknown_subject(words, nearest)
    if subject:
        guess = nearest[subject[0]]
        hint = f" Did you mean '{guess}'?" if guess else ""
        raise PromptError(
            f"The prompt {shortened(prompt)} asks for {_listed(subject)}, which this model cannot draw.{hint} "
            f"{known()} {real_models()}"
        )
    said = []
    if nearest:
        told = [f"'{word}'" + (f" (did you mean '{near}'?)" if near else "") for word, near in nearest.items()]
        more = f" and {len(told) - _MOST_NAMED} more" if len(told) > _MOST_NAMED else ""
        said.append(f"does not know {', '.join(told[:_MOST_NAMED])}{more}, and ignores what it does not know")
    said += _misplaced(" ".join(words))
    if not said:
        return None
    return f"The prompt {shortened(prompt)}: this model {'; it '.join(said)}. {known()}"


def warn(sentence: str) -> None:
    """Show it as an ``UnknownWordsWarning``."""
    warnings.warn(sentence, UnknownWordsWarning, stacklevel=4)


def known() -> str:
    """What a prompt may name."""
    return (
        f"It knows shapes ({', '.join(SHAPES)}), colours ({', '.join(COLOURS)}), motions ({', '.join(MOTIONS)}), "
        f"backgrounds ({', '.join(BACKGROUNDS)}) and a wall, as in {EXAMPLES[0]!r}."
    )


def real_models() -> str:
    """Which models draw anything else."""
    return f"A model trained on real video draws anything, such as --model {REAL_MODEL} ('arl2 models' lists them)."


def _words(prompt: str) -> list[str]:
    text = " ".join(_WORD.findall(_POSSESSIVE.sub("", prompt.lower())))
    for pattern, meaning in PHRASES:
        text = re.sub(pattern, meaning, text)
    return _GREY_WALL.sub("", text).split()


def _nearest(word: str) -> str | None:
    # Long words cost time and are near to nothing.
    near = difflib.get_close_matches(word[:24], _MISSPELT, n=1, cutoff=_NEAR)
    return near[0] if near else None


def _unknown_subject(words: list[str], nearest: dict[str, str | None]) -> list[str]:
    """The words that stand where a shape should; none where a shape is the subject, or nothing is."""
    sentence = _OF_PICTURE.sub("", " ".join(words)).split()
    strange = [
        word
        for word in sentence
        if word in nearest and word not in _MODIFIERS and (nearest[word] is None or _names_shape(str(nearest[word])))
    ]
    at = next((index for index, word in enumerate(sentence) if _names_shape(word)), None)
    if at is None:
        return list(dict.fromkeys(strange))[:3]
    # "a shiny red ball" names a ball; in "an elephant with a ball" another noun comes first.
    start, found = 0, []
    for index, word in enumerate(sentence[:at]):
        if word in _UNSAID or (word in MEANINGS and MEANINGS[word][0] in ("motion", "wall")):
            found += sentence[start:index]
            start = index + 1
    return [word for word in dict.fromkeys(found) if word in strange and nearest[word] is None][:3]


def _names_shape(word: str) -> bool:
    return word in _UNNAMED.split() or (word in MEANINGS and MEANINGS[word][0] == "shape")


def _misplaced(text: str) -> list[str]:
    """Names of one attribute where another stands: the parser goes by the word, wherever it is."""
    colours, grounds, shapes = (_either(kind) for kind in ("colour", "background", "shape"))
    said = []
    if found := re.search(rf"\b({grounds}) (?:{shapes})\b", text):
        said.append(f"reads '{found[1]}' as the background and chooses the shape's colour itself")
    if found := re.search(
        rf"\b({colours}) (?:{_GROUND_WORDS})\b|\b(?:on|over|against) (?:an? |the )?({colours})$", text
    ):
        said.append(f"reads '{found[1] or found[2]}' as the colour of the shape, and has no such background")
    return said


def _either(attribute: str) -> str:
    return "|".join(word for word, (kind, _) in MEANINGS.items() if kind == attribute)


def _listed(words: list[str]) -> str:
    return " and ".join(", ".join(f"'{word}'" for word in words).rsplit(", ", 1))
