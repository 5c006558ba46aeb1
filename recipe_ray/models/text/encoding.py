"""Tokenising as a picklable function, so that Ray Data workers can run it without the model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recipe_ray.data.rows import Ints
from recipe_ray.data.tokens import TokenRows
from recipe_ray.data.words import Span


@dataclass(frozen=True)
class TextEncoder:
    """Texts and their numbers [N] -> N rows of at most `max_length` tokens in all."""

    tokenizer: Any
    max_length: int

    def __call__(self, texts: Sequence[str], index: Ints) -> TokenRows:
        return self._encoded(texts, index)[0]

    def cut(self, texts: Sequence[str], index: Ints) -> tuple[TokenRows, dict[int, Span]]:
        """Return the rows, and which characters of the text stayed, by row, of those cut."""
        rows, encodings = self._encoded(texts, index)
        full = np.flatnonzero(rows.lengths >= self.max_length)
        pieces = {row: encodings[row].overflowing for row in full.tolist()}
        return rows, {
            row: self._stayed(texts[row], cut_off) for row, cut_off in pieces.items() if cut_off
        }

    @property
    def cuts_the_end(self) -> bool:
        """Whether it is the end of a long text that is cut off, and not its beginning."""
        return bool(self.tokenizer.truncation_side == "right")

    def _encoded(self, texts: Sequence[str], index: Ints) -> tuple[TokenRows, Sequence[Any]]:
        if not texts:
            return replace(TokenRows.of([]), index=index), []
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length, return_attention_mask=False
        )
        return replace(TokenRows.of(encoded["input_ids"]), index=index), encoded.encodings

    def _stayed(self, text: str, cut_off: Iterable[Any]) -> Span:
        # the piece next to what stayed comes first; special tokens stand for no characters
        for piece in cut_off:
            spans = [span for span in piece.offsets if span[0] < span[1]]
            if spans and self.cuts_the_end:
                return 0, min(first for first, _ in spans)
            if spans:
                return max(last for _, last in spans), len(text)
        return 0, len(text)
