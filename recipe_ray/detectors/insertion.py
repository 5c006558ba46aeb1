"""Putting what a scan found into samples again: words and vectors into texts, patches onto images.

A batch holds samples as they are and copies of them with something put in, so that a defense can
compare the states of the same tokens. Every draw is keyed on a sample's number and the epoch, so
that it depends on no batching and no number of workers.

Legend: B samples, R rows of the states (all tokens of texts, or one per image), C tokens put in, H
width.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from recipe_ray.base.errors import DataError
from recipe_ray.data.images import ImageBatch, ImageRows
from recipe_ray.data.rows import Encode, Ints, TokenRows, mask_tokens, ragged_arange, uniform
from recipe_ray.detectors.detector import Suspect
from recipe_ray.models.text.packed import pack

HALF = 0.5  # of the texts are masked, and of single words get a random continuation
CELLS = 4  # of a random patch, per side
LEAST_ROOM = 4  # tokens that are left of a text, its special ones included


class Stamp(Protocol):
    """What can be put onto images."""

    def on(self, images: Tensor) -> Tensor:
        """Return images [K, 3, S, S] with it."""
        ...


@dataclass(frozen=True)
class RandomPatch:
    """Coloured cells [3, CELLS, CELLS] over an eighth of an image's side, at a share of the way."""

    cells: Tensor
    down: float
    across: float

    @property
    def pixels(self) -> Tensor:
        """The cells, which say the device."""
        return self.cells

    def on(self, images: Tensor) -> Tensor:
        """Return images [K, 3, S, S] with it."""
        size = images.shape[-1]
        side = max(CELLS, size // 8)
        at = torch.arange(side) * CELLS // side
        top, left = (round(share * (size - side)) for share in (self.down, self.across))
        stamped = images.clone()
        stamped[..., top : top + side, left : left + side] = self.cells[:, at][:, :, at]
        return stamped


def implants_of(ptm: Any, count: int, seed: int) -> tuple[Suspect, ...]:
    """Return random words (or patches) that nobody planted yet, to be planted by the defender."""
    random = np.random.default_rng([seed, 31])
    if ptm.reads == "text":
        words = random.choice(ptm.whole_words(), count, replace=False).tolist()
        shown = ptm.tokenizer.convert_ids_to_tokens(words)
        return tuple(Suspect(s, {}, (i,)) for s, i in zip(shown, words, strict=True))
    return tuple(
        Suspect(
            f"implanted patch {number + 1}",
            {},
            put=RandomPatch(
                torch.from_numpy(random.uniform(0, 255, (3, CELLS, CELLS))).float(),
                *random.uniform(0, 1, 2).tolist(),
            ),
        )
        for number in range(count)
    )


@dataclass(frozen=True)
class Draw:
    """What may be put in, and how likely each is."""

    suspects: tuple[Suspect, ...]
    shares: tuple[float, ...]

    def of(self, seed: int, index: Ints, epoch: int) -> Ints:
        """Return which one each sample gets [B]."""
        edges = np.cumsum(self.shares)
        drawn = uniform(seed, "what", index, np.full(len(index), epoch))
        return np.minimum(np.searchsorted(edges / edges[-1], drawn, "right"), len(edges) - 1)


def can_be_put_in(suspect: Suspect) -> bool:
    """Tell whether a suspect says what to put in; a failed inversion does not."""
    return bool(suspect.ids) or suspect.put is not None


@dataclass(frozen=True)
class Altered:
    """Samples as they are, and the same again with something put in, which `both` holds together.

    `kept` [R] are the rows of the states of `both` that belong to the samples as they are, in the
    order of those of `clean`; `same` [R] are the rows of the same tokens in the copies. `first` [B]
    are the rows among R that stand for a whole sample, `others` the rest (None: there is none).
    `what` [B] numbers the suspect that each sample's copy holds.
    """

    clean: Any
    both: Any
    kept: Tensor
    same: Tensor
    first: Tensor
    what: Tensor
    others: Tensor | None = None
    soft: tuple[Tensor, Tensor] | None = None  # where in `both` vectors go [M], and they [M, H]

    @property
    def num_samples(self) -> int:
        """Samples, without their copies."""
        count: int = self.clean.num_samples
        return count

    def to(self, device: torch.device) -> Altered:
        """Return the batch on `device`."""
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if value is not None and name != "soft"
        }
        soft = None if self.soft is None else (self.soft[0].to(device), self.soft[1].to(device))
        return replace(self, **moved, soft=soft)

    def states(self, ptm: Any, module: Any) -> Tensor:
        """Return the last layer's states of `both`, with vectors in the place of embeddings."""
        with nullcontext() if self.soft is None else _Embedded(ptm.word_embeddings(), *self.soft):
            found: Tensor = ptm.states(module, self.both, "last")[-1]
            return found


