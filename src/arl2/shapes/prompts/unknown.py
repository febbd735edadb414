"""Words of a prompt that the shapes world does not know: warned about, or refused where they are the subject.

A word that this world does not know changes nothing in the video. That is worth a warning where a shape is named, and
an error where the shape is what is unknown: the video would show something else.
"""

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
_PICTURES = (
    "video videos clip film movie animation gif picture image scene show shows showing photo photograph footage shot "
    "drawing painting illustration render rendering sketch"
)
_REQUESTS = (
    "draw create make generate produce give display depict paint animate imagine see watch want need like please can "
    "could would will you i we me us let lets"
)
_GROUNDS = "background backgrounds ground backdrop screen canvas"
_QUALITIES = "colour color coloured colored shaped direction"
_UNNAMED = "thing things object objects shape shapes something figure form"
_UNSAID = {
    *f"{_ARTICLES} {_LINKS} {_VERBS} {_PICTURES} {_REQUESTS} {_GROUNDS} {_QUALITIES} {_UNNAMED}".split(),
}
KNOWN = {*MEANINGS, *_UNSAID}
"""Every word that is understood, or rightly passed over."""
# Two letters are near to too much.
_SPELLED = sorted(word for word in {*MEANINGS, *f"{_VERBS} {_UNNAMED}".split()} if len(word) > 2)

# Words beside a noun: not drawn, and never the subject themselves.
_BESIDE = (
    "small big large little tiny huge slow slowly fast quick quickly quietly smoothly gently suddenly bright dark "
    "light shiny single simple flat solid plain two three four five many several not no very beautiful nice "
    "cinematic realistic detailed high low quality long short tall wide thin thick new old upside-down"
)
_CAMERA = (
    "camera cameras close-up closeup pan pans panning panned zoom zooms zooming zoomed tilt tilts tilting track tracks "
    "tracking follows following view angle lens frame handheld aerial"
)
_MODIFIERS = frozenset(f"{_BESIDE} {_CAMERA}".split())
# Words of this world that are things, too, where an article stands before them and no shape after: "a fly moves right".
_ALSO_THINGS = "fly slide roll float run lemon ruby emerald violet lilac sand cream"
_THINGS = frozenset(_ALSO_THINGS.split())
# English words that are one letter from a known word, and meant as they are.
_EVERYDAY = (
    "all also any are back because been both but came does done each for form from get got had has have her here him "
    "his how just know last less made many may more most much must near next now off once only other our out rest said "
    "same say she should some soon still such take than their them then these they those thought three time too under "
    "until use wait want way well went were what when who why with without work your"
)
_COMMON = frozenset(_EVERYDAY.split())
_OF_PICTURE = re.compile(
    rf"^.*\b(?:{_PICTURES.replace(' ', '|')}|close-up|closeup|view)\b(?: [^ ]+)? (?:of|showing|where) "
)
_GREY_WALL = re.compile(r"\b(?:grey|gray) (?=walls?\b|barrier\b|pillar\b|fence\b|occluder\b)")
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_POSSESSIVE = re.compile(r"['\u2019]s\b")
REAL_MODEL = "causal-forcing"
_SHORT, _LONG = 5, 8  # letters; a short word with another letter is often another word: "doll", "rose", "leaf"
_WORD_SHOWN = 24  # characters
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
        guess = nearest.get(subject[0])
        hint = f" Did you mean '{guess}'?" if guess and _names_shape(guess) else ""
        raise PromptError(
            f"The prompt {shortened(prompt)} asks for {_listed(subject)}, which this model cannot draw.{hint} "
            f"{known()} {real_models()}"
        )
    said = []
    if nearest:
        told = [_quoted(word) + (f" (did you mean '{near}'?)" if near else "") for word, near in nearest.items()]
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
    """The known word that was meant; None where another word may be meant."""
    if word in _MODIFIERS or word in _COMMON:
        return None
    return next((spelled for spelled in _SPELLED if _swapped(word, spelled)), None) or next(
        (spelled for spelled in _SPELLED if _misspells(word, spelled)), None
    )


def _swapped(word: str, spelled: str) -> bool:
    """Whether two letters beside each other have changed places: "rde", "mvoes"."""
    if len(word) != len(spelled):
        return False
    wrong = [place for place, (left, right) in enumerate(zip(word, spelled, strict=True)) if left != right]
    return (
        len(wrong) == 2
        and wrong[1] == wrong[0] + 1
        and word[wrong[0] : wrong[1] + 1] == spelled[wrong[0] : wrong[1] + 1][::-1]
    )


def _misspells(word: str, spelled: str) -> bool:
    """Whether few letters are wrong: one, in long words two, in short ones one that is missing or too many."""
    most = 2 if len(word) >= _LONG else 1
    longer = abs(len(word) - len(spelled))
    if longer > most or len(word) < 3 or (len(word) <= _SHORT and not longer):
        return False
    return _distance(word, spelled) <= most


def _distance(word: str, other: str) -> int:
    """Letters that must be put in, taken out or replaced (Levenshtein)."""
    row = list(range(len(other) + 1))
    for up, letter in enumerate(word, 1):
        before, row[0] = row[0], up
        for at, against in enumerate(other, 1):
            before, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, before + (letter != against))
    return row[-1]


def _unknown_subject(words: list[str], nearest: dict[str, str | None]) -> list[str]:
    """The words that stand where a shape should; none where a shape is the subject, or nothing is."""
    sentence = _OF_PICTURE.sub("", " ".join(words)).split()
    at = next((index for index, word in enumerate(sentence) if _names_shape(word)), None)
    before = sentence if at is None else sentence[:at]
    if thing := _thing(before, ends=at is None):
        return [thing]
    # "a shiny red ball" names a ball; in "an elephant with a ball" another noun comes first.
    parts: list[list[str]] = [[]]
    for word in before:
        if _parts(word):
            parts.append([])
        else:
            parts[-1].append(word)
    nouns = [part for part in parts[: None if at is None else -1] if part]
    found = []
    for number, part in enumerate(nouns):
        strange = [word for word in part if word in nearest and word not in _MODIFIERS]
        for word in strange:
            near = nearest[word]
            # What stands as a noun is one, though a letter less makes it a known word: "a wallet", "a cup".
            noun = word == part[-1] and (at is not None or number == 0) and not (near and _swapped(word, near))
            if near is None or noun or (at is None and _names_shape(near)):
                found.append(word)
    return list(dict.fromkeys(found))[:3]


def _thing(words: list[str], *, ends: bool) -> str | None:
    """A known word that is the subject as a thing, as a verb or preposition comes after it; None if there is none."""
    if words[:1] not in (["a"], ["an"], ["the"]):
        return None
    for word, after in zip(words[1:], [*words[2:], "is" if ends else "and"], strict=False):
        if word in _THINGS and after != "and" and _parts(after):
            return word
        if word not in _MODIFIERS and MEANINGS.get(word, ("",))[0] != "colour":
            return None
    return None


def _parts(word: str) -> bool:
    """Whether a noun ends before the word."""
    return word in _UNSAID or (word in MEANINGS and MEANINGS[word][0] in ("motion", "wall"))


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
    return " and ".join(", ".join(map(_quoted, words)).rsplit(", ", 1))


def _quoted(word: str) -> str:
    return f"'{word if len(word) <= _WORD_SHOWN else word[: _WORD_SHOWN - 3] + '...'}'"
