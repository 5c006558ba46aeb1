"""How fast `scan` reads: tokens/s of its first screen, and of a plain loop over padded texts.

MiniLM with 6 layers. Both put every fifth whole word into one text of 6 tokens. The plain loop is
what one would write with transformers: batches of 64 texts, padded to the 16 tokens that the
tokenizer's `pad_to_multiple_of` gives, in fp32, states of all tokens from every layer.
"""

import time
from typing import Any

import torch

from benchmarks.contenders import Contender, Figure, Measure, data_folder, interleave, ratios
from benchmarks.peak import peak
from recipe_ray.data.batches import LocalFeed, Workbench
from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.sources import Locations
from recipe_ray.detectors.detector import Subject
from recipe_ray.detectors.reading import Reading, TextSource
from recipe_ray.detectors.vocabulary import VocabularyDetector
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.text.minilm import MiniLM

EVERY = 5  # of how many words one is tried
PADDED, BATCH = 16, 64
# multiply-adds of a token in a layer: four square projections, and two to and from 4 x the width
PER_LAYER = 12


def first_screen() -> tuple[Any, Reading, Any]:
    """Return MiniLM, the first screen's text, and the words [N, 1] put into it."""
    ptm = MiniLM().load()
    places = Locations(data_folder(), data_folder())
    bench = Workbench(LocalFeed(places), LocalRuntime(), 0)
    source = TextSource(Subject(ptm, CORPORA.parse({"name": "webtext"}), has_head=False), bench)
    spec = VocabularyDetector()
    words = ptm.whole_words()[::EVERY, None]
    return ptm, source.reading(spec.screens[0], spec.precision), words


def ours() -> Measure:
    """Return a measurement of the scan's reading: tokens/s, filler and repeats not counted."""
    _, reading, words = first_screen()
    tokens = words.size * (reading.templates.tokens.size + 1)

    def measure() -> float:
        begin = time.perf_counter()
        reading.measure(words)
        return tokens / (time.perf_counter() - begin)

    return measure


def plain() -> Measure:
    """Return a measurement of the plain loop: the same tokens/s."""
    ptm, reading, words = first_screen()
    whole, _ = reading.templates.with_candidates(words)
    texts = torch.from_numpy(whole.reshape(len(words), -1))
    padded = torch.zeros(len(texts), PADDED, dtype=torch.long)
    padded[:, : texts.shape[1]] = texts
    mask = (torch.arange(PADDED) < texts.shape[1]).long().expand(BATCH, -1)
    module = ptm.module.eval()
    some = len(padded) // 8 // BATCH * BATCH  # it is slow

    @torch.no_grad()
    def measure() -> float:
        begin = time.perf_counter()
        for start in range(0, some, BATCH):
            module.base_model(
                input_ids=padded[start : start + BATCH],
                attention_mask=mask,
                output_hidden_states=True,
            )
        return some * texts.shape[1] / (time.perf_counter() - begin)

    return measure


def figures(rounds: int = 4) -> list[Figure]:
    """Measure both, and the matrix peak, in turns."""
    rates = interleave(
        {
            "scan": lambda: Contender(ours, workers=1, threads=2),
            "plain": lambda: Contender(plain, workers=1, threads=2),
            "peak": lambda: Contender(peak, workers=1, threads=2),
        },
        rounds,
    )
    config = MiniLM().load().module.config
    # the last layer is computed for 2 of a text's 9 tokens, but for its keys and values
    layers = config.num_hidden_layers - 1 + (2 + 10 * 2 / 9) / PER_LAYER
    flops = 2 * PER_LAYER * config.hidden_size**2 * layers
    shares = [flops * rate / best for rate, best in zip(rates["scan"], rates["peak"], strict=True)]
    return [
        Figure("scan_tokens_per_s", rates["scan"], "tokens/s"),
        Figure("scan_plain_tokens_per_s", rates["plain"], "tokens/s"),
        Figure("scan_speedup", ratios(rates["scan"], rates["plain"]), "x"),
        Figure("scan_peak_share", shares, "of the bf16 peak"),
    ]
