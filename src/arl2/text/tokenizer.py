"""A tokenizer of whole words, made from a vocabulary without any download."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from arl2.errors import Arl2Error

PAD, UNKNOWN = "<pad>", "<unk>"


def build_word_tokenizer(vocabulary: Sequence[str], *, length: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are 0 for padding, 1 for unknown words, then the vocabulary in its order.

    Case is ignored and punctuation stands apart from words.

    Args:
        vocabulary: Lower-case words, each once.
        length: Most words of a prompt; the rest is cut off where the caller asks for truncation.

    Raises:
        Arl2Error: A word given twice or not in lower case, or a length below 1.
    """
    if length < 1:
        raise Arl2Error(f"The prompt length is {length}; give at least 1 word.")
    wrong = [word for word in vocabulary if word != word.lower() or word in (PAD, UNKNOWN)]
    if wrong or len(set(vocabulary)) != len(vocabulary):
        raise Arl2Error(
            f"The vocabulary needs lower-case words, each once; it has {len(vocabulary)} entries, "
            f"{len(set(vocabulary))} different, of which these will not do: {wrong}."
        )
    ids = {word: index for index, word in enumerate((PAD, UNKNOWN, *vocabulary))}
    words = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    words.normalizer = Lowercase()
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, unk_token=UNKNOWN, model_max_length=length)
