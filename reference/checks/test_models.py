"""The four trained models and the parameters of the network from scratch."""

### BEGIN HIDDEN TESTS
import numpy as np
import oracle
import pytest
from expect import Mistake, as_arrays, as_count
from reading import GUESSING, described_params, read

UNITS = 256
EXPECTED = {"rnn": ("rnn", 1), "gru": ("gru", 1), "lstm": ("lstm", 1), "lstm2": ("lstm", 2)}
# An untrained network guesses: whatever its random weights, it loses at least ln V in expectation, and none of hundreds
# lost 0.1 less. To know no more than how often each letter occurs saves 0.45.
LEARNT = 0.2  # nats per character
SHARPNESS = (0.1, 0.3, 1, 3, 10)  # what was learnt counts, also if the model is too sure of it, or not sure enough


@pytest.mark.check("models")
def test_names(student):
    """`models` is a dict with the four names."""
    models = student.get("models")
    if isinstance(models, dict) and not set(EXPECTED) <= set(models):
        raise Mistake("missing_model", f"models has the entries {sorted(map(str, models))}, expected {list(EXPECTED)}.")


@pytest.mark.check("models")
@pytest.mark.parametrize("name", list(EXPECTED))
def test_models(student, name):
    """The right cell, number of layers and units."""
    params = described_params(student, name)
    cell, num_layers = EXPECTED[name]
    gates, layers = oracle.GATES[cell], recurrent_layers(name, params)
    has_one_for_each_gate = gates > 1 and layers == [1] * (gates * num_layers)
    if not layers or has_one_for_each_gate:  # cells of the student's own, whose weights may be cut in any way
        blocks = gates * (2 * num_layers - 1)
        assert square_blocks(params) == blocks, (
            f"models[{name!r}] does not have the weights of {num_layers} {cell} layer(s) with {UNITS} units."
        )
        return
    found = f"models[{name!r}] has {len(layers)} layer(s) with {layers} blocks of weights."
    if set(layers) != {gates}:
        raise Mistake("wrong_cell", found)
    if reads_backwards(params):
        raise Mistake("bidirectional", found)
    if len(layers) != num_layers:
        raise Mistake("wrong_layers", found)


def recurrent_layers(name, params):
    """The gates of each layer, from the shapes of the hidden-to-hidden weights [gates · units, units]."""
    shapes = [shape for key, shape, _ in params if key.endswith("h2h_weight")]
    for shape in shapes:
        if len(shape) != 2 or min(shape) != UNITS or max(shape) % UNITS:
            raise Mistake("wrong_units", f"models[{name!r}] has hidden-to-hidden weights {list(shape)}.")
    return [max(shape) // UNITS for shape in shapes]


def reads_backwards(params):
    """Whether more than one layer reads the symbols, or one the outputs of two."""
    inputs = [min(shape) for key, shape, _ in params if key.endswith("i2h_weight") and shape]
    return sum(n not in (0, UNITS) for n in inputs) > 1


def square_blocks(params):
    """How many [units, units] blocks the weights hold; those that are applied to the input, too, may hold more rows."""
    shapes = [shape for _, shape, _ in params if len(shape) == 2 and any(n and n % UNITS == 0 for n in shape)]
    return sum((rows // UNITS) * (columns // UNITS) for rows, columns in shapes)


@pytest.mark.check("models")
def test_scratch_params(student):
    """The five trained parameters of the network from scratch."""
    V = as_count(student.get("vocab_size"), "vocab_size")
    found = student.get("scratch_params")
    if isinstance(found, (list, tuple)) and len(found) == 2 and isinstance(found[0], (list, tuple)):
        raise Mistake("with_perplexities", "scratch_params holds what train_and_predict_rnn returns.")
    values = as_arrays(found, "scratch_params", 5)
    width = values[2].size  # num_hiddens may have changed since
    sizes = [value.size for value in values]
    if sizes != [V * width, width * width, width, width * V, V]:
        raise Mistake("wrong_shape", f"scratch_params has arrays of sizes {sizes}.")
    if not all(np.isfinite(value).all() for value in values):
        raise Mistake("not_finite", "scratch_params is not finite.")


@pytest.mark.check("models")
@pytest.mark.parametrize("name", [*EXPECTED, "scratch"])
def test_trained(student, test_text, name):
    """On text that it was not trained on, each model does better than guessing."""
    scores, labels = read(student, name, test_text)
    if not np.isfinite(scores).all():
        raise Mistake("not_finite", f"The scores of {name} are not finite.")
    nats = min(oracle.nats(scores * factor, labels).mean() for factor in SHARPNESS)
    if nats > GUESSING - LEARNT:
        raise Mistake("untrained", f"{name} needs {nats:.3f} nats per character, and guessing {GUESSING:.3f}.")


### END HIDDEN TESTS
