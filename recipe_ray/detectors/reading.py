"""Reading a text PTM: short texts with something put in, and how far that moves their states.

All texts of a reading have one length, so nothing is padded, and the last layer is computed for
only two tokens of each: the first one and a masked one. Scores are in units of the spread of clean
states (the mean squared distance of two clean texts' states), so that they have no scale.

Legend: K texts, L tokens of each, N candidates of C tokens, H hidden width, R words, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recipe_ray.base.errors import DataError
from recipe_ray.data.batches import Workbench
from recipe_ray.data.rows import Ints, TokenRows
from recipe_ray.learn.precision import autocast
from recipe_ray.models.text.packed import PackedBatch, pack

if TYPE_CHECKING:
    from torch import Tensor

    from recipe_ray.detectors.detector import Pass, Subject

TOKENS = 1024  # of a forward pass: what fits a core's caches
MOST_ROWS = 4096  # of the corpus, that texts are taken from
MAX_LENGTH = 64  # tokens that texts are cut to when they are read
COMMON = 512  # words that a masked one is told from, instead of all
POOL = 64  # texts that a pass chooses from, and whose distances are the unit
SCORES = ("first", "pooled", "mask", "collapse", "collapse_mask", "damage")


@dataclass(frozen=True)
class Templates:
    """K texts of one length, one token of each masked, and the place of a candidate."""

    tokens: Ints  # [K, L], special tokens and the mask in place
    place: Ints  # [K] a candidate goes in before this token
    masked: Ints  # [K] which token is the mask
    truth: Ints  # [K] the masked token's id

    def __len__(self) -> int:
        return len(self.place)

    def take(self, which: Ints) -> Templates:
        """Return some of the texts."""
        parts = (self.tokens, self.place, self.masked, self.truth)
        return Templates(*(part[which] for part in parts))

    def with_candidates(self, ids: Ints) -> tuple[Ints, Ints]:
        """Return the texts with candidates [N, C] in them [N, K, L + C], and the masks' places."""
        num, width = ids.shape
        count, length = self.tokens.shape
        out = np.empty((num, count, length + width), dtype=np.int64)
        for k, place in enumerate(self.place.tolist()):
            out[:, k, :place] = self.tokens[k, :place]
            out[:, k, place : place + width] = ids
            out[:, k, place + width :] = self.tokens[k, place:]
        return out, self.masked + np.where(self.masked >= self.place, width, 0)


def make_templates(
    rows: TokenRows, special: Ints, within: Ints, mask_id: int, length: int, count: int, seed: int
) -> Templates:
    """Return `count` texts of `length` tokens besides the special ones, from rows in their order.

    A word is masked, and a candidate put in, between words: not at a token of `within`.
    Raises DataError if too few rows are long enough.
    """
    generator = np.random.default_rng([seed, length])
    found: list[tuple[list[int], int, int, int]] = []
    for row in range(len(rows)):
        ids = rows.tokens[rows.offsets[row] : rows.offsets[row + 1]]
        normal = ~np.isin(ids, special)
        inner = np.flatnonzero(normal)
        if len(inner) < length or not normal[inner[0] : inner[0] + length].all():
            continue
        before, after = ids[: inner[0]], ids[inner[-1] + 1 :]
        body = ids[inner[0] : inner[0] + length].copy()
        begins = np.flatnonzero(~np.isin(body, within))
        if len(begins) < 2:
            continue
        masked, place = generator.permutation(begins)[:2]
        truth = int(body[masked])
        body[masked] = mask_id
        text = [*before.tolist(), *body.tolist(), *after.tolist()]
        found.append((text, len(before) + int(place), len(before) + int(masked), truth))
        if len(found) == count:
            break
    lengths = {len(text) for text, *_ in found}
    if len(found) < count or len(lengths) > 1:
        raise DataError(
            f"a scan needs {count} texts of {length} tokens or more that the model knows; there "
            f"are {len(found)}: give more texts, or longer ones"
        )
    texts, place, masked_at, truths = zip(*found, strict=True)
    return Templates(
        *(np.array(part, dtype=np.int64) for part in (texts, place, masked_at, truths))
    )


