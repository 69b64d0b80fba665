"""The report and the text that the best model wrote."""

import pytest
from expect import as_dict, as_number, as_text

### BEGIN HIDDEN TESTS
# isort: split
import math

from expect import as_arrays, as_count
from fakes import as_shapes, described_params

### END HIDDEN TESTS

MODELS = ("scratch", "rnn", "gru", "lstm", "lstm2", "ngram_sequential", "ngram_bag")
KEYS = ("train_perplexity", "test_perplexity", "num_weights", "num_operations")


def row_of(student, name):
    """One row of the report, as numbers."""
    report = as_dict(student.get("report"), "report", [name])
    row = as_dict(report[name], f"report[{name!r}]", KEYS)
    return {key: as_number(row[key], f"report[{name!r}][{key!r}]") for key in KEYS}


@pytest.mark.check("report.example")
@pytest.mark.parametrize("name", MODELS)
def test_report_example(student, name):
    """Each of the seven models has its four numbers, all positive."""
    for key, value in row_of(student, name).items():
        assert value > 0, f"report[{name!r}][{key!r}] should be positive, but is {value:.4g}."


@pytest.mark.check("sample_text.example")
def test_sample_text_example(student):
    """The text begins with the prefix."""
    text = as_text(student.get("sample_text"), "sample_text").lower()
    prefix = "but brutus is an honorable man"
    assert text.startswith(prefix), f"sample_text should begin with {prefix!r}, but begins with {text[:30]!r}."


### BEGIN HIDDEN TESTS
# Nobody predicts Shakespeare better, unless text was learnt by heart; and guessing among 27 has 27.
RANGES = {"train_perplexity": (1.05, 200), "test_perplexity": (1.5, 200)}


@pytest.mark.check("report")
@pytest.mark.parametrize("name", MODELS)
def test_report_perplexities(student, name):
    """Perplexities of a model that has learnt something, on text it was trained on and on other text."""
    row = row_of(student, name)
    for key, (lowest, highest) in RANGES.items():
        value = row[key]
        assert math.isfinite(value), f"report[{name!r}][{key!r}] is not finite."
        assert lowest < value < highest, f"report[{name!r}][{key!r}] is {value:.4g}: no model of this text has that."


@pytest.mark.check("report")
@pytest.mark.parametrize("name", MODELS)
def test_report_costs(student, name):
    """num_weights is the count of the model's parameters; num_operations follows from the weight matrices."""
    row, params = row_of(student, name), params_of(student, name)
    if params is None:  # the n-gram networks may be kept where the notebook likes
        return
    allowed = counts(params)
    found = row["num_weights"]
    assert found in allowed, (
        f"report[{name!r}]['num_weights'] is {found:.0f}, but the model has {max(allowed)} weights."
    )
    fewest, most = operations(params, as_count(student.get("vocab_size"), "vocab_size"))
    found = row["num_operations"]
    assert fewest / 3 < found < 3 * most, (
        f"report[{name!r}]['num_operations'] is {found:.6g}, but the weight matrices make about {most // 2} "
        "multiply-adds for one character."
    )


def params_of(student, name):
    """Names and shapes of a model's parameters; None for an n-gram network that cannot be found."""
    if name == "scratch":
        values = as_arrays(student.get("scratch_params"), "scratch_params", 5)
        return [(str(i), value.shape) for i, value in enumerate(values)]
    if not name.startswith("ngram"):
        return described_params(student, name)
    found = student.get("ngram_models") if student.has("ngram_models") else None
    if not isinstance(found, dict) or name not in found:
        return None
    return as_shapes(student.stubs.describe_model(found[name]), f"ngram_models[{name!r}]") or None


def counts(params):
    """All parameters; with one bias for each gate, as the formulas have it; the matrices only."""
    sizes = {name: math.prod(shape) for name, shape in params}
    matrices = sum(sizes[name] for name, shape in params if is_matrix(shape))
    second_biases = sum(size for name, size in sizes.items() if name.endswith("h2h_bias"))
    total = sum(sizes.values())
    return {total, total - second_biases, matrices}


def operations(params, vocab_size):
    """The fewest, where products with one-hot vectors are not counted, and the most, where + and × are two."""
    shapes = [shape for _, shape in params if is_matrix(shape)]
    of_symbols = sorted(math.prod(shape) for shape in shapes if any(n % vocab_size == 0 for n in shape))
    total = sum(math.prod(shape) for shape in shapes)
    return total - sum(of_symbols) + of_symbols[0] if of_symbols else total, 2 * total


def is_matrix(shape):
    """Whether it stands for a matrix product; a bias may be a row."""
    return len(shape) >= 2 and min(shape) > 1


@pytest.mark.check("sample_text")
def test_sample_text(student):
    """200 characters of the alphabet follow the prefix."""
    text = as_text(student.get("sample_text"), "sample_text").lower()
    prefix = "but brutus is an honorable man"
    assert text.startswith(prefix), f"sample_text should begin with {prefix!r}."
    follow = len(text) - len(prefix)
    assert abs(follow - 200) <= 1, f"After the prefix come {follow} characters, 200 are asked for."
    strange = set(text) - set(" abcdefghijklmnopqrstuvwxyz")
    assert not strange, f"sample_text holds characters that the text does not: {sorted(strange)[:5]}."


### END HIDDEN TESTS
