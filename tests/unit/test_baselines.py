"""Baselines have the losses that follow from their definitions, and are computed once."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyppmd
import pytest
from chains import V, markov_text

from grader import baselines as module
from grader.baselines import PPMD_BYTES, PPMD_ORDER, baselines, fit_kneser_ney, kneser_ney_nats, ngram_nats, ppmd_nats
from grader.corpus import normalise
from grader.errors import AssignmentError
from grader.lockstep import ALPHABET, WARM_UP_CHARS, indices, lanes_of
from grader.types import Split

NAMES = ["uniform", "unigram", "trigram", "Kneser-Ney 7-gram", "PPMd"]
NONE_SEEN = "jqxzvwjqxzvwjqxzvwjqxzvw"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own."""
    monkeypatch.setenv("GRADER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@cache
def english() -> str:
    """Python's own help texts, which come with it."""
    return normalise(" ".join(topics[name] for name in sorted(topics)))


def a_split(train: str, held_out: str, test: str, sha256: str = "a" * 64) -> Split:
    return Split(train=train, held_out=held_out, test=test, sha256=sha256)


def small_split(sha256: str = "a" * 64) -> Split:
    text = english()
    return a_split(text[:20_000], text[20_000:22_000], text[22_000:24_000], sha256)


def every_next(context: str) -> np.ndarray:
    """27 lanes that have the same warm-up and each another scored character [V, W + 1]."""
    shown = indices(context.rjust(WARM_UP_CHARS)[-WARM_UP_CHARS:])
    return np.array([[*shown, symbol] for symbol in range(V)])


class SlowKneserNey:
    """The definition (Chen and Goodman, 1998), with dictionaries and one probability at a time."""

    def __init__(self, text: str, order: int) -> None:
        whole = Counter(text[i : i + order] for i in range(len(text) - order + 1))
        self.counts = {order: dict(whole)}
        for k in range(order - 1, 0, -1):
            before = defaultdict(set)
            for gram in self.counts[k + 1]:
                before[gram[1:]].add(gram[0])
            self.counts[k] = {gram: len(characters) for gram, characters in before.items()}
        self.discounts = {k: self.estimate(list(counts.values())) for k, counts in self.counts.items()}

    @staticmethod
    def estimate(values: list[int]) -> list[float]:
        n = [values.count(i) for i in range(5)]
        found = [0.5, 1.0, 1.5]
        if n[1]:
            y = n[1] / (n[1] + 2 * n[2])
            estimates = [(i, i - (i + 1) * y * n[i + 1] / n[i]) for i in (1, 2, 3) if n[i]]
            for i, discount in estimates:
                found[i - 1] = discount if discount > 0 else found[i - 1]
        return found

    def probability(self, context: str, symbol: str) -> float:
        counts, order = self.counts[len(context) + 1], len(context) + 1
        lower = self.probability(context[1:], symbol) if context else 1 / V
        following = [count for gram, count in counts.items() if gram[:-1] == context]
        if not following:
            return lower
        left = sum(self.discounts[order][min(count, 3) - 1] for count in following)
        count = counts.get(context + symbol, 0)
        kept = count - self.discounts[order][min(count, 3) - 1] if count else 0.0
        return (kept + left * lower) / sum(following)


@pytest.mark.parametrize("order", [1, 2, 3, 7])
def test_kneser_ney_is_that_of_its_definition(order: int) -> None:
    """Every loss on held-out text equals that of an implementation by dictionaries, to 1e-12."""
    text = english()
    train, held_out = text[:3000], text[3000:3100] + NONE_SEEN
    lanes = indices(held_out)[None]
    slow = SlowKneserNey(train, order)
    expected = [
        -np.log(slow.probability(held_out[t - order + 1 : t], held_out[t])) for t in range(WARM_UP_CHARS, len(held_out))
    ]
    found = kneser_ney_nats(fit_kneser_ney(indices(train), order), lanes)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-12)


def test_kneser_ney_unigrams_by_hand() -> None:
    """Of `aaaabbbccdef`: 3 symbols occur once, 1 twice, 1 three times, 1 four times; all on paper.

    Y = 3 / (3 + 2) = 0.6, D1 = 1 − 2 · 0.6 · 1/3 = 0.6, D2 = 2 − 3 · 0.6 · 1/1 = 0.2, D3+ = 3 − 4 · 0.6 · 1/1 = 0.6.
    They take 0.6 + 0.6 + 0.2 + 3 · 0.6 = 3.2 from the 12 counts, for all 27 symbols alike.
    """
    p = np.exp(-kneser_ney_nats(fit_kneser_ney(indices("aaaabbbccdef"), 1), every_next("a"))[:, 0])
    kept = dict(zip("abcdef", [3.4, 2.4, 1.8, 0.4, 0.4, 0.4], strict=True))
    np.testing.assert_allclose(p, [(kept.get(symbol, 0) + 3.2 / 27) / 12 for symbol in ALPHABET], rtol=1e-12)


