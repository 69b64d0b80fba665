"""The two data iterators, judged by the laws that they keep."""

import itertools

import numpy as np
import pytest
from expect import FORWARD, Mistake, as_array, assert_close, decoding

STUB_LIMIT = 500  # stubs.BATCH_LIMIT


def batches_of(student, name, corpus, batch_size, num_steps):
    """The minibatches of one epoch as pairs (X, Y) of arrays [B, T]; their form is checked."""
    found = student.stubs.collect_batches(student.ref(name), corpus, batch_size, num_steps, student.ctx)
    call = f"{name}(text, {batch_size}, {num_steps}, ctx)"
    with decoding(f"What {call} yields"):
        found = [(X, Y, {str(kind_x), str(kind_y)}) for X, Y, kind_x, kind_y in found]
    if len(found) >= STUB_LIMIT:
        raise Mistake("endless", f"{call} does not end.")
    batches, shape = [], (batch_size, num_steps)
    for X, Y, kinds in found:
        if kinds != {"NDArray"}:
            raise Mistake("wrong_type", f"{call} should yield NDArrays, but yields {sorted(kinds)[0]}.")
        if batches and np.ndim(X) == 2 and np.size(X) < batch_size * num_steps:
            raise Mistake("leftover", f"{call} yields {list(np.shape(X))} after minibatches {list(shape)}.")
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
    assert_close(next_X[:, 0], X[:, -1] + 1, "The first column of the second X", FORWARD)


### BEGIN HIDDEN TESTS
def starts_of(student, name, corpus, batch_size, num_steps):
    """Where in the text each row of X begins, [batch][row]: rows are pieces of it, Y is one ahead, the list is kept.

    Each symbol of the text occurs once, so that a row says where it comes from.
    """
    kept = student.keep(student.stubs.ref("itself"), corpus)
    batches = batches_of(student, name, kept, batch_size, num_steps)
    with decoding(f"The text, after {name},"):
        after = [int(i) for i in student.stubs.itself(kept)]
    if after != corpus:
        raise Mistake("input_changed", f"{name} changes the list that it is given.")
    place = {symbol: i for i, symbol in enumerate(corpus)}
    starts = []
    for X, Y in batches:
        if not set(X.ravel()) | set(Y.ravel()) <= set(corpus):
            raise Mistake("not_the_text", "X or Y holds numbers that do not occur in the text.")
        at_x, at_y = (np.vectorize(place.get)(array.astype(int)) for array in (X, Y))
        mistake = mistake_of_rows(at_x) or mistake_of_labels(at_x, at_y, len(corpus))
        if mistake:
            raise Mistake(mistake, f"Places in the text of X: {at_x.tolist()}, of Y: {at_y.tolist()}.")
        starts.append(at_x[:, 0])
    return starts


def mistake_of_rows(at_x):
    """What is wrong with the rows of X, [B, T] of places in the text; empty if they are pieces of it."""
    if (np.diff(at_x, axis=1) == 1).all():
        return ""
    if len(at_x) > 1 and (np.diff(at_x, axis=0) == 1).all():
        return "down_the_columns"
    return "not_a_piece"


def mistake_of_labels(at_x, at_y, length):
    """What is wrong with Y; empty if it is one ahead of X everywhere."""
    ahead = at_y - at_x
    if (ahead == 1).all():
        return ""
    if (ahead[at_x < length - 1] == 1).all():
        return "crosses_the_end"
    if at_x.shape[1] > 1 and (ahead[:, :-1] == 1).all():
        return "last_label"
    if (ahead == ahead[:, :1]).all() and np.unique(ahead[:, 0]).size > 1:
        return "labels_of_other_rows"
    return "labels_are_inputs" if not ahead.any() else "labels_elsewhere"


def text_of(rng, length):
    """A text in which each symbol occurs once."""
    return [int(i) for i in rng.permutation(length)]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("data_iter_random", marks=pytest.mark.check("data_iter_random")),
        pytest.param("data_iter_consecutive", marks=pytest.mark.check("data_iter_consecutive")),
    ],
)
def test_on_ctx(student, name):
    """X and Y are made on the device that the caller names."""
    if student.stubs.is_on_ctx(student.ref(name), list(range(43)), 2, 3) is not True:
        raise Mistake("not_on_ctx", f"{name}(text, 2, 3, ctx) should yield arrays on ctx.")


# lengths that leave something over, that leave nothing over, B = 1, T = 1
CASES = [(2, 3, 43), (3, 4, 61), (1, 5, 51), (4, 1, 37), (5, 2, 60), (1, 1, 20)]


# -- random ---------------------------------------------------------------------------------------------------


@pytest.mark.check("data_iter_random")
@pytest.mark.parametrize(("B", "T", "length"), CASES)
def test_random(student, rng, B, T, length):
    """Windows of the text that do not overlap, none twice, as many as fit."""
    corpus = text_of(rng, length)
    starts = starts_of(student, "data_iter_random", corpus, B, T)
    assert_apart(starts, T)
    most, fewest = (length - 1) // T // B, ((length - 1 - T) // T - 1) // B  # it may begin at an offset up to T
    if not fewest <= len(starts) <= most:
        raise Mistake("too_few", f"{len(starts)} minibatches [{B}, {T}] of a text of {length}, expected {most}.")


