"""The two data iterators, judged by the laws that they keep."""

import itertools

import numpy as np
import pytest
from expect import FORWARD, as_array, assert_close, decoding

STUB_LIMIT = 500  # stubs.BATCH_LIMIT


def batches_of(student, name, corpus, batch_size, num_steps):
    """The minibatches of one epoch as pairs (X, Y) of arrays [B, T]; their form is checked."""
    found = student.stubs.collect_batches(student.ref(name), corpus, batch_size, num_steps, student.ctx)
    call = f"{name}(text, {batch_size}, {num_steps}, ctx)"
    with decoding(f"What {call} yields"):
        found = [(X, Y, {str(kind_x), str(kind_y)}, bool(on_ctx)) for X, Y, kind_x, kind_y, on_ctx in found]
    assert len(found) < STUB_LIMIT, f"{call} does not end."
    batches = []
    for X, Y, kinds, on_ctx in found:
        assert kinds == {"NDArray"}, f"{call} should yield NDArrays, but yields {sorted(kinds)[0]}."
        assert on_ctx, f"{call} should yield arrays on ctx."
        shape = (batch_size, num_steps)
        batches.append((as_array(X, f"X of {call}", shape), as_array(Y, f"Y of {call}", shape)))
    return batches


@pytest.mark.check("data_iter_random.example")
def test_random_example(student):
    """A text of 0 to 29 makes windows of 6 consecutive numbers; Y is one ahead."""
    batches = batches_of(student, "data_iter_random", list(range(30)), 2, 6)
    assert batches, "data_iter_random(list(range(30)), 2, 6, ctx) yields nothing."
    for X, Y in batches:
        assert_close(X - X[:, :1], [list(range(6))] * 2, "X, less its first column,", FORWARD)
        assert_close(Y, X + 1, "Y", FORWARD, "In this text each number is followed by the next.")


@pytest.mark.check("data_iter_consecutive.example")
def test_consecutive_example(student):
    """In a text of 0 to 39, each row of the second minibatch begins where the same row of the first ended."""
    batches = batches_of(student, "data_iter_consecutive", list(range(40)), 2, 6)
    assert len(batches) > 1, f"There should be 3 minibatches, not {len(batches)}."
    (X, Y), (next_X, _) = batches[:2]
    assert_close(X - X[:, :1], [list(range(6))] * 2, "X, less its first column,", FORWARD)
    assert_close(Y, X + 1, "Y", FORWARD, "In this text each number is followed by the next.")
    assert_close(next_X[:, 0], X[:, -1] + 1, "the first column of the second X", FORWARD)


### BEGIN HIDDEN TESTS
def starts_of(batches, corpus):
    """Where in the text each row begins [batch][row]; rows are windows of the text, Y one ahead of X.

    Each symbol of the text occurs once, so that a row says where it comes from.
    """
    place = {symbol: i for i, symbol in enumerate(corpus)}
    starts = []
    for X, Y in batches:
        assert set(X.ravel()) | set(Y.ravel()) <= set(corpus), "X or Y holds numbers that do not occur in the text."
        at_x, at_y = (np.vectorize(place.get)(array.astype(int)) for array in (X, Y))
        assert (np.diff(at_x, axis=1) == 1).all(), "A row of X is not a piece of the text."
        assert (at_y == at_x + 1).all(), "Y should hold, for each entry of X, the character that follows it."
        starts.append(at_x[:, 0])
    return starts


def text_of(rng, length):
    """A text in which each symbol occurs once."""
    return [int(i) for i in rng.permutation(length)]


# lengths that leave something over, that leave nothing over, B = 1, T = 1
CASES = [(2, 3, 43), (3, 4, 61), (1, 5, 51), (4, 1, 37), (5, 2, 60), (1, 1, 20)]


@pytest.mark.check("data_iter_random")
@pytest.mark.parametrize(("B", "T", "length"), CASES)
def test_random(student, rng, B, T, length):
    """Windows of the text that do not overlap, none twice, as many as fit."""
    corpus = text_of(rng, length)
    starts = starts_of(batches_of(student, "data_iter_random", corpus, B, T), corpus)
    most, fewest = (length - 1) // T // B, ((length - 1 - T) // T - 1) // B
    assert fewest <= len(starts) <= most, (
        f"A text of {length} with batch_size {B} and num_steps {T} gave {len(starts)} minibatches, expected {most}."
    )
    flat = np.sort(np.concatenate(starts)) if starts else np.array([])
    assert len(set(flat)) == len(flat), "A window comes twice in one epoch."
    assert (np.diff(flat) >= T).all(), "Two windows of one epoch overlap."


@pytest.mark.check("data_iter_random")
def test_random_shuffles(student, rng):
    """The order is random, and another one at each call; the list that was passed in stays as it was."""
    corpus = text_of(rng, 121)
    kept = student.keep(student.stubs.ref("itself"), corpus)
    orders = []
    for _ in range(2):
        batches = batches_of(student, "data_iter_random", kept, 2, 3)
        assert batches, "data_iter_random yields nothing for a text of 121."
        orders.append([int(i) for i in np.concatenate(starts_of(batches, corpus))])
    assert orders[0] != sorted(orders[0]), "The windows come in the order of the text: shuffle them."
    first = [i - min(orders[0]) for i in orders[0]]
    assert first != [i - min(orders[1]) for i in orders[1]], "Each epoch has the same order: shuffle at each call."
    after = as_array(student.stubs.itself(kept), "The list, after data_iter_random,", (len(corpus),))
    assert (after == corpus).all(), "data_iter_random changes the list that it is given."


@pytest.mark.check("data_iter_consecutive")
@pytest.mark.parametrize(("B", "T", "length"), [*CASES, (2, 3, 42), (3, 5, 48)])
def test_consecutive(student, rng, B, T, length):
    """Each row goes on where the same row of the minibatch before ended; the rows share the text evenly."""
    corpus = text_of(rng, length)
    starts = starts_of(batches_of(student, "data_iter_consecutive", corpus, B, T), corpus)
    found = f"A text of {length} with batch_size {B} and num_steps {T}"
    assert starts, f"{found} gave no minibatch."
    for before, after in itertools.pairwise(starts):
        assert (after == before + T).all(), (
            "Row i of a minibatch should go on where row i of the minibatch before ended."
        )
    offset = starts[0][0]  # a random one up to num_steps is in use, too
    assert 0 <= offset <= T, f"{found} begins at character {offset}."
    lengths = {(length - offset) // B, (length - 1 - offset) // B}
    gaps = {int(i) for i in np.diff(starts[0])}
    is_even = len(gaps) <= 1 and gaps <= lengths
    assert is_even, f"{found} should be cut into rows of {max(lengths)}: row i begins at i times that."
    counts = {(max(lengths) - 1) // T, min(lengths) // T, (length - 1 - offset) // B // T}
    assert len(starts) in counts, f"{found} gave {len(starts)} minibatches, expected {max(counts)}."


### END HIDDEN TESTS
