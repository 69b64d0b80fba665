"""The split: nothing is in two parts, the same seed draws the same text, and whole works are set aside."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grader.corpus import Corpus, normalise, text_sha256
from grader.errors import AssignmentError
from grader.split import assign_blocks, cut_blocks, split_corpus
from tests.unit.texts import words


def make_corpus(count: int = 4000, seed: int = 9) -> Corpus:
    text = normalise(words(count, seed))
    return Corpus(name="made", text=text, sha256=text_sha256(text))


SIZES = {"train_chars": None, "test_chars": 3000, "held_out_chars": 2000, "block_chars": 200}


def test_split_is_a_pure_function_of_text_seed_and_sizes() -> None:
    """The same course seed draws the same text again; any other seed, size or text another one."""
    made = make_corpus()
    split = split_corpus(made, seed=1, **SIZES)
    assert split == split_corpus(made, seed=1, **SIZES)
    others = [
        split_corpus(made, seed=2, **SIZES),
        split_corpus(made, seed=1, **{**SIZES, "test_chars": 3001}),
        split_corpus(made, seed=1, **{**SIZES, "block_chars": 201}),
        split_corpus(make_corpus(seed=10), seed=1, **SIZES),
    ]
    assert len({split.sha256, *(other.sha256 for other in others)}) == 5
    assert len({split.held_out, *(other.held_out for other in others)}) == 5


def test_draw_stays_the_same_for_ever() -> None:
    """Grades of last year are regraded on last year's text: the draw depends on no library's shuffle."""
    assert assign_blocks(["x" * 9] * 8, "key", [19, 9, None]) == [(0, 4), (6,), (1, 2, 3, 5, 7)]


def test_parts_share_no_block_and_cover_the_text() -> None:
    """Train, test and held-out are disjoint, and with train_chars null nothing is left out."""
    blocks = cut_blocks(make_corpus().text, 200)
    parts = assign_blocks(blocks, "any key", [2000, 3000, None])
    assert sorted(i for part in parts for i in part) == list(range(len(blocks)))


@given(
    st.integers(0, 2**128),
    st.integers(0, 4000),
    st.integers(0, 4000),
    st.one_of(st.none(), st.integers(1000, 4000)),
    st.integers(20, 900),
)
@settings(max_examples=60, deadline=None)
def test_sizes_are_kept_and_no_character_is_used_twice(
    seed: int, test: int, held_out: int, train: int | None, block: int
) -> None:
    """Whatever the sizes, each part gets what was asked, within a word, from blocks that are its own."""
    text = " ".join(f"{'bcdefghij'[i % 9]}{'a' * (i % 5)}" for i in range(5000))
    numbered = Corpus(name="made", text=text, sha256=text_sha256(text))
    split = split_corpus(
        numbered, seed=seed, train_chars=train, test_chars=test, held_out_chars=held_out, block_chars=block
    )
    wanted = [(split.test, test), (split.held_out, held_out), (split.train, train)]
    for part, size in wanted:
        assert part == part.strip()
        assert "  " not in part
        assert size is None or size <= len(part) <= size + 8
    assert len(split.train) + len(split.test) + len(split.held_out) <= len(text)


@given(st.text("ab ", max_size=400).map(normalise), st.integers(1, 60))
def test_blocks_are_the_text_cut_at_spaces(text: str, block_chars: int) -> None:
    """Joined by spaces the blocks are the text again: no word is cut, lost or repeated."""
    blocks = cut_blocks(text, block_chars)
    assert " ".join(blocks) == text
    assert all(block for block in blocks) or not text


def test_blocks_are_about_equally_long() -> None:
    """No block, the last one included, is of another kind than the others."""
    lengths = [len(block) for block in cut_blocks(make_corpus().text, 200)]
    assert min(lengths) > 180
    assert max(lengths) < 230


def test_every_part_is_drawn_from_all_over_the_text() -> None:
    """No part is the end or the beginning of the corpus, so that all three are alike."""
    blocks = ["x" * 99] * 400
    for part in assign_blocks(blocks, "any key", [9999, 9999, None]):
        assert min(part) < 40
        assert max(part) > 360


@pytest.mark.parametrize(
    "sizes",
    [
        {"test_chars": 10**6},
        {"train_chars": 10**6},
        {"held_out_chars": 10**6},
        {"test_chars": 20_000, "block_chars": 20_000},
    ],
)
def test_corpus_too_small_for_the_profile_is_refused(sizes: dict[str, int]) -> None:
    """A profile that asks for more text than there is says how much there is."""
    with pytest.raises(AssignmentError, match=r"'made' is too small .* characters"):
        split_corpus(make_corpus(), seed=1, **{**SIZES, **sizes})


def in_works(count: int, num_words: int) -> Corpus:
    """A corpus of works, each of them with words that tell by their first letter which it is."""
    works = []
    for i in range(count):
        works.append(" ".join(chr(97 + i) + word for word in normalise(words(num_words, i)).split()))
    text = " ".join(works)
    return Corpus(name="made", text=text, sha256=text_sha256(text), works=tuple(works))


def test_whole_works_are_set_aside() -> None:
    """A quarter of test and of held-out text is of works of which no word is anywhere else."""
    made = in_works(12, 900)
    split = split_corpus(made, seed=3, works=2, train_chars=None, test_chars=3000, held_out_chars=2000, block_chars=200)
    texts = {"train": split.train, "test": split.test, "held_out": split.held_out}
    letters = {part: {word[0] for word in text.split()} for part, text in texts.items()}
    for part, chars in (("held_out", split.works_chars[0]), ("test", split.works_chars[1])):
        own = {word[0] for word in texts[part][-chars:].split()}
        assert len(own) == 2
        others = [letters[other] for other in texts if other != part] + [{w[0] for w in texts[part][:-chars].split()}]
        assert not own & set.union(*others)
        assert 0.24 < chars / len(texts[part]) < 0.27
    assert [len(split.held_out) - 2000, len(split.test) - 3000] == pytest.approx([0, 0], abs=12)


def test_a_corpus_without_known_works_is_drawn_in_blocks() -> None:
    """Nobody said where they begin: the same draw as without."""
    assert split_corpus(make_corpus(), seed=1, works=2, **SIZES) == split_corpus(make_corpus(), seed=1, **SIZES)


@pytest.mark.parametrize("sizes", [{"test_chars": -1}, {"train_chars": 0}, {"block_chars": 0}, {"works": -1}])
def test_sizes_that_make_no_sense_are_refused(sizes: dict[str, int]) -> None:
    """A negative or empty part is a mistake in the profile."""
    with pytest.raises(AssignmentError, match="must be positive"):
        split_corpus(make_corpus(), seed=1, **{**SIZES, **sizes})


def test_symbol_missing_from_train_is_refused() -> None:
    """No model can be asked for a letter that its training text never shows."""
    text = " ".join(letter * 20 for letter in "abcdefghijklmnopqrstuvwxyz")
    made = Corpus(name="made", text=text, sha256=text_sha256(text))
    with pytest.raises(AssignmentError, match=r"lacks \['[a-z]'.* another seed"):
        split_corpus(made, seed=1, train_chars=None, test_chars=5, held_out_chars=5, block_chars=20)
