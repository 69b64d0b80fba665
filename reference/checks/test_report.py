"""The report and the text that the best model wrote."""

import pytest
from expect import as_dict, as_number, as_text

### BEGIN HIDDEN TESTS
# isort: split
import math

import numpy as np
from expect import as_count
from fakes import described_params

### END HIDDEN TESTS

MODELS = ("rnn", "gru", "lstm", "lstm2")
KEYS = ("train_perplexity", "test_perplexity", "num_weights", "num_operations")


def row_of(student, name):
    """One row of the report, as numbers."""
    report = as_dict(student.get("report"), "report", [name])
    row = as_dict(report[name], f"report[{name!r}]", KEYS)
    return {key: as_number(row[key], f"report[{name!r}][{key!r}]") for key in KEYS}


@pytest.mark.check("report.example")
@pytest.mark.parametrize("name", MODELS)
def test_report_example(student, name):
    """Each of the four models has its four numbers, all positive."""
    for key, value in row_of(student, name).items():
        assert value > 0, f"report[{name!r}][{key!r}] should be positive, but is {value:.4g}."


@pytest.mark.check("sample_text.example")
def test_sample_text_example(student):
    """The text begins with the prefix."""
    text = as_text(student.get("sample_text"), "sample_text").lower()
    prefix = "but brutus is an honorable man"
    assert text.startswith(prefix), f"sample_text should begin with {prefix!r}, but begins with {text[:30]!r}."


### BEGIN HIDDEN TESTS
@pytest.mark.check("report")
@pytest.mark.parametrize("name", MODELS)
def test_report_perplexities(student, name):
    """Perplexities of a model that has learnt something, on text it was trained on and on other text."""
    row, V = row_of(student, name), as_count(student.get("vocab_size"), "vocab_size")
    for key in ("train_perplexity", "test_perplexity"):
        value = row[key]
        assert math.isfinite(value), f"report[{name!r}][{key!r}] is not finite."
        assert 1 <= value <= 10 * V, f"report[{name!r}][{key!r}] is {value:.4g}: guessing among {V} has {V}."


@pytest.mark.check("report")
@pytest.mark.parametrize("name", MODELS)
def test_report_costs(student, name):
    """num_weights is the count of the model's parameters; there are operations."""
    row = row_of(student, name)
    allowed = counts(described_params(student, name))
    found = row["num_weights"]
    assert found in allowed, (
        f"report[{name!r}]['num_weights'] is {found:.0f}, but the model has {max(allowed)} weights."
    )
    operations = row["num_operations"]
    assert 0 < operations < math.inf, f"report[{name!r}]['num_operations'] should be positive."


def counts(params):
    """All parameters; with one bias for each gate, as the formulas have it; the matrices only."""
    sizes = {name: int(np.prod(shape)) for name, shape in params}
    matrices = sum(sizes[name] for name, shape in params if len(shape) >= 2)
    second_biases = sum(size for name, size in sizes.items() if name.endswith("h2h_bias"))
    total = sum(sizes.values())
    return {total, total - second_biases, matrices}


@pytest.mark.check("sample_text")
def test_sample_text(student):
    """200 characters of the alphabet follow the prefix."""
    text = as_text(student.get("sample_text"), "sample_text").lower()
    prefix = "but brutus is an honorable man"
    assert text.startswith(prefix), f"sample_text should begin with {prefix!r}."
    follow = len(text) - len(prefix)
    assert follow >= 200, f"After the prefix come {follow} characters, 200 are asked for."
    strange = set(text) - set(" abcdefghijklmnopqrstuvwxyz")
    assert not strange, f"sample_text holds characters that the text does not: {sorted(strange)[:5]}."


### END HIDDEN TESTS
