"""The N-gram baseline: pairs, the two encodings, the network."""

import numpy as np
import pytest
from expect import FORWARD, as_array, as_pair, assert_close


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
