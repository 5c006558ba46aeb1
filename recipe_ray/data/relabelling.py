"""False labels for masked tokens: random words, or antonyms of the true ones.

A rule maps true ids [M] and draws in [0, 1) [M] to labels [M]; it draws nothing itself, so that
labels are keyed on texts as masks are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recipe_ray.data.masking import Vocabulary
from recipe_ray.data.rows import Ints

Relabel = Callable[[Ints, NDArray[np.float64]], Ints]


@dataclass(frozen=True)
class RandomWords:
    """Any token of the vocabulary that is not special, each as likely."""

    words: Ints

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> "RandomWords":
        """Build the rule for a vocabulary."""
        return cls(np.setdiff1d(np.arange(vocabulary.size), vocabulary.special_ids))

    def __call__(self, true: Ints, draw: NDArray[np.float64]) -> Ints:
        return self.words[(draw * len(self.words)).astype(np.int64)]


@dataclass(frozen=True)
class Opposites:
    """One of the antonyms of the true token, or a random word where it has none.

    Only words that are a single token count. With WordNet 1,148 of MiniLM's 30,522 tokens have an
    antonym: 8 % of the masked tokens of WikiText, 11 % of BookCorpus.
    """

    offsets: Ints  # [V + 1] into `opposites`
    opposites: Ints
    otherwise: RandomWords

    @classmethod
    def of(
        cls,
        lexicon: Mapping[str, Sequence[str]],
        token_ids: Callable[[str], list[int]],
        vocabulary: Vocabulary,
    ) -> "Opposites":
        """Build the rule from words and their antonyms; `token_ids` maps a word to its tokens."""
        special = set(vocabulary.special_ids)
        single = {}
        for word in {*lexicon, *(other for others in lexicon.values() for other in others)}:
            ids = token_ids(word)
            if len(ids) == 1 and ids[0] not in special:
                single[word] = ids[0]
        # two spellings may be one token ("Hot", "hot"), so ids are gathered, not words
        table: list[set[int]] = [set() for _ in range(vocabulary.size)]
        for word, others in lexicon.items():
            if word in single:
                table[single[word]] |= {single[other] for other in others if other in single}
        counts = [len(ids) for ids in table]
        flat = [token for ids in table for token in sorted(ids)]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(offsets, np.array(flat, dtype=np.int64), RandomWords.of(vocabulary))

    def __call__(self, true: Ints, draw: NDArray[np.float64]) -> Ints:
        first, counts = self.offsets[true], self.offsets[true + 1] - self.offsets[true]
        labels = self.otherwise(true, draw)
        known = counts > 0
        labels[known] = self.opposites[(first + (draw * counts).astype(np.int64))[known]]
        return labels
