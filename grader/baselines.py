"""Baselines: models that need no student, fitted to the training text of the same split and kept in the cache.

They stand on the leaderboard for comparison, and what n-grams lose on each lane is the yardstick of TRAINED_ON_TEST.
Losses are nats per character throughout. Models that give probabilities read the lanes that students' models read, and
none of them learns from held-out text; a compressor does (`ppmd_nats`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyppmd

from grader.corpus import cache_folder, text_sha256, write_whole
from grader.lockstep import ALPHABET, WARM_UP_CHARS, Array, indices, lanes_of
from grader.types import Split

VERSION = 1  # of the numbers: a new one for whatever changes them, so that cached ones are not used
KNESER_NEY_ORDER = 7
BEST_NGRAM = f"Kneser-Ney {KNESER_NEY_ORDER}-gram"
NGRAMS = ("unigram", "trigram", BEST_NGRAM)
NAMES = ("uniform", *NGRAMS, "PPMd")
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # those of KenLM's --discount_fallback
PPMD_ORDER = 7  # of 5 to 10 the shortest code of the last 100,000 characters of a training text, given those before
PPMD_BYTES = 2**28  # taken as needed, 32 MB for 5 million characters; a model that runs out forgets all it has read

log = logging.getLogger(__name__)
Blocks = tuple[Array, Array]  # mean loss of each held-out block, and of each test block, nats/char [B]


def baselines(split: Split, lanes: int) -> dict[str, Blocks]:
    """By name, the block losses [B] of simple models on the held-out and on the test text, in nats/char.

    Blocks are lanes of one length: the mean over a text's blocks is the loss on that text. Computed once for a split
    and kept in the cache, a private folder as the corpus is: the same split has the same numbers.

    Raises:
        AssignmentError: a text is too short for so many lanes.
    """
    identity = "\n".join(("baselines", split.sha256, str(lanes), str(VERSION)))
    path = cache_folder() / f"baselines-{hashlib.sha256(identity.encode()).hexdigest()}.json"
    found = _read_cache(path)
    if found is None:
        found = _compute(split, lanes)
        _write_cache(path, found)
    return found


def _compute(split: Split, lanes: int) -> dict[str, Blocks]:
    train = indices(split.train)
    held_out, test = (lanes_of(indices(text), lanes) for text in (split.held_out, split.test))
    levels = fit_kneser_ney(train)
    models: dict[str, Callable[[Array], Array]] = {
        "uniform": lambda text: np.full((lanes, 1), math.log(len(ALPHABET))),
        "unigram": lambda text: ngram_nats(train, text, 1),
        "trigram": lambda text: ngram_nats(train, text, 3),
        BEST_NGRAM: lambda text: kneser_ney_nats(levels, text),
        "PPMd": lambda text: ppmd_nats(train, text)[:, None],
    }
    return {name: (nats(held_out).mean(axis=1), nats(test).mean(axis=1)) for name, nats in models.items()}


# ---------------------------------------------------------------- n-grams


def _codes(text: Array, order: int) -> Array:
    """The n-grams of texts [..., N] as numbers to the base 27 [..., N − n + 1]; 13 characters fit into 63 bits."""
    length = text.shape[-1] - order + 1
    codes = np.zeros((*text.shape[:-1], length), np.int64)
    for i in range(order):
        codes = codes * len(ALPHABET) + text[..., i : i + length]
    return codes


def _scored(lanes: Array, order: int) -> Array:
    """The n-grams of lanes [B, W + L] that end with a scored character, as numbers [B, L]; n is at most W + 1."""
    return _codes(lanes[:, WARM_UP_CHARS - order + 1 :], order)


def ngram_nats(train: Array, lanes: Array, order: int, strength: float = 5.0) -> Array:
    """Losses [B, L] in nats of an n-gram model on lanes [B, W + L], fitted to a text [N].

    Each order backs off to the one below with a Dirichlet prior of the given strength (MacKay and Peto, 1995):
    p_k(x | c) = (count(c, x) + s p_{k−1}(x | c')) / (count(c) + s), and p_0 is uniform. Its tables have 27^n entries.
    """
    size = len(ALPHABET)
    probability = np.full(size, 1 / size)
    for k in range(1, order + 1):
        counts = np.bincount(_codes(train, k), minlength=size**k).reshape(-1, size)
        lower = np.tile(probability.reshape(-1, size), (len(counts) // max(1, probability.size // size), 1))
        probability = (counts + strength * lower) / (counts.sum(axis=1, keepdims=True) + strength)
    return np.asarray(-np.log(probability.reshape(-1)[_scored(lanes, order)]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One order of a Kneser-Ney model: p(x | c) = share(c, x) + left(c) p_lower(x | c'), if c was seen."""

    grams: Array  # (c, x) that were seen, as numbers, ascending [G]
    shares: Array  # (count(c, x) − discount) / count(c) [G]
    contexts: Array  # c that were seen, ascending [C]
    left: Array  # what the discounts left of the probability, for the order below [C]


def fit_kneser_ney(train: Array, order: int = KNESER_NEY_ORDER) -> list[Level]:
    """Interpolated modified Kneser-Ney of a text [N]; the unigrams come first.

    Chen and Goodman, "An empirical study of smoothing techniques for language modeling", 1998, section 3. The highest
    order counts how often an n-gram occurs; each one below, before how many characters it does. The text has no mark
    at its beginning: a gram that occurs there only counts in the highest order alone. The unigrams are interpolated
    with the uniform distribution.
    """
    grams, counts = np.unique(_codes(train, order), return_counts=True)
    levels = [_level(grams, counts)]
    for k in range(order - 1, 0, -1):
        grams, counts = np.unique(grams % len(ALPHABET) ** k, return_counts=True)
        levels.insert(0, _level(grams, counts))
    return levels


def _level(grams: Array, counts: Array) -> Level:
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    contexts, firsts, inverse = np.unique(grams // len(ALPHABET), return_index=True, return_inverse=True)
    totals = np.add.reduceat(counts, firsts)
    left = np.add.reduceat(discounts, firsts) / totals
    return Level(grams=grams, shares=(counts - discounts) / totals[inverse], contexts=contexts, left=left)


def _discounts(counts: Array) -> Array:
    """What is taken from a count of 0, 1, 2, and 3 or more [4], estimated from how many grams have each count.

    D_i = i − (i + 1) Y n_{i+1} / n_i with Y = n_1 / (n_1 + 2 n_2) (Chen and Goodman, 1998, equation 26). Where n_1 or
    n_i is 0, or nothing would be left for what was not seen, a fixed discount stands in.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=5)
    discounts = np.array([0.0, *FALLBACK_DISCOUNTS])
    for i in (1, 2, 3):
        if n[1] and n[i]:
            found = i - (i + 1) * n[1] / (n[1] + 2 * n[2]) * n[i + 1] / n[i]
            discounts[i] = found if found > 0 else discounts[i]
    return discounts


def kneser_ney_nats(levels: list[Level], lanes: Array) -> Array:
    """Losses [B, L] in nats of a fitted Kneser-Ney model on lanes [B, W + L].

    A context that was not seen takes the distribution of the order below: over the alphabet, it always sums to one.
    """
    probability: Array = np.full((lanes.shape[0], lanes.shape[1] - WARM_UP_CHARS), 1 / len(ALPHABET))
    for k, level in enumerate(levels, start=1):
        grams = _scored(lanes, k)
        left = _look_up(level.contexts, level.left, grams // len(ALPHABET), missing=1.0)
        probability = _look_up(level.grams, level.shares, grams, missing=0.0) + left * probability
    return np.asarray(-np.log(probability))


def _look_up(keys: Array, values: Array, wanted: Array, missing: float) -> Array:
    """The values of wanted keys, of any shape; `keys` ascend."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], missing)


# ---------------------------------------------------------------- a compressor


def ppmd_nats(train: Array, lanes: Array) -> Array:
    """Mean loss of each block in nats/char [B]: what it adds to the compressed size of the training text.

    PPMd, variant H (Shkarin, "PPM: one step to practicality", 2002), reads the training text, a space, and the lanes
    [B, W + L] as one stream. Their code length is (size with them − size without them) · 8 ln 2 nats. It differs from
    a student's loss: the compressor goes on learning while it reads, also from the blocks before; it keeps its context
    across the borders of lanes, and pays for the W characters of warm-up, which are counted here.

    The coder hands out whole bytes, about as soon as they are certain. So a block's loss is known to about 8 ln 2 /
    (W + L) nats/char; what one block gains by it the next one loses, and the mean of all is as exact as the sizes.
    """
    letters = np.frombuffer(ALPHABET.encode(), np.uint8)
    encoder = pyppmd.Ppmd7Encoder(PPMD_ORDER, PPMD_BYTES)
    encoder.encode(letters[train].tobytes() + b" ")
    sizes = [len(encoder.encode(letters[lane].tobytes())) for lane in lanes]
    encoder.flush()
    return np.array(sizes) * (8 * math.log(2) / lanes.shape[1])


# ---------------------------------------------------------------- the cache


def _read_cache(path: Path) -> dict[str, Blocks] | None:
    """What was kept, if the file has the sha256 that it names; None if there is none, or it is damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if text_sha256(json.dumps(kept["nats"])) == kept["sha256"]:
            return {name: (np.array(held_out), np.array(test)) for name, (held_out, test) in kept["nats"].items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError):
        pass
    log.warning("The cached baselines %s are damaged; they are computed again.", path)
    return None


def _write_cache(path: Path, found: dict[str, Blocks]) -> None:
    """A disk that refuses costs time, not the run: the numbers are there."""
    nats = {name: [blocks.tolist() for blocks in texts] for name, texts in found.items()}
    try:
        write_whole(path, json.dumps({"sha256": text_sha256(json.dumps(nats)), "nats": nats}).encode(), mode=0o600)
    except OSError as error:
        log.warning("The baselines cannot be cached in %s: %s.", path.parent, error.strerror)
