"""The N-gram baseline: pairs, the two encodings, the network."""

import numpy as np
import pytest
from expect import FORWARD, Mistake, as_array, as_pair, assert_close, decoding

### BEGIN HIDDEN TESTS
# isort: split
import oracle
from expect import as_numbers, is_close

### END HIDDEN TESTS


def made_of(student, name, indices, size):
    """What ngram_pairs or an encoding makes of indices, which it should leave as they are."""
    both = student.stubs.call_and_look(student.ref(name), indices, size)
    with decoding(f"What {name} returns"):
        result, after = both
    if not np.array_equal(after, indices):
        raise Mistake("input_changed", f"{name} changes the indices that it is handed.")
    return result


@pytest.mark.check("ngram_pairs.example")
def test_pairs_example(student):
    """Of 5, 6, 7, 8, 9 the pairs with n = 2 are (5, 6) -> 7, (6, 7) -> 8 and (7, 8) -> 9."""
    X, y = as_pair(made_of(student, "ngram_pairs", [5, 6, 7, 8, 9], 2), "ngram_pairs([5, 6, 7, 8, 9], 2)", "(X, y)")
    assert_close(as_array(X, "X", (3, 2)), [[5, 6], [6, 7], [7, 8]], "X", FORWARD)
    assert_close(as_array(y, "y", (3,)), [7, 8, 9], "y", FORWARD)


@pytest.mark.check("encode_sequential.example")
def test_sequential_example(student):
    """The context (2, 0) over three symbols becomes 0 0 1, 1 0 0."""
    X = np.array([[2, 0]], "float32")
    found = as_array(made_of(student, "encode_sequential", X, 3), "encode_sequential([[2, 0]], 3)", (1, 6))
    assert_close(found, [[0, 0, 1, 1, 0, 0]], "encode_sequential([[2, 0]], 3)", FORWARD)


@pytest.mark.check("encode_bag.example")
def test_bag_example(student):
    """The context (2, 0, 2) over three symbols becomes 1 0 2."""
    X = np.array([[2, 0, 2]], "float32")
    found = as_array(made_of(student, "encode_bag", X, 3), "encode_bag([[2, 0, 2]], 3)", (1, 3))
    assert_close(found, [[1, 0, 2]], "encode_bag([[2, 0, 2]], 3)", FORWARD)


@pytest.mark.check("NGramMLP.example")
def test_mlp_example(student):
    """NGramMLP(5) turns 3 encoded contexts into scores [3, 5]."""
    X = np.eye(3, 10, dtype="float32")
    mlp = student.keep(student.stubs.ref("make_mlp"), X, 5)
    as_array(student.call(mlp, X), "The output of NGramMLP(5) for 3 contexts", (3, 5))


### BEGIN HIDDEN TESTS
@pytest.mark.check("ngram_pairs")
@pytest.mark.parametrize(("length", "n", "V"), [(12, 3, 5), (9, 1, 4), (30, 8, 27), (5, 4, 3)])
def test_pairs(student, rng, length, n, V):
    """All windows of n characters, in the order of the text, and what follows each."""
    indices = [int(i) for i in rng.integers(0, V, length)]
    call = f"ngram_pairs(text of {length}, {n})"
    X, y = as_pair(made_of(student, "ngram_pairs", indices, n), call, "(X, y)")
    expected_X, expected_y = oracle.ngram_pairs(indices, n)
    recognise((X, y), (expected_X, expected_y), wrong_pairs(indices, expected_X, expected_y), call)
    assert_close(as_array(X, f"X of {call}", expected_X.shape), expected_X, "X", FORWARD)
    assert_close(as_array(y, f"y of {call}", expected_y.shape), expected_y, "y", FORWARD)


def recognise(found, expected, wrong, what):
    """Fail by the name of a mistake if the arrays are what it makes, and not what is expected.

    `wrong` lists mistakes, each as its name and the arrays.
    """
    arrays = [np.array(array, float) if isinstance(array, np.ndarray) else None for array in found]

    def are(others):
        pairs = list(zip(arrays, others, strict=True))
        return all(a is not None and a.shape == np.shape(b) and is_close(a, b, **FORWARD) for a, b in pairs)

    for name, *others in wrong:
        if are(others) and not are(expected):
            raise Mistake(name, what)