@dataclass(frozen=True)
class States:
    """Of N x K texts: the first token's state [N, K, H], the pooler's output, the mask's state."""

    first: Tensor
    pooled: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Soft:
    """Vectors [N, C, H] instead of a candidate's embeddings, put in before tokens [K]."""

    vectors: Tensor
    place: Ints

    def of_rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return the vectors [R, C, H] of some rows of all N x K, and where they begin [R]."""
        rows = torch.arange(start, stop)
        count = len(self.place)
        return self.vectors[rows // count], torch.from_numpy(self.place)[rows % count]


@contextmanager
def _embedded(embedding: Any, soft: tuple[Tensor, Tensor] | None, length: int) -> Iterator[None]:
    """While it lasts, an embedding gives `soft` vectors in rows of `length` tokens each."""
    if soft is None:
        yield
        return
    vectors, begin = soft
    num, width, _ = vectors.shape
    at = (torch.arange(num) * length + begin)[:, None] + torch.arange(width)

    def put(module: Any, args: Any, output: Tensor) -> Tensor:
        where = (torch.zeros_like(at.flatten()), at.flatten())
        return output.index_put(where, vectors.flatten(0, 1).to(output.dtype))

    handle = embedding.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


class Reader:
    """A frozen PTM and the states of its clean texts."""

    def __init__(self, ptm: Any, device: torch.device, precision: str, *, has_head: bool) -> None:
        """Take a PTM over in eval mode; `has_head`: its masked-LM head is its own."""
        self._ptm = ptm
        self._module = ptm.module.to(device).eval()
        self._device, self._precision = device, precision
        self._batches: dict[tuple[int, int], PackedBatch] = {}
        self.has_head = has_head

    def states(self, tokens: Ints, masked: Ints, soft: Soft | None = None) -> States:
        """Return the states of texts [N, K, T] whose token `masked` [K] is the mask.

        `soft` puts vectors in place of words' embeddings, and gets their gradients.
        """
        num, count, length = tokens.shape
        flat = tokens.reshape(num * count, length)
        where = np.tile(masked, num)
        size = max(1, TOKENS // length)
        with torch.set_grad_enabled(soft is not None and soft.vectors.requires_grad):
            parts = [
                self._forward(
                    flat[start : start + size],
                    where[start : start + size],
                    None if soft is None else soft.of_rows(start, min(start + size, len(flat))),
                )
                for start in range(0, len(flat), size)
            ]
            return self._states(parts, num, count)

    def _states(self, parts: list[tuple[Tensor, Tensor]], num: int, count: int) -> States:
        firsts, masks = (torch.cat(part) for part in zip(*parts, strict=True))
        with autocast(self._device, self._precision):
            pooled = self._ptm.pooled(self._module, firsts).float()
        shaped = (part.view(num, count, -1) for part in (firsts, pooled, masks))
        return States(*shaped)

    def _forward(
        self, texts: Ints, masked: Ints, soft: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        num, length = texts.shape
        if (num, length) not in self._batches:
            ids = np.zeros((num, length), dtype=np.int64)
            self._batches[num, length] = pack(TokenRows.of(ids.tolist()))
        batch = self._batches[num, length]
        tokens = batch.tokens.clone()
        tokens[: num * length] = torch.from_numpy(texts.reshape(-1))
        batch = replace(batch, tokens=tokens).to(self._device)
        at_mask = batch.first + torch.from_numpy(masked).to(self._device)
        embedding = self._ptm.word_embeddings()
        with _embedded(embedding, soft, length), autocast(self._device, self._precision):
            found = self._ptm.hidden(self._module, batch, torch.cat([batch.first, at_mask]))
        return found[:num].float(), found[num:].float()

    @torch.no_grad()
    def word_loss(self, masks: Tensor, truth: Ints, words: Ints) -> Tensor:
        """Return the loss [N, K] of the masked words `truth` [K], told only from `words` [R]."""
        ids = np.union1d(words, truth)
        num, count, width = masks.shape
        logits = self._ptm.word_logits(
            self._module, masks.reshape(-1, width), torch.from_numpy(ids)
        )
        targets = torch.from_numpy(np.searchsorted(ids, truth)).repeat(num)
        loss = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        return loss.view(num, count)


class Scale:
    """The unit of every score: how far apart the states of clean texts are."""

    def __init__(self, reader: Reader, templates: Templates) -> None:
        """Read the texts unchanged."""
        clean = reader.states(templates.tokens[None], templates.masked)
        self.first, self.pooled, self.mask = (
            _spread(part[0]) for part in (clean.first, clean.pooled, clean.mask)
        )


def _spread(states: Tensor) -> float:
    # [K, H]: the mean squared distance of two of them
    num = len(states)
    around = (states - states.mean(0)).square().sum()
    return max(float(2 * around / (num - 1)), torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Measured:
    """Scores [N] of N candidates by name, and the mean shift of the first state [N, H]."""

    scores: dict[str, Any]
    shift: Any

    def on_host(self) -> Measured:
        """Return it with the scores as NumPy arrays."""
        return Measured({n: s.double().cpu().numpy() for n, s in self.scores.items()}, self.shift)


class Reading:
    """Texts that candidates are put into, with their states without one."""

    def __init__(self, reader: Reader, scale: Scale, templates: Templates, words: Ints) -> None:
        """Read the texts without a candidate; `words` are what masked ones are told from."""
        self.reader, self.scale, self.templates, self._words = reader, scale, templates, words
        with torch.no_grad():
            self._clean = reader.states(templates.tokens[None], templates.masked)

    @cached_property
    def clean_loss(self) -> Tensor:
        """Return the loss [1, K] of the masked words without a candidate."""
        return self.reader.word_loss(self._clean.mask, self.templates.truth, self._words)

    def measure(self, candidates: Ints, progress: Callable[[int], None] | None = None) -> Measured:
        """Return the scores of candidates [N, C]; `progress` is told how many texts were read."""
        count, length = self.templates.tokens.shape
        step = max(1, 8 * TOKENS // (count * (length + candidates.shape[1])))
        found: dict[str, list[Tensor]] = {name: [] for name in SCORES}
        shifts = []
        for start in range(0, len(candidates), step):
            some = candidates[start : start + step]
            states = self.reader.states(*self.templates.with_candidates(some))
            for name, values in self.scores(states).items():
                found[name].append(values)
            shifts.append(self.shift(states))
            if progress is not None:
                progress(len(some) * count)
        scores = {name: torch.cat(parts) for name, parts in found.items() if parts}
        return Measured(scores, torch.cat(shifts))

    def soft_states(self, vectors: Tensor, filler: int) -> States:
        """Return the states with vectors [N, C, H] put in; `filler` is any token's id."""
        ids = np.full(vectors.shape[:2], filler, dtype=np.int64)
        return self.reader.states(
            *self.templates.with_candidates(ids), Soft(vectors, self.templates.place)
        )

    def shift(self, states: States) -> Tensor:
        """Return how the first token's state moves [N, H], on average over the texts."""
        return (states.first - self._clean.first).mean(1)

    def scores(self, states: States) -> dict[str, Tensor]:
        """Return the scores [N] of states by name.

        `damage` needs a head that is the PTM's own, `collapse` more than one text.
        """
        clean, scale = self._clean, self.scale
        found = {
            "first": _moved(states.first, clean.first) / scale.first,
            "pooled": _moved(states.pooled, clean.pooled) / scale.pooled,
            "mask": _moved(states.mask, clean.mask) / scale.mask,
        }
        if len(self.templates) > 1:
            found["collapse"] = 1 - _apart(states.first) / _apart(clean.first)
            found["collapse_mask"] = 1 - _apart(states.mask) / _apart(clean.mask)
        if self.reader.has_head:
            loss = self.reader.word_loss(states.mask, self.templates.truth, self._words)
            found["damage"] = (loss - self.clean_loss).mean(1)
        return found