def test_kneser_ney_bigrams_by_hand() -> None:
    """Of `abracadabra`: 4 bigrams (ac, ca, ad, da) occur once, 3 (ab, br, ra) twice, none more often.

    Y = 4 / (4 + 6) = 0.4, D1 = 1 − 2 · 0.4 · 3/4 = 0.4, D2 = 2 − 3 · 0.4 · 0 = 2. The unigrams count what they follow:
    a follows 3 characters, b, c, d and r one each; Y = 1, D1 = 1, D3+ = 3: nothing is kept, they are uniform. After a
    (ab twice, ac, ad): 2 + 0.4 + 0.4 of 4 counts go to the unigrams. After r (ra twice) and after e, all of them.
    """
    levels = fit_kneser_ney(indices("abracadabra"), 2)
    p = {c: np.exp(-kneser_ney_nats(levels, every_next(c))[:, 0]) for c in "are"}
    np.testing.assert_allclose(p["a"], [(0.6 * (s in "cd") + 2.8 / 27) / 4 for s in ALPHABET], rtol=1e-12)
    np.testing.assert_allclose(p["r"], 1 / 27, rtol=1e-12)
    np.testing.assert_allclose(p["e"], 1 / 27, rtol=1e-12)


@pytest.mark.parametrize(
    "train",
    [
        english()[:30_000],
        "to be or not to be that is the question " * 20,
        "a" * 1000,
        "abcdefg",
        "".join(np.random.default_rng(0).choice(list(ALPHABET), 5000)),
    ],
    ids=["english", "repeated", "one symbol", "one gram", "random"],
)
@pytest.mark.parametrize("context", ["the value of the ob", "to be or not to ", NONE_SEEN, "aaaaaaa", "the zq"])
def test_probabilities_sum_to_one(train: str, context: str) -> None:
    """Over the 27 symbols that may follow, after any context, seen or not, and none of them is impossible."""
    lanes = every_next(context)
    for nats in (kneser_ney_nats(fit_kneser_ney(indices(train)), lanes), ngram_nats(indices(train), lanes, 3)):
        assert np.isfinite(nats).all()
        assert abs(np.exp(-nats[:, 0]).sum() - 1) < 1e-9


def test_ngrams_learn_a_markov_chain() -> None:
    """On a first-order chain bigrams come near to its entropy, longer ones no lower; unigrams stay far above."""
    text, table = markov_text(60_000, np.random.default_rng(2))
    train, lanes = text[:50_000], lanes_of(text[50_000:], 50)
    exact = -np.log(table[lanes[:, WARM_UP_CHARS - 1 : -1], lanes[:, WARM_UP_CHARS:]]).mean()
    trigram_and_less = [ngram_nats(train, lanes, order).mean() for order in (1, 2, 3)]
    kneser_ney = [kneser_ney_nats(fit_kneser_ney(train, order), lanes).mean() for order in (1, 2, 3, 7)]
    for losses in (trigram_and_less, kneser_ney):
        assert exact < losses[1] < exact + 0.03
        assert losses[0] > exact + 0.2
        assert min(losses) > exact
    assert kneser_ney[1] < exact + 0.01
    assert kneser_ney[-1] < exact + 0.25  # below the top, it counts at most 27 characters before a gram
    assert exact < ppmd_nats(train, lanes).mean() < exact + 0.2


def test_random_text_costs_ln_27() -> None:
    """Nobody predicts what is drawn uniformly: no model is below ln 27 by more than chance, or far above it."""
    text = "".join(np.random.default_rng(3).choice(list(ALPHABET), 120_000))
    found = baselines(a_split(text[:100_000], text[100_000:110_000], text[110_000:]), 20)
    for name in NAMES:
        for blocks in found[name]:
            assert np.log(V) - 0.005 < blocks.mean() < np.log(V) + 0.15, name
    np.testing.assert_allclose(found["uniform"], np.log(V), rtol=1e-12)
    assert found["unigram"][0].mean() < np.log(V) + 0.005