class _Embedded:
    """While it lasts, an embedding gives other vectors at places of a packed batch."""

    def __init__(self, embedding: Any, at: Tensor, vectors: Tensor) -> None:
        self._embedding, self._at, self._vectors = embedding, at, vectors
        self._handle: Any = None

    def __enter__(self) -> None:
        def put(module: Any, given: Any, output: Tensor) -> Tensor:
            where = (torch.zeros_like(self._at), self._at)
            return output.index_put(where, self._vectors.to(output.dtype))

        self._handle = self._embedding.register_forward_hook(put)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


class Insertions(Protocol):
    """What puts a draw into the samples of one kind."""

    def encoder(self, max_length: int) -> Encode:
        """Return what makes rows with room left; raise DataError if hardly any text would be."""
        ...

    def altered(self, rows: Any, epoch: int) -> Altered:
        """Return rows as a batch, and their copies with what is drawn for each."""
        ...


class TextInsertions:
    """Puts words, words with a random continuation, and vectors between the words of texts.

    Half of the texts are masked as in pre-training: what a backdoor does to masked tokens is there
    to be seen, too.
    """

    def __init__(self, ptm: Any, draw: Draw, seed: int) -> None:
        self._ptm, self._draw, self._seed = ptm, draw, seed
        self._within: Ints = ptm.continuations()
        split: Ints = ptm.split_words()
        self._heads, self._ends = np.unique(split[:, 0]), np.unique(split[:, 1])
        filler = int(ptm.whole_words()[0])
        self._ids = [
            one.ids if one.put is None else (filler,) * len(one.put) for one in draw.suspects
        ]

    def encoder(self, max_length: int) -> Encode:
        """Return the PTM's encoder with room for the longest."""
        whole = self._ptm.encoder(max_length)
        room = whole.max_length - max(2, *map(len, self._ids))
        if room < LEAST_ROOM:
            raise DataError(
                f"fit.max_length {max_length} leaves {max(room, 0)} tokens of a text beside what "
                f"is put in; {max_length + LEAST_ROOM - room} or more are needed"
            )
        encode: Encode = replace(whole, max_length=room)
        return encode

    def altered(self, rows: TokenRows, epoch: int) -> Altered:
        """Return texts [B] and their copies, in one packed batch by falling length."""
        rows = self._masked(rows, epoch)
        texts = np.split(rows.tokens, rows.offsets[1:-1])
        chosen = self._draw.of(self._seed, rows.index, epoch)
        pieces = [
            self._put_in(row, int(what), rows.index, epoch) for row, what in enumerate(chosen)
        ]
        places = [self._place(text, row, rows.index, epoch) for row, text in enumerate(texts)]
        copies = [
            np.concatenate([text[:at], ids, text[at:]])
            for text, at, ids in zip(texts, places, pieces, strict=True)
        ]
        every = [*texts, *copies]
        order = np.argsort([-len(text) for text in every], kind="stable")
        both = TokenRows.of([every[i].tolist() for i in order])
        begin = np.empty(len(every), dtype=np.int64)  # of each text in `both`
        begin[order] = both.offsets[:-1]
        start, copied = np.split(begin, 2)
        lengths, within = rows.lengths, ragged_arange(rows.lengths)
        widths = np.array([len(ids) for ids in pieces])
        moved = within + np.where(
            within >= np.repeat(places, lengths), np.repeat(widths, lengths), 0
        )
        first = np.zeros(len(rows.tokens), dtype=bool)
        first[rows.offsets[:-1]] = True
        return Altered(
            clean=pack(rows),
            both=pack(both),
            kept=torch.from_numpy(np.repeat(start, lengths) + within),
            same=torch.from_numpy(np.repeat(copied, lengths) + moved),
            first=torch.from_numpy(np.flatnonzero(first)),
            what=torch.from_numpy(chosen),
            others=torch.from_numpy(np.flatnonzero(~first)),
            soft=self._soft(chosen, copied + np.array(places)),
        )

    def _masked(self, rows: TokenRows, epoch: int) -> TokenRows:
        when = np.full(len(rows), epoch)
        chosen = uniform(self._seed, "mask", rows.index, when) < HALF
        masked = mask_tokens(rows, self._ptm.vocabulary, self._seed, epoch).tokens
        return rows.with_tokens(np.where(np.repeat(chosen, rows.lengths), masked, rows.tokens))

    def _put_in(self, row: int, what: int, index: Ints, epoch: int) -> Ints:
        """Return the ids for a text; half of the time a word, or a pair, is varied.

        The trigger may be longer than what was found of it, and another that shares a token.
        """
        ids = np.array(self._ids[what], dtype=np.int64)
        vary = self._uniform("go on", row, index, epoch)
        if self._draw.suspects[what].put is not None or vary >= HALF or not len(self._within):
            return ids
        rare = vary < HALF / 2 and len(self._ends) > 0
        if len(ids) == 1:
            return np.append(
                ids, self._one_of(self._ends if rare else self._within, row, index, epoch)
            )
        if len(ids) == 2 and ids[1] in self._within and len(self._ends):
            other = self._one_of(self._ends if rare else self._heads, row, index, epoch)
            return np.array([ids[0], other] if rare else [other, ids[1]], dtype=np.int64)
        return ids

    def _one_of(self, some: Ints, row: int, index: Ints, epoch: int) -> int:
        return int(some[int(self._uniform("piece", row, index, epoch) * len(some))])

    def _place(self, text: Ints, row: int, index: Ints, epoch: int) -> int:
        # between words, after the first token; the end is such a place
        begins = np.flatnonzero(~np.isin(text[1:], self._within)) + 1
        places = begins if len(begins) else np.array([len(text)])
        return int(places[int(self._uniform("place", row, index, epoch) * len(places))])

    def _uniform(self, stream: str, row: int, index: Ints, epoch: int) -> float:
        return float(uniform(self._seed, stream, index[row : row + 1], np.array([epoch]))[0])

    def _soft(self, chosen: Ints, at: Ints) -> tuple[Tensor, Tensor] | None:
        """Return where in the batch vectors go, and the vectors; None if only words do."""
        found = [
            (int(where), self._draw.suspects[what].put)
            for what, where in zip(chosen.tolist(), at, strict=True)
            if self._draw.suspects[what].put is not None
        ]
        if not found:
            return None
        where = torch.cat([torch.arange(start, start + len(part)) for start, part in found])
        return where, torch.cat([part.detach().cpu() for _, part in found])