def wrong_pairs(text, X, y):
    """What mistakes make of a text, of which X and y are the right contexts and labels."""
    n = X.shape[1]
    later = np.array([text[i + 1 : i + 1 + n] for i in range(len(y))])
    return [
        ("last_missing", X[:-1], y[:-1]),
        ("first_missing", X[1:], y[1:]),
        ("reversed", X[:, ::-1], y),
        ("y_in_context", X, X[:, -1]),
        ("y_in_context", X, X[:, 0]),
        ("y_before", later, X[:, 0]),
        ("y_too_late", X[:-1], y[1:]),
        ("y_is_window", X, later),
        ("y_in_X", np.column_stack([X, y]), y),
        ("too_short", X[:, 1:], y),
        ("too_short", *oracle.ngram_pairs(text, n - 1)),
        ("apart", X[::n], y[::n]),
        ("apart", X[:: n + 1], y[:: n + 1]),
        ("wraps", *oracle.ngram_pairs([*text, text[0]], n)),
        ("wraps", *oracle.ngram_pairs([*text, *text[:n]], n)),
        ("padded", *oracle.ngram_pairs([0] * n + text, n)),
        ("transposed", X.T, y),
        ("swapped", y, X),
    ]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("encode_sequential", marks=pytest.mark.check("encode_sequential")),
        pytest.param("encode_bag", marks=pytest.mark.check("encode_bag")),
    ],
)
@pytest.mark.parametrize(("N", "n", "V", "most"), [(6, 4, 5, 5), (1, 1, 3, 3), (3, 7, 2, 2), (5, 2, 27, 20)])
def test_encodings(student, rng, name, N, n, V, most):
    """The encoding of random contexts, with symbols that occur twice, or of which the last do not occur."""
    X = rng.integers(0, most, (N, n))
    expected, call = getattr(oracle, name)(X, V), f"{name}(X [{N}, {n}], {V})"
    found = made_of(student, name, X.astype("float32"), V)
    wrong = {"encode_sequential": wrong_sequences, "encode_bag": wrong_bags}[name]
    recognise([found], [expected], wrong(X, V, np.eye(V)[X]), call)
    array = as_array(found, call)
    has_one_for_each = array.ndim == 2 and len(array) == N and (array.sum(axis=1) == n).all()
    if has_one_for_each and array.shape != expected.shape:
        raise Mistake("other_size", f"{call} has shape {list(array.shape)}.")
    assert_close(as_array(found, call, expected.shape), expected, call, FORWARD)


def wrong_sequences(X, V, onehot):
    """What mistakes make of contexts [N, n]."""
    N = len(X)
    return [
        ("not_joined", onehot),
        ("one_row", onehot.reshape(1, -1)),
        ("row_a_character", onehot.reshape(-1, V)),
        ("by_symbol", onehot.swapaxes(1, 2).reshape(N, -1)),
        ("mixed_rows", onehot.swapaxes(0, 1).reshape(N, -1)),
        ("reversed", onehot[:, ::-1].reshape(N, -1)),
        ("one_place", onehot[:, 0]),
        ("one_place", onehot[:, -1]),
        ("bag", onehot.sum(axis=1)),
        ("shifted", np.roll(onehot, 1, axis=2).reshape(N, -1)),
        ("shifted", np.roll(onehot, -1, axis=2).reshape(N, -1)),
        ("not_encoded", X),
    ]


def wrong_bags(X, V, onehot):
    """What mistakes make of contexts [N, n]."""
    counts = onehot.sum(axis=1)
    return [
        ("presence", onehot.max(axis=1)),
        ("normalised", onehot.mean(axis=1)),
        ("normalised", counts / np.linalg.norm(counts, axis=1, keepdims=True)),
        ("one_place", onehot[:, 0]),
        ("one_place", onehot[:, -1]),
        ("over_symbols", onehot.sum(axis=2)),
        ("over_contexts", onehot.sum(axis=0)),
        ("over_contexts", onehot.sum(axis=(0, 1))),
        ("shifted", np.roll(counts, 1, axis=1)),
        ("shifted", np.roll(counts, -1, axis=1)),
        ("sequence", onehot.reshape(len(X), -1)),
        ("not_summed", onehot),
    ]