def assert_apart(starts, num_steps):
    """No window comes twice, none overlaps another, and there is at least one."""
    if not starts:
        raise Mistake("nothing", "There is no minibatch.")
    flat = np.sort(np.concatenate(starts))
    if len(set(flat)) < len(flat):
        raise Mistake("window_twice", f"Windows begin at {flat.tolist()}.")
    if (np.diff(flat) < num_steps).any():
        raise Mistake("overlap", f"Windows of {num_steps} begin at {flat.tolist()}.")
    if len(flat) > 2 and (np.diff(flat) % (num_steps + 1) == 0).all():
        raise Mistake("gaps", f"Windows of {num_steps} begin at {flat.tolist()}.")


NUM_EPOCHS = 6


@pytest.mark.check("data_iter_random")
@pytest.mark.parametrize("length", [9 * 12 + 1, 9 * 12])
def test_random_leaves_nothing_out(student, rng, length):
    """With one row in a minibatch, each window of the text comes, from an offset of 0 to T on."""
    T, corpus = 9, text_of(rng, length)
    dropped = []
    for _ in range(NUM_EPOCHS):
        starts = starts_of(student, "data_iter_random", corpus, 1, T)
        assert_apart(starts, T)
        dropped.append((length - 1 - min(starts)[0] % T) // T - len(starts))
    # An offset of T looks like 0 with the first window dropped; of several random ones not all are T.
    if max(dropped) > 1 or min(dropped) > 0:
        raise Mistake("too_few", f"Of a text of {length} some windows of {T} are left out: {dropped}.")


@pytest.mark.check("data_iter_random")
def test_random_shuffles(student, rng):
    """The windows are shuffled before they are dealt into minibatches, and in another order at each call."""
    B, T, corpus = 2, 3, text_of(rng, 121)
    epochs = [[start // T for start in starts_of(student, "data_iter_random", corpus, B, T)] for _ in range(2)]
    first, second = ([int(window) for batch in epoch for window in batch] for epoch in epochs)
    neighbours = sum(abs(one - other) == 1 for one, other in itertools.pairwise(first))
    if neighbours > 0.75 * len(first):
        raise Mistake("not_shuffled", f"The windows come in the order {first}.")
    if first == second:
        raise Mistake("same_order", f"Two epochs have the order {first}.")
    groups = [{frozenset(int(window) for window in batch) for batch in epoch} for epoch in epochs]
    if len(groups[0] & groups[1]) > len(groups[0]) / 2:
        raise Mistake("same_groups", f"Two epochs have the same minibatches in another order: {epochs[0]}.")
    if abs(np.corrcoef(first, range(len(first)))[0, 1]) > 0.85:  # five standard deviations and more
        raise Mistake("not_shuffled", f"The windows come nearly in the order of the text: {first}.")


# -- consecutive ----------------------------------------------------------------------------------------------


@pytest.mark.check("data_iter_consecutive")
@pytest.mark.parametrize(("B", "T", "length"), [*CASES, (2, 3, 42), (3, 5, 48)])
def test_consecutive(student, rng, B, T, length):
    """Each row goes on where the same row of the minibatch before ended; the rows share the text evenly."""
    starts = starts_of(student, "data_iter_consecutive", text_of(rng, length), B, T)
    observed = f"A text of {length} in minibatches [{B}, {T}]: rows begin at {[row.tolist() for row in starts]}."
    if not starts:
        raise Mistake("nothing", observed)
    for before, after in itertools.pairwise(starts):
        if not (after == before + T).all():
            raise Mistake(mistake_of_going_on(before, after, T), observed)
    offset = int(starts[0][0])  # a random one up to num_steps is in use, too
    if not 0 <= offset <= T:
        raise Mistake("late_start", observed)
    longest, shortest = (length - offset) // B, (length - 1 - offset) // B
    counts = {(longest - 1) // T, shortest // T}
    gaps = {int(i) for i in np.diff(starts[0])}
    if len(gaps) > 1 or not gaps <= {longest, shortest, *(count * T for count in counts)}:  # or cut to whole windows
        is_cut_right = offset > 0 and gaps <= {length // B, (length - 1) // B}
        raise Mistake("late_start" if is_cut_right else "uneven_rows", observed)
    if len(starts) not in counts:
        raise Mistake("too_few", f"{observed} There are {len(starts)} minibatches, expected {max(counts)}.")


@pytest.mark.check("data_iter_consecutive")
def test_consecutive_begins_at_the_beginning(student, rng):
    """The first window begins the text; or, at random, up to num_steps later."""
    B, T, length = 2, 9, 80
    epochs = [starts_of(student, "data_iter_consecutive", text_of(rng, length), B, T) for _ in range(6)]
    begins = {int(starts[0][0]) for starts in epochs if starts}
    if len(begins) == 1 and max(begins) > 0:
        raise Mistake("late_start", f"In each of 6 epochs the first mini-batch begins at {begins}.")


def mistake_of_going_on(before, after, num_steps):
    """How the rows of a minibatch [B] of places lie to those of the one before, where they do not go on."""
    if len(before) > 1 and (np.diff([*before, *after]) == num_steps).all():
        return "rows_follow"
    moved = set(after - before)
    if len(moved) == 1:
        (step,) = moved
        return "overlap" if 0 < step < num_steps else "gaps" if step > num_steps else "rows_jump"
    return "rows_jump"


### END HIDDEN TESTS
