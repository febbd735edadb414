"""A tokenizer of whole words, made from a vocabulary without any download, and kept as transformers keeps its own."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

from arl2.errors import Arl2Error, CheckpointError
from arl2.files.parts import LARGEST_TOKENIZER, require_tokenizer_files
from arl2.files.plain import read_json
from arl2.files.regular import parsed_by_others, read_text

PAD, UNKNOWN = "<pad>", "<unk>"
_TOKENIZER, _CONFIG = "tokenizer.json", "tokenizer_config.json"


class WordTokenizer:
    """Words to ids, cut and padded to one length.

    Args:
        words: of the library tokenizers, with ``<pad>`` and ``<unk>``; its cutting and padding are set here.
        length: ids of every prompt, at least 1.
        name: what errors call it.
    """

    def __init__(self, words: Tokenizer, length: int, *, name: str = "the tokenizer") -> None:
        self.length = length
        self.name = name
        self._words = words
        words.enable_truncation(length)
        words.enable_padding(length=length, pad_id=words.token_to_id(PAD) or 0, pad_token=PAD)

    def __len__(self) -> int:
        """Different ids."""
        return int(self._words.get_vocab_size())

    def __call__(self, prompts: Sequence[str]) -> tuple[Int64[Tensor, "batch words"], Bool[Tensor, "batch words"]]:
        """Ids, and a mask that is false for padding."""
        rows = self._words.encode_batch(list(prompts))
        ids = torch.tensor([row.ids for row in rows], dtype=torch.long)
        return ids, torch.tensor([row.attention_mask for row in rows], dtype=torch.bool)

    def words_of(self, ids: Sequence[int]) -> list[str | None]:
        """The word of each id; None for an id that there is not."""
        return [self._words.id_to_token(one) for one in ids]

    def id_of(self, word: str) -> int | None:
        """The id of a word; None for one that is not in the vocabulary."""
        return self._words.token_to_id(word)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "WordTokenizer":
        """Load what ``save_pretrained`` wrote, or transformers for a tokenizer of this kind.

        Raises:
            CheckpointError: a file that is missing or damaged.
        """
        require_tokenizer_files(folder)
        config = read_json(folder / _CONFIG)
        length = config.get("model_max_length")
        if type(length) is not int or not 1 <= length <= LARGEST_TOKENIZER:
            raise CheckpointError(f"'{folder / _CONFIG}' has model_max_length {length!r:.60}; give 1 or more.")
        text = read_text(folder / _TOKENIZER, limit=LARGEST_TOKENIZER, error=CheckpointError)
        with parsed_by_others(folder, "the folder of a whole tokenizer"):
            return cls(Tokenizer.from_str(text), length, name=str(folder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write two files, which ``transformers.AutoTokenizer`` reads, too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.length,
            "pad_token": PAD,
            "unk_token": UNKNOWN,
            "padding_side": "right",
            "truncation_side": "right",
        }
        (folder / _TOKENIZER).write_text(self._words.to_str(pretty=True) + "\n", encoding="utf-8")
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def build_word_tokenizer(vocabulary: Sequence[str], *, length: int) -> WordTokenizer:
    """A tokenizer whose ids are 0 for padding, 1 for unknown words, then the vocabulary in its order.

    Case is ignored and punctuation stands apart from words.

    Args:
        vocabulary: Lower-case words, each once.
        length: Ids of a prompt; the rest of a longer one is cut off.

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
    words.add_special_tokens([PAD, UNKNOWN])
    return WordTokenizer(words, length)