def test_more_context_helps_on_english() -> None:
    """On held-out English each model beats the simpler one, by far more than the noise."""
    text = english()
    found = baselines(a_split(text[:250_000], text[250_000:270_000], text[270_000:290_000]), 40)
    losses = [found[name][0].mean() for name in NAMES]
    assert list(found) == NAMES
    assert losses[0] > losses[1] + 0.3 > losses[2] + 0.6 > losses[3] + 0.8
    assert losses[4] < losses[2] - 0.2


def test_ppmd_is_the_difference_of_two_compressed_sizes() -> None:
    """All blocks together cost what they add to the compressed training text, to two bytes of carry."""
    text = english()
    train, lanes = indices(text[:50_000]), lanes_of(indices(text[50_000:60_000]), 25)
    head, tail = text[:50_000] + " ", text[50_000:60_000]
    sizes = [
        len(pyppmd.compress(t, max_order=PPMD_ORDER, mem_size=PPMD_BYTES, variant="H")) for t in (head, head + tail)
    ]
    blocks = ppmd_nats(train, lanes)
    assert blocks.shape == (25,)
    assert blocks.sum() * lanes.shape[1] / (8 * np.log(2)) == pytest.approx(sizes[1] - sizes[0], abs=2)


def test_ppmd_charges_each_block_its_own_size() -> None:
    """Up to any block the losses add up to the difference of sizes there: none is moved to another block."""
    text = english()
    train, lanes = indices(text[:50_000]), lanes_of(indices(text[50_000:60_000]), 25)
    bytes_of = ppmd_nats(train, lanes) * lanes.shape[1] / (8 * np.log(2))
    sizes = [
        len(pyppmd.compress(text[:50_000] + " " + text[50_000:end], max_order=PPMD_ORDER, variant="H"))
        for end in range(50_000, 60_001, 400)
    ]
    np.testing.assert_allclose(np.cumsum(bytes_of), np.array(sizes[1:]) - sizes[0], rtol=0, atol=2)


def test_computed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time the numbers come from the file, the same to the last bit; nobody else may read it."""
    first = baselines(small_split(), 10)
    (file,) = folder.iterdir()
    written = file.stat().st_mtime_ns
    monkeypatch.setattr(module, "_compute", None)  # would raise if it were called
    second = baselines(small_split(), 10)
    assert list(first) == list(second) == NAMES
    for name in NAMES:
        assert [blocks.shape for blocks in second[name]] == [(10,), (10,)]
        np.testing.assert_array_equal(first[name], second[name])
    assert [*folder.iterdir()] == [file]
    assert file.stat().st_mtime_ns == written
    assert file.stat().st_mode & 0o077 == 0


def test_kept_apart_by_split_lanes_and_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes the numbers changes the name of the file; the split's hash is not in it."""
    baselines(small_split(), 10)
    baselines(small_split("b" * 64), 10)
    baselines(small_split(), 20)
    monkeypatch.setattr(module, "VERSION", -1)
    baselines(small_split(), 10)
    names = [file.name for file in folder.iterdir()]
    assert len(names) == 4
    assert not any("a" * 64 in name or "b" * 64 in name for name in names)


@pytest.mark.parametrize("damage", ["cut", "empty", "digit", "other json", "list", "not text"])
def test_a_damaged_file_is_computed_again(damage: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning, and the file is whole again."""
    first = baselines(small_split(), 10)
    (file,) = folder.iterdir()
    whole = file.read_text()
    digit = whole.rindex("1")
    damaged = {
        "cut": whole[: len(whole) // 2],
        "empty": "",
        "digit": whole[:digit] + "2" + whole[digit + 1 :],
        "other json": json.dumps({"nats": {}}),
        "list": "[1, 2]",
        "not text": "",
    }
    file.write_bytes(b"\xff\xfe" if damage == "not text" else damaged[damage].encode())
    with caplog.at_level(logging.WARNING):
        second = baselines(small_split(), 10)
    assert "damaged" in caplog.text
    assert file.read_text() == whole
    for name in NAMES:
        np.testing.assert_array_equal(first[name], second[name])


def test_a_cache_that_cannot_be_written_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The numbers are there all the same, with a warning."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRADER_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert list(baselines(small_split(), 10)) == NAMES
    assert "cannot be cached" in caplog.text


def test_a_text_too_short_for_its_lanes_is_refused(folder: Path) -> None:
    """The error says what to change, and nothing is kept."""
    with pytest.raises(AssignmentError, match="lower `lanes`"):
        baselines(a_split("abc" * 100, "abc" * 10, "abc" * 100), 20)
    assert not folder.exists()
