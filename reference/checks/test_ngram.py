"""The N-gram baseline: pairs, the two encodings, the network."""

import numpy as np
import pytest
from expect import FORWARD, as_array, as_pair, assert_close

### BEGIN HIDDEN TESTS
# isort: split
import oracle
from expect import as_numbers, decoding

### END HIDDEN TESTS


def pairs_of(student, indices, n):
    """What ngram_pairs makes of a text."""
    return student.stubs.call_in_any_form(student.ref("ngram_pairs"), indices, n)


@pytest.mark.check("ngram_pairs.example")
def test_pairs_example(student):
    """Of 5, 6, 7, 8 the pairs with n = 2 are (5, 6) -> 7 and (6, 7) -> 8."""
    X, y = as_pair(pairs_of(student, [5, 6, 7, 8], 2), "ngram_pairs([5, 6, 7, 8], 2)", "(X, y)")
    assert_close(as_array(X, "X", (2, 2)), [[5, 6], [6, 7]], "X", FORWARD)
    assert_close(as_array(y, "y", (2,)), [7, 8], "y", FORWARD)


def encoded(student, name, X, V):
    """What an encoding makes of contexts X [N, n]."""
    return student.stubs.call_in_any_form(student.ref(name), np.array(X, "float32"), V)


@pytest.mark.check("encode_sequential.example")
def test_sequential_example(student):
    """The context (0, 2) over three symbols becomes 1 0 0, 0 0 1."""
    found = as_array(encoded(student, "encode_sequential", [[0, 2]], 3), "encode_sequential([[0, 2]], 3)", (1, 6))
    assert_close(found, [[1, 0, 0, 0, 0, 1]], "encode_sequential([[0, 2]], 3)", FORWARD)


@pytest.mark.check("encode_bag.example")
def test_bag_example(student):
    """The context (2, 0, 2) over three symbols becomes 1 0 2."""
    found = as_array(encoded(student, "encode_bag", [[2, 0, 2]], 3), "encode_bag([[2, 0, 2]], 3)", (1, 3))
    assert_close(found, [[1, 0, 2]], "encode_bag([[2, 0, 2]], 3)", FORWARD)


@pytest.mark.check("NGramMLP.example")
def test_mlp_example(student):
    """NGramMLP(5) turns 3 encoded contexts into scores [3, 5]."""
    X = np.eye(3, 10, dtype="float32")
    mlp = student.keep(student.stubs.ref("make_mlp"), X, 5)
    as_array(student.call(mlp, X), "the output of NGramMLP(5) for 3 contexts", (3, 5))


### BEGIN HIDDEN TESTS
@pytest.mark.check("ngram_pairs")
@pytest.mark.parametrize(("length", "n", "V"), [(12, 3, 5), (9, 1, 4), (30, 8, 27), (5, 4, 3)])
def test_pairs(student, rng, length, n, V):
    """All windows of n characters, in the order of the text, and what follows each."""
    indices = [int(i) for i in rng.integers(0, V, length)]
    call = f"ngram_pairs(text of {length}, {n})"
    X, y = as_pair(pairs_of(student, indices, n), call, "(X, y)")
    expected_X, expected_y = oracle.ngram_pairs(indices, n)
    assert_close(as_array(X, f"X of {call}", expected_X.shape), expected_X, "X", FORWARD)
    assert_close(as_array(y, f"y of {call}", expected_y.shape), expected_y, "y", FORWARD)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("encode_sequential", marks=pytest.mark.check("encode_sequential")),
        pytest.param("encode_bag", marks=pytest.mark.check("encode_bag")),
    ],
)
@pytest.mark.parametrize(("N", "n", "V"), [(1, 1, 3), (6, 4, 5), (3, 7, 2), (5, 2, 27)])
def test_encodings(student, rng, name, N, n, V):
    """The encoding of random contexts, with symbols that occur twice."""
    X = rng.integers(0, V, (N, n))
    expected = getattr(oracle, name)(X, V)
    found = as_array(encoded(student, name, X, V), f"{name}(X [{N}, {n}], {V})", expected.shape)
    assert_close(found, expected, f"{name}(X, V)", FORWARD)


