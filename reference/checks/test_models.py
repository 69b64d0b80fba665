"""The four trained models and the parameters of the network from scratch."""

### BEGIN HIDDEN TESTS
import numpy as np
import oracle
import pytest
from expect import as_arrays, as_count
from fakes import described_params

UNITS = 256
EXPECTED = {"rnn": ("rnn", 1), "gru": ("gru", 1), "lstm": ("lstm", 1), "lstm2": ("lstm", 2)}


def recurrent_layers(name, params):
    """The gates of each layer, from the shapes of the hidden-to-hidden weights [gates · units, units]."""
    shapes = [shape for key, shape in params if key.endswith("h2h_weight")]
    bad = [shape for shape in shapes if len(shape) != 2 or shape[1] != UNITS or shape[0] % UNITS]
    assert not bad, f"models[{name!r}] should have {UNITS} units, but a hidden-to-hidden weight is {bad[0]}."
    return [shape[0] // UNITS for shape in shapes]


def square_blocks(params):
    """How many [units, units] blocks the weights hold: the same question to a model of the student's own cells."""
    shapes = [shape for _, shape in params if len(shape) == 2 and not any(n % UNITS for n in shape)]
    return sum(rows * columns // UNITS**2 for rows, columns in shapes)


@pytest.mark.check("models")
@pytest.mark.parametrize("name", list(EXPECTED))
def test_models(student, name):
    """The right cell, number of layers and units; it reads a text and gives finite scores."""
    params = described_params(student, name)
    cell, num_layers = EXPECTED[name]
    gates = oracle.GATES[cell]
    layers = recurrent_layers(name, params)
    if layers:
        found = f"{len(layers)} with {layers} blocks of weights"
        right = [gates] * num_layers
        assert layers == right, f"models[{name!r}] should have {num_layers} {cell} layer(s), but has {found}."
    else:
        blocks = gates * (2 * num_layers - 1)
        found = square_blocks(params)
        assert found == blocks, f"models[{name!r}] does not have the weights of {num_layers} {cell} layer(s)."
    result = student.stubs.run_model(student.get("models")[name], np.zeros((2, 3), "float32"))
    assert all_finite(result), f"The output of models[{name!r}] is not finite: training has diverged."


def all_finite(value):
    """Whether no array in nested lists holds nan or infinity; of what form they are is asked elsewhere."""
    if isinstance(value, (list, tuple)):
        return all(all_finite(part) for part in value)
    return not isinstance(value, np.ndarray) or bool(np.isfinite(value).all())


@pytest.mark.check("models")
def test_scratch_params(student):
    """The five trained parameters of the network from scratch."""
    V = as_count(student.get("vocab_size"), "vocab_size")
    values = as_arrays(student.get("scratch_params"), "scratch_params", 5)
    width = values[2].size  # num_hiddens may have changed since
    sizes = [value.size for value in values]
    assert sizes == [V * width, width * width, width, width * V, V], f"scratch_params has arrays of sizes {sizes}."
    assert all(np.isfinite(value).all() for value in values), "scratch_params is not finite: training has diverged."
    assert np.abs(values[2]).max() + np.abs(values[4]).max() > 0, "scratch_params has not been trained."


### END HIDDEN TESTS