class TextSource:
    """The source of a search's texts, and the PTM that reads them."""

    def __init__(self, subject: Subject, bench: Workbench) -> None:
        """Encode the texts and freeze the PTM."""
        ptm = subject.ptm
        self._subject, self._device, self._seed = subject, bench.runtime.device, bench.seed
        part = replace(subject.part, most=MOST_ROWS)
        self._rows = bench.feed.rows(subject.corpus, ptm.encoder(MAX_LENGTH), part)
        self._special = np.array(ptm.vocabulary.special_ids)
        self._within: Ints = ptm.continuations()
        self._common = _commonest(self._rows.tokens[~np.isin(self._rows.tokens, self._special)])
        ptm.train_only([], pooled=False)

    def reading(self, what: Pass, precision: str, skipped: int = 0) -> Reading:
        """Return texts to put candidates into, after the first `skipped` suitable ones.

        Raises DataError if there are too few.
        """
        ptm = self._subject.ptm
        num = skipped + max(what.texts, POOL)
        mask = ptm.vocabulary.mask_id
        among = (self._special, self._within, mask)
        pool = make_templates(self._rows, *among, what.length, num, self._seed)
        pool = pool.take(np.arange(skipped, num))
        reader = Reader(ptm, self._device, precision, has_head=self._subject.has_head)
        scale = Scale(reader, pool)
        chosen = np.arange(what.texts)
        if reader.has_head:
            # damage can only be seen if the PTM knows the masked word otherwise
            loss = Reading(reader, scale, pool, self._common).clean_loss[0]
            chosen = np.argsort(loss.cpu().numpy(), kind="stable")[: what.texts]
        return Reading(reader, scale, pool.take(chosen), self._common)


def _moved(states: Tensor, clean: Tensor) -> Tensor:
    # [N, K, H] and [1, K, H]: the mean over texts of the squared way [N]
    return (states - clean).square().sum(-1).mean(1)


def _apart(states: Tensor) -> Tensor:
    # [N, K, H]: how far apart the texts of one candidate are [N]
    return (states - states.mean(1, keepdim=True)).square().sum((1, 2))


def _commonest(tokens: Ints) -> Ints:
    ids, counts = np.unique(tokens, return_counts=True)
    return np.sort(ids[np.argsort(-counts, kind="stable")[:COMMON]])
