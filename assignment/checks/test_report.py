"""The report and the text that the best model wrote."""

import pytest
from expect import as_dict, as_number, as_text


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
