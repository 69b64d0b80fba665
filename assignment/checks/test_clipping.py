"""Gradient clipping."""

import numpy as np
import pytest
from expect import CLIPPED, Mistake, as_array, as_arrays, assert_close


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