@pytest.mark.check("NGramMLP")
@pytest.mark.parametrize(("V", "hidden", "width"), [(6, None, 18), (5, 16, 5), (9, 40, 36)])
def test_mlp_weights(student, rng, V, hidden, width):
    """One hidden layer, of 256 units by default, and one output layer."""
    arguments = (V,) if hidden is None else (V, hidden)
    X = rng.normal(0, 1, (4, width)).astype("float32")
    mlp = student.keep(student.stubs.ref("make_mlp"), X, *arguments)
    call = f"NGramMLP{arguments}".replace(",)", ")")
    shapes = [np.squeeze(value).shape for value in values_of(student, mlp, call)]  # a bias may be a row
    matrices = sorted(tuple(sorted(shape)) for shape in shapes if len(shape) == 2)
    observed = f"{call} for inputs [N, {width}] has weights {matrices}."
    if len(matrices) != 2:
        raise Mistake("more_layers" if len(matrices) > 2 else "no_hidden_layer", observed)
    units = hidden or 256
    if matrices != layers_of(units, width, V):
        is_of_other_width = any(matrices == layers_of(other, width, V) for shape in matrices for other in shape)
        raise Mistake("wrong_units" if is_of_other_width else "wrong_shape", observed)
    vectors = [shape for shape in shapes if len(shape) != 2]
    assert set(vectors) <= {(units,), (V,)}, f"{call} has parameters besides its weights and biases."
    assert len(vectors) <= 2, f"{call} has more than one bias a layer."


def layers_of(units, width, V):
    """The shapes of the two weight matrices, sorted, since a matrix may stand either way."""
    return sorted(tuple(sorted(shape)) for shape in ((units, width), (V, units)))


def values_of(student, mlp, what):
    """The weights and biases."""
    with decoding(f"The weights of {what}"):
        return [as_array(value, "A weight") for _, value in student.stubs.read_params(mlp)]


@pytest.mark.check("NGramMLP")
def test_mlp_is_nonlinear(student, rng):
    """f(a) + f(b) differs from f(a + b) + f(0): between the layers stands an activation."""
    V, width = 6, 12
    a, b = rng.uniform(0, 1, (2, 5, width)).astype("float32")  # as counts are: an activation of inputs shows nothing
    mlp = student.keep(student.stubs.ref("make_mlp"), a, V)
    f_a, f_b, f_both, f_none = (
        as_array(student.call(mlp, x), "The output of NGramMLP", (5, V)) for x in (a, b, a + b, np.zeros_like(a))
    )
    gap = np.abs(f_a + f_b - f_both - f_none).max()
    if gap < 1e-3:
        raise Mistake("linear")


@pytest.mark.check("NGramMLP")
def test_mlp_rows_are_apart(student, rng):
    """What it makes of one context does not depend on the others."""
    V, width = 5, 10
    X = rng.uniform(0, 1, (4, width)).astype("float32")
    mlp = student.keep(student.stubs.ref("make_mlp"), X, V)
    both = [as_array(student.call(mlp, x), "The output of NGramMLP", (len(x), V)) for x in (X, X[1:2])]
    if not is_close(both[0][1:2], both[1], **FORWARD):
        raise Mistake("rows_mix")


@pytest.mark.check("NGramMLP")
def test_mlp_output_is_free(student, rng):
    """Weight and bias of the output layer times -3: so are the scores (log-probabilities, but for a constant)."""
    V, hidden, width = 7, 16, 12
    X = rng.normal(0, 1, (9, width)).astype("float32")
    mlp = student.keep(student.stubs.ref("make_mlp"), X, V, hidden)
    scores = as_array(student.call(mlp, X), "The output of NGramMLP", (9, V))
    if (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-4):
        raise Mistake("softmax")
    student.stubs.multiply_output_layer(mlp, V, -3.0)
    after = as_array(student.call(mlp, X), "The output of NGramMLP", (9, V))
    before, after = (values - values.mean(axis=1, keepdims=True) for values in (scores, after))
    if np.abs(after + 3 * before).max() > 1e-3 * np.abs(before).max():
        raise Mistake("output_activation")


@pytest.mark.check("NGramMLP")
def test_mlp_learns(student):
    """Descending the gradient, it learns a table by heart, and all its weights move."""
    V = 8
    X = np.eye(V, dtype="float32")
    y = np.array([3, 1, 7, 0, 0, 5, 2, 6], "float32")
    mlp = student.keep(student.stubs.ref("make_mlp"), X, V)
    first = values_of(student, mlp, "NGramMLP")
    before, after = as_numbers(student.stubs.learn(mlp, X, y, 100, 0.01), "The losses", 2)
    last = values_of(student, mlp, "NGramMLP")
    assert len(first) == len(last), "NGramMLP has other parameters after it has learnt than before."
    if any(np.array_equal(a, b) for a, b in zip(first, last, strict=True)):
        raise Mistake("no_gradient")
    assert after < 0.5 * before, (
        f"In 100 updates on 8 examples the loss of NGramMLP went from {before:.3g} to {after:.3g} only."
    )


### END HIDDEN TESTS
