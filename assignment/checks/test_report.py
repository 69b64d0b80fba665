"""The report and the text that the best model wrote."""

import pytest
from expect import Mistake, as_dict, as_number, as_text


MODELS = ("scratch", "rnn", "gru", "lstm", "lstm2", "ngram_sequential", "ngram_bag")
KEYS = ("train_perplexity", "test_perplexity", "num_weights", "num_operations")


def row_of(student, name):
    """One row of the report, as numbers."""
    report = as_dict(student.get("report"), "report", [])
    if name not in report:
        raise Mistake("missing_row", f"report has no entry {name!r}.")
    row = as_dict(report[name], f"report[{name!r}]", [])
    missing = [key for key in KEYS if key not in row]
    if missing:
        raise Mistake("missing_number", f"report[{name!r}] has no entry {missing[0]!r}.")
    return {key: as_number(row[key], f"report[{name!r}][{key!r}]") for key in KEYS}


@pytest.mark.check("report.example")
@pytest.mark.parametrize("name", MODELS)
def test_report_example(student, name):
    """Each of the seven models has its four numbers, all positive."""
    for key, value in row_of(student, name).items():
        assert value > 0, f"report[{name!r}][{key!r}] should be positive, but is {value:.4g}."


PREFIX = "but brutus is an honorable man"


def continuation(student):
    """What follows the prefix in sample_text."""
    text = as_text(student.get("sample_text"), "sample_text")
    if not text.lower().startswith(PREFIX):
        raise Mistake("wrong_prefix", f"sample_text should begin with {PREFIX!r}, but begins with {text[:30]!r}.")
    return text[len(PREFIX) :]


@pytest.mark.check("sample_text.example")
def test_sample_text_example(student):
    """The text begins with the prefix."""
    continuation(student)