@pytest.mark.check("NGramMLP")
@pytest.mark.parametrize(("V", "hidden", "width"), [(6, None, 18), (5, 16, 5), (9, 40, 36)])
def test_mlp_weights(student, rng, V, hidden, width):
    """One hidden layer, of 256 units by default, and one output layer."""
    arguments = (V,) if hidden is None else (V, hidden)
    units = hidden or 256
    X = rng.normal(0, 1, (4, width)).astype("float32")
    mlp = student.keep(student.stubs.ref("make_mlp"), X, *arguments)
    call = f"NGramMLP{arguments}".replace(",)", ")")
    with decoding(f"The weights of {call}"):
        shapes = [as_array(value, "a weight").shape for _, value in student.stubs.read_params(mlp)]
    matrices = sorted(tuple(sorted(shape)) for shape in shapes if len(shape) == 2)
    expected = sorted(tuple(sorted(shape)) for shape in ((units, width), (V, units)))
    assert matrices == expected, f"{call} for inputs [N, {width}] has weights {matrices}, expected {expected}."
    vectors = [shape for shape in shapes if len(shape) != 2]
    assert set(vectors) <= {(units,), (V,)}, f"{call} has parameters besides its weights and biases."
    assert len(vectors) <= 2, f"{call} has more than one bias a layer."


@pytest.mark.check("NGramMLP")
def test_mlp_is_nonlinear(student, rng):
    """f(a) + f(b) differs from f(a + b) + f(0): between the layers stands an activation."""
    V, width = 6, 12
    a, b = rng.normal(0, 1, (2, 5, width)).astype("float32")
    mlp = student.keep(student.stubs.ref("make_mlp"), a, V)
    f_a, f_b, f_both, f_none = (
        as_array(student.call(mlp, x), "the output of NGramMLP", (5, V)) for x in (a, b, a + b, np.zeros_like(a))
    )
    gap = np.abs(f_a + f_b - f_both - f_none).max()
    assert gap > 1e-3, "NGramMLP is linear: its hidden layer needs an activation."


@pytest.mark.check("NGramMLP")
def test_mlp_learns(student):
    """Descending the gradient, it learns a table by heart: its outputs are free scores of all symbols."""
    V = 8
    X = np.eye(V, dtype="float32")
    y = np.array([3, 1, 7, 0, 0, 5, 2, 6], "float32")
    mlp = student.keep(student.stubs.ref("make_mlp"), X, V)
    before, after = as_numbers(student.stubs.learn(mlp, X, y, 100, 0.01), "the losses", 2)
    assert after < 0.5 * before, (
        f"In 100 updates on 8 examples the loss of NGramMLP went from {before:.3g} to {after:.3g} only: "
        "do gradients reach all of its weights?"
    )


@pytest.mark.check("NGramMLP")
def test_mlp_output_is_free(student, rng):
    """Weight and bias of the output layer times -3: so are the scores (log-probabilities, but for a constant)."""
    V, hidden, width = 7, 16, 12
    X = rng.normal(0, 1, (9, width)).astype("float32")
    mlp = student.keep(student.stubs.ref("make_mlp"), X, V, hidden)
    before = as_array(student.call(mlp, X), "the output of NGramMLP", (9, V))
    student.stubs.multiply_output_layer(mlp, V, -3.0)
    after = as_array(student.call(mlp, X), "the output of NGramMLP", (9, V))
    before, after = (scores - scores.mean(axis=1, keepdims=True) for scores in (before, after))
    is_linear = np.abs(after + 3 * before).max() < 1e-3 * np.abs(before).max()
    assert is_linear, "The output of NGramMLP should be plain scores, as its last layer computes them: no activation."


### END HIDDEN TESTS
