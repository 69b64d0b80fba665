"""The draw of train, test and held-out text from a corpus: a pure function of the text, a seed and the sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from grader.corpus import Corpus, text_sha256
from grader.errors import AssignmentError
from grader.types import Split

BLOCK_CHARS = 2000  # about as long is what is drawn as a whole
WORKS_SHARE = 4  # of test and of held-out text, one part in so many is from works that are set aside whole


def cut_blocks(text: str, block_chars: int) -> list[str]:
    """The text in contiguous blocks of about `block_chars`, cut at spaces; `' '.join` gives it back.

    All blocks are about equally long, the last one too: no block differs in kind from another.
    """
    count = max(1, len(text) // block_chars)
    blocks, start = [], 0
    for i in range(1, count):
        cut = text.find(" ", max(start, len(text) * i // count))
        if cut < 0:
            break
        if cut > start:  # a word longer than a block makes a longer block, not an empty one
            blocks.append(text[start:cut])
            start = cut + 1
    return [*blocks, text[start:]]


def _drawn(count: int, key: str) -> list[int]:
    """The numbers below `count` in an order that depends on the key alone.

    It is that of sha256(key, index), not that of `random.shuffle`, which a Python may change: a regrade years later
    must draw the same text.
    """
    return sorted(range(count), key=lambda i: hashlib.sha256(f"{key}:{i}".encode()).digest())


def assign_blocks(blocks: Sequence[str], key: str, sizes: Sequence[int | None]) -> list[tuple[int, ...]]:
    """The indices, ascending, of the blocks that each part gets: disjoint, and drawn alike for every part.

    Parts take the next blocks of one order until they have their size in characters; None takes all the rest.

    Raises ValueError if there are too few blocks.
    """
    order = iter(_drawn(len(blocks), key))
    parts = []
    for size in sizes:
        part: list[int] = []
        length = -1  # n blocks are joined by n - 1 spaces
        while size is None or (size > 0 and length < size):
            index = next(order, None)
            if index is None:
                break
            part.append(index)
            length += len(blocks[index]) + 1
        if (size and length < size) or (size is None and not part):
            raise ValueError("too few blocks")
        parts.append(tuple(sorted(part)))
    return parts


def middle_of(works: Sequence[str], size: int) -> str:
    """About `size` characters in whole words: as many from the middle of each work.

    Raises ValueError if a work is too short.
    """
    passages = []
    for work in works if size else ():
        share = size // len(works)
        begin = work.find(" ", (len(work) - share) // 2) + 1
        if not 0 < begin <= len(work) - share:
            raise ValueError("a work is too short")
        end = work.find(" ", begin + share)
        passages.append(work[begin:] if end < 0 else work[begin:end])
    return " ".join(passages)


def split_corpus(
    corpus: Corpus,
    *,
    seed: int,
    train_chars: int | None,
    test_chars: int,
    held_out_chars: int,
    works: int = 0,
    block_chars: int = BLOCK_CHARS,
) -> Split:
    """Draws train, test and held-out text: a pure function of the text, the seed and the sizes.

    So many `works` are set aside whole for held-out text, and as many others for test text: a quarter of these texts
    is from the middle of works of which nothing is in any other part. All else is made of blocks of the other works,
    in the order of the text, up to the first word that gives a part its size; no block is in two parts. A corpus of
    which nobody said where its works begin has blocks only.

    `Split.sha256` is published with the grades, and the text is public: a seed that can be guessed can be found by
    trying, so it should be drawn from 128 random bits, as `grader init` does.

    Raises AssignmentError if the corpus is too small, or if a symbol of test or held-out is not in train.
    """
    sizes = {"held_out": held_out_chars, "test": test_chars, "train": train_chars}
    if block_chars < 1 or min(held_out_chars, test_chars, works) < 0 or (train_chars is not None and train_chars < 1):
        raise AssignmentError(
            f"The sizes of a split must be positive, not {sizes}, block_chars {block_chars}, works {works}."
        )
    works = works if corpus.works else 0
    identity = ["split-v2", corpus.sha256, str(seed), *map(str, sizes.values()), str(block_chars)]
    identity += [str(works), *(str(len(work)) for work in corpus.works)] if works else []
    key = text_sha256("\n".join(identity))
    order = _drawn(len(corpus.works), f"{key}:work")
    aside = {"held_out": order[:works], "test": order[works : 2 * works], "train": []}
    rest = " ".join(corpus.works[i] for i in sorted(order[2 * works :])) if works else corpus.text
    blocks = cut_blocks(rest, block_chars)
    try:
        passages = {
            part: middle_of([corpus.works[i] for i in which], (sizes[part] or 0) // WORKS_SHARE)
            for part, which in aside.items()
        }
        wanted = [size if size is None else max(0, size - len(passages[part])) for part, size in sizes.items()]
        assigned = assign_blocks(blocks, key, wanted)
    except ValueError as error:
        raise AssignmentError(
            f"Corpus '{corpus.name}' is too small for the split ({error}): it has {len(corpus.text):,} characters in "
            f"{len(corpus.works) or 'no'} works, {works} set aside for each text, and blocks of {block_chars:,}; the "
            f"profile asks for {sizes}; lower the sizes."
        ) from error
    texts = {}
    for (part, passage), size, indices in zip(passages.items(), wanted, assigned, strict=True):
        joined = " ".join(blocks[i] for i in indices)
        end = -1 if size is None else joined.find(" ", size)
        texts[part] = " ".join(filter(None, (joined if end < 0 else joined[:end], passage)))
    if unseen := set(texts["test"] + texts["held_out"]) - set(texts["train"]):
        raise AssignmentError(
            f"The train text of this split of '{corpus.name}' lacks {sorted(unseen)}, which test or held-out "
            "text has; raise train_chars or choose another seed."
        )
    works_chars = (len(passages["held_out"]), len(passages["test"]))
    return Split(**texts, sha256=key, corpus_sha256=corpus.sha256, works_chars=works_chars)
