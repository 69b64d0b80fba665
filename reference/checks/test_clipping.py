"""Gradient clipping."""

import numpy as np
import pytest
from expect import CLIPPED, Mistake, as_array, as_arrays, assert_close

### BEGIN HIDDEN TESTS
# isort: split
import itertools
import math

import oracle
from recognise import agree, name_mistake

### END HIDDEN TESTS


def clipped(student, grads, theta):
    """The gradients after grad_clipping(params, theta, ctx)."""
    values = [np.ones_like(grad) for grad in grads]
    params = student.keep(student.stubs.ref("make_params"), values, grads)
    student.keep("grad_clipping", params, theta, student.ctx)
    what = "A parameter, after grad_clipping,"
    for value in as_arrays(student.stubs.itself(params), what, len(grads)):
        if not (value == 1).all():
            raise Mistake("input_changed", f"{what} has other values.")
    after = as_arrays(student.stubs.grads_of(params), "The gradients", len(grads))
    return [as_array(new, "param.grad", grad.shape) for new, grad in zip(after, grads, strict=True)]


@pytest.mark.check("grad_clipping.example")
def test_grad_clipping_example(student):
    """Gradients 3 and 4 have norm 5: with theta 2.5 they become 1.5 and 2, with theta 10 they stay."""
    grads = [np.array([3.0], "float32"), np.array([4.0], "float32")]
    for theta, expected in ((2.5, [1.5, 2.0]), (10.0, [3.0, 4.0])):
        found = [float(grad[0]) for grad in clipped(student, grads, theta)]
        assert_close(found, expected, f"With theta = {theta}, the gradient", CLIPPED)


### BEGIN HIDDEN TESTS
CLIPPING = [
    # shapes, norm, theta
    ([(4, 3), (3, 3), (3,), (3, 4), (4,)], 7.0, 1.0),
    ([(4, 3), (3, 3), (3,), (3, 4), (4,)], 0.7, 1.0),
    ([(4, 3), (3, 3), (1, 3), (3, 4), (1, 4)], 1.01, 1.0),
    ([(4, 3), (3, 3), (3,), (3, 4), (4,)], 0.99, 1.0),
    ([(5,)], 3.0, 0.02),
    ([(2, 2, 2), (1,)], 400.0, 31.0),
    ([(40, 30), (2,)], 0.05, 0.01),
]


@pytest.mark.check("grad_clipping")
@pytest.mark.parametrize(("shapes", "norm", "theta"), CLIPPING)
def test_grad_clipping(student, rng, shapes, norm, theta):
    """All gradients, whatever their shapes, are scaled in place by min(1, θ/‖g‖)."""
    grads = [rng.normal(0, 1, shape) * rng.uniform(0.2, 3) for shape in shapes]
    scale = norm / oracle.global_norm(grads)
    grads = [(grad * scale).astype("float32") for grad in grads]
    found, expected = clipped(student, grads, theta), oracle.clip(grads, theta)
    diagnose_clipping(found, grads, theta, expected)
    for new, right in zip(found, expected, strict=True):
        assert_close(new, right, f"A gradient, with norm {norm} and theta {theta},", CLIPPED)


@pytest.mark.check("grad_clipping")
@pytest.mark.parametrize("theta", [5.0, 1.0])
def test_grad_clipping_edges(student, theta):
    """A norm of exactly theta stays; an array whose gradient is zero stays zero beside others."""
    exact = [np.array([3.0, 0.0], "float32"), np.array([[4.0]], "float32"), np.zeros((2, 3), "float32")]
    factor = min(1.0, theta / 5.0)
    for new, grad in zip(clipped(student, exact, theta), exact, strict=True):
        assert_close(new, grad * factor, f"A gradient, with norm 5 and theta {theta},", CLIPPED)


def clipped_one_by_one(grads, theta):
    """What clipping makes of gradients if the norm is worked out again for each of them."""
    after = list(grads)
    for i, grad in enumerate(after):
        after[i] = grad * min(1.0, theta / oracle.global_norm(after))
    return after


def factors_of_parts(norms, theta):
    """The factors with which gradients are scaled if their norm is that of a part of the arrays only."""
    parts = [part for count in range(1, len(norms)) for part in itertools.combinations(norms, count)]
    return [min(1.0, theta / math.hypot(*part)) for part in parts]


def diagnose_clipping(found, grads, theta, expected):
    """Name the mistakes that are known."""
    norms = [oracle.global_norm([grad]) for grad in grads]
    norm, size = oracle.global_norm(grads), sum(grad.size for grad in grads)
    factor = sum(np.vdot(new, grad) for new, grad in zip(found, grads, strict=True)) / norm**2
    same = [agree([new], [right], CLIPPED) for new, right in zip(found, expected, strict=True)]
    kept = [new if is_right else grad for new, grad, is_right in zip(found, grads, same, strict=True)]
    known = [
        ("not_clipped", grads),  # first: all norms of arrays may be below theta, where the one of all is above
        ("own_norm", [oracle.clip([grad], theta)[0] for grad in grads]),
        ("changes_meanwhile", clipped_one_by_one(grads, theta)),
        ("scaled_up", [grad * theta / norm for grad in grads]),
        ("cut_off", [np.clip(grad, -theta, theta) for grad in grads]),
        ("cut_off", [np.clip(grad, None, theta) for grad in grads]),
        ("no_root", [grad * min(1.0, theta / norm**2) for grad in grads]),
        ("sum_of_norms", [grad * min(1.0, theta / sum(norms)) for grad in grads]),
        ("upside_down", [grad * norm / theta for grad in grads]),
        ("unit_norm", [grad / norm for grad in grads]),
        ("some_left", kept),
        ("norm_of_values", [grad * min(1.0, theta / math.sqrt(size)) for grad in grads]),  # they are all 1
        *(("norm_of_some", [grad * factor for grad in grads]) for factor in factors_of_parts(norms, theta)),
        ("wrong_factor", [grad * factor for grad in grads]),
    ]
    name_mistake(found, expected, known, CLIPPED)


### END HIDDEN TESTS
