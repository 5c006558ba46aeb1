"""Tokenising as a picklable function, so that Ray Data workers can run it without the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from recipe_ray.data.rows import Ints
from recipe_ray.data.tokens import TokenRows


@dataclass(frozen=True)
class TextEncoder:
    """Texts and their numbers [N] -> N rows of at most `max_length` tokens in all."""

    tokenizer: Any
    max_length: int

    def __call__(self, texts: Sequence[str], index: Ints) -> TokenRows:
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length, return_attention_mask=False
        )
        return replace(TokenRows.of(encoded["input_ids"]), index=index)
