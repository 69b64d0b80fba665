"""The N-gram baseline: pairs, the two encodings, the network."""

import numpy as np
import pytest
from expect import FORWARD, Mistake, as_array, as_pair, assert_close, decoding


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