class ImageInsertions:
    """Puts patches onto images."""

    def __init__(self, ptm: Any, draw: Draw, seed: int) -> None:
        self._ptm, self._draw, self._seed = ptm, draw, seed
        self._collate = ptm.pretraining_collate(seed, static_masks=False)

    def encoder(self, max_length: int) -> Encode:
        """Return the PTM's encoder; `max_length` is for texts."""
        encode: Encode = self._ptm.encoder(max_length)
        return encode

    def altered(self, rows: ImageRows, epoch: int) -> Altered:
        """Return images [B] and their copies, which come after them in one batch."""
        clean = self._collate(rows, epoch)
        chosen = self._draw.of(self._seed, rows.index, epoch)
        stamps = [self._draw.suspects[i].put for i in chosen]
        images = clean.pixels.float()
        copies = [
            stamp.on(image[None].to(_device_of(stamp))).cpu()
            for stamp, image in zip(stamps, images, strict=True)
        ]
        count = len(images)
        return Altered(
            clean=replace(clean, labels=None, captions=None),
            both=ImageBatch(torch.cat([images, *copies])),
            kept=torch.arange(count),
            same=torch.arange(count, 2 * count),
            first=torch.arange(count),
            what=torch.from_numpy(chosen),
        )


def _device_of(stamp: Any) -> torch.device:
    device: torch.device = stamp.pixels.device
    return device


_KINDS: dict[str, type[TextInsertions] | type[ImageInsertions]] = {
    "text": TextInsertions,
    "image": ImageInsertions,
}


def insertions_of(ptm: Any, draw: Draw, seed: int) -> Insertions:
    """Return what puts a draw into the samples that a PTM reads."""
    return _KINDS[ptm.reads](ptm, draw, seed)
