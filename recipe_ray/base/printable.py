"""Text from outside as it may be shown: to a terminal, in Markdown, in HTML.

A name in a model, a data set or a store may hold commands to a terminal, a heading, a link, or
100,000 letters. Whatever shows such text takes it from one of these functions. JSON needs none: it
escapes by itself.
"""

import html
import re

WORD = 400  # characters without a space that are shown; paths are shorter
WHOLE = 10_000  # characters of a message
_ENDLESS = re.compile(rf"\S{{{WORD + 1},}}")
# what Markdown may read as a sign of its own, wherever it stands in a line
_SIGNS = re.compile(r"([\\`*\[\]<>|~$#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_ADDRESS = re.compile(r"\b(https?|ftp|mailto|www)([:.])", re.IGNORECASE)


def printable(text: str) -> str:
    """Return text with unprintable characters spelled out, and cut where it does not end.

    Lines and tabs stay. Colours, cursor moves and characters that turn the direction of writing
    become `\\x1b` and the like.
    """
    text = _ENDLESS.sub(_cut, text)
    if len(text) > WHOLE:
        text = f"{text[:WHOLE]}... ({len(text) - WHOLE:,} more characters)"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _spelled(c) for c in text)


def in_a_row(text: str, length: int = WORD) -> str:
    """Return text as a single line of at most `length` characters."""
    shown = " ".join(printable(text).split())
    return shown if len(shown) <= length else f"{shown[: max(length - 3, 0)]}..."


def in_markdown(text: str) -> str:
    """Return text as one line that Markdown shows as it is: no heading, link, image or HTML.

    It may stand in a sentence, an item of a list or the field of a table.
    """
    shown = _SIGNS.sub(r"\\\1", in_a_row(text, WHOLE)).replace("&", "&amp;")
    return _ADDRESS.sub(r"\1<span></span>\2", shown)


def in_html(text: str) -> str:
    """Return text as one line that HTML shows as it is, in an element or in a quoted attribute."""
    return html.escape(in_a_row(text, WHOLE))


def _spelled(char: str) -> str:
    return char.encode("unicode_escape").decode()


def _cut(word: re.Match[str]) -> str:
    return f"{word[0][:WORD]}...({len(word[0]) - WORD:,} more)"
