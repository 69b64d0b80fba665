"""The report and the text that the best model wrote."""

import pytest
from expect import Mistake, as_dict, as_number, as_text

### BEGIN HIDDEN TESTS
# isort: split
import math

import numpy as np
from expect import as_arrays, as_count
from fakes import TableModel, alphabet
from reading import ALPHABET, as_shapes, described_params, nats_per_char, symbols_of

### END HIDDEN TESTS

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


### BEGIN HIDDEN TESTS
# -- perplexities ---------------------------------------------------------------------------------------------

# Nobody predicts Shakespeare better, unless text was learnt by heart, and no n-gram network by far; guessing has 27.
LOWEST_TRAIN, LOWEST_TEST, LOWEST_NGRAM, HIGHEST = 1.05, 1.5, 3.0, 200
NO_BETTER = 26.9  # than guessing
RECURRENT = MODELS[:5]
SIMILAR = 0.6  # nats per character; one part of the text differs from another by less


@pytest.mark.check("report")
def test_report_measured(student, test_text):
    """The test perplexities belong to the models; if evaluate_perplexity is at fault, that is judged elsewhere."""
    rows = [row_of(student, name) for name in RECURRENT]
    nats = np.array([nats_per_char(student, name, test_text) for name in RECURRENT])
    train, test = (np.array([row[f"{part}_perplexity"] for row in rows]) for part in ("train", "test"))
    if not evaluator_is_right(student, test_text):
        return
    for mistake, per_nat in (("in_nats", 1), ("in_bits", 1 / math.log(2))):
        for found in (train, test):
            if np.allclose(found, nats * per_nat, rtol=0.2):
                raise Mistake(mistake)
    for name, value, measured in zip(RECURRENT, test, nats, strict=True):
        if 0 < value < math.inf and abs(math.log(value) - measured) > SIMILAR:
            raise Mistake("of_another_model", f"report[{name!r}] says {value:.4g}; measured: exp({measured:.4g}).")


def evaluator_is_right(student, text):
    """Whether the notebook's evaluate_perplexity says about what is measured here."""
    found = student.stubs.own_perplexity("rnn", symbols_of(text[:2000]))
    if not isinstance(found, float) or not 0 < found < math.inf:
        return False
    return abs(math.log(found) - nats_per_char(student, "rnn", text)) < SIMILAR


@pytest.mark.check("report")
@pytest.mark.parametrize("name", MODELS)
def test_report_perplexities(student, name):
    """Perplexities of a model that has learnt something, on text it was trained on and on other text."""
    row, is_ngram = row_of(student, name), name.startswith("ngram")
    train, test = row["train_perplexity"], row["test_perplexity"]
    observed = f"report[{name!r}] has perplexity {train:.4g} in training and {test:.4g} on the test text."
    if max(train, test) == math.inf:
        raise Mistake("not_finite", observed)
    if train <= LOWEST_TRAIN or test <= (LOWEST_NGRAM if is_ngram else LOWEST_TEST):
        raise Mistake("too_low", observed)
    if max(train, test) >= HIGHEST:
        raise Mistake("too_high", observed)
    if train == test != round(test, 3):  # two texts never agree to so many digits
        raise Mistake("same_text", observed)
    if is_ngram and min(train, test) > NO_BETTER:
        raise Mistake("ngram_untrained", observed)


@pytest.mark.check("report")
def test_report_rows_are_apart(student):
    """No two models have the same perplexity, to all digits."""
    found = [row_of(student, name)["test_perplexity"] for name in MODELS]
    exact = [value for value in found if value != round(value, 3)]
    if len(set(exact)) < len(exact):
        raise Mistake("same_model")


# -- costs ----------------------------------------------------------------------------------------------------


@pytest.mark.check("report")
@pytest.mark.parametrize("name", MODELS)
def test_report_costs(student, name):
    """num_weights is the count of the model's parameters; num_operations follows from the weight matrices."""
    row, params = row_of(student, name), params_of(student, name)
    if params is None:  # the n-gram networks may be kept where the notebook likes
        return
    allowed, found = set().union(*counts(params).values()), row["num_weights"]
    if found not in allowed:
        observed = f"report[{name!r}]['num_weights'] is {found:.0f}, but the model has {max(allowed)} weights."
        raise Mistake("too_few_weights" if found < max(allowed) else "too_many_weights", observed)
    fewest, most = operations(params, as_count(student.get("vocab_size"), "vocab_size"))
    found = row["num_operations"]
    observed = (
        f"report[{name!r}]['num_operations'] is {found:.6g}, but the weight matrices make about {most // 2} "
        "multiply-adds for one character."
    )
    if found < 0.8 * fewest:
        raise Mistake("too_few_operations", observed)
    if found > 3 * most:  # the way back may be counted, too
        raise Mistake("too_many_operations", observed)


@pytest.mark.check("report")
def test_report_counts_alike(student):
    """All weights are counted in the same way."""
    ways = []
    for name in MODELS:
        params, found = params_of(student, name), row_of(student, name)["num_weights"]
        if params is not None:
            ways.append({way for way, allowed in counts(params).items() if found in allowed})
    if not set.intersection(*ways):
        raise Mistake("mixed_counts")


@pytest.mark.check("report")
def test_report_encodings(student):
    """If the n-gram networks are found: the one that sees a sequence has more inputs than the one that sees a bag."""
    shapes = [{shape for _, shape, _ in params_of(student, name) or [] if is_matrix(shape)} for name in MODELS[5:]]
    sequence, bag = (sum(math.prod(shape) for shape in of_one) for of_one in shapes)
    if shapes[0] & shapes[1] and sequence <= bag:  # with one output layer in common, they have the same units
        raise Mistake("wrong_encoding", f"The networks have {sequence} and {bag} weights in their matrices.")


def params_of(student, name):
    """A model's parameters as name, shape, is it learnt?; None for an n-gram network that cannot be found."""
    if name == "scratch":
        values = as_arrays(student.get("scratch_params"), "scratch_params", 5)
        return [(str(i), value.shape, True) for i, value in enumerate(values)]
    if not name.startswith("ngram"):
        return described_params(student, name)
    found = student.get("ngram_models") if student.has("ngram_models") else None
    if not isinstance(found, dict) or name not in found:
        return None
    return as_shapes(student.stubs.describe_model(found[name]), f"ngram_models[{name!r}]") or None


def counts(params):
    """All parameters; with one bias for each gate, as the formulas have it; the matrices only. Constants may count."""
    ways = {
        "all": params,
        "one bias a gate": [param for param in params if not param[0].endswith("h2h_bias")],
        "no biases": [param for param in params if is_matrix(param[1])],
    }
    return {way: {size(some), size(param for param in some if param[2])} for way, some in ways.items()}


def size(params):
    """How many numbers they hold."""
    return sum(math.prod(shape) for _, shape, _ in params)


def operations(params, vocab_size):
    """The fewest, where products with one-hot vectors are not counted, and the most, where + and × are two."""
    shapes = [shape for _, shape, _ in params if is_matrix(shape)]
    of_symbols = sorted(math.prod(shape) for shape in shapes if any(n % vocab_size == 0 for n in shape))
    total = sum(math.prod(shape) for shape in shapes)
    return total - sum(of_symbols) + of_symbols[0] if of_symbols else total, 2 * total


def is_matrix(shape):
    """Whether it stands for a matrix product; a bias may be a row."""
    return len(shape) >= 2 and min(shape) > 1


# -- sample_text ----------------------------------------------------------------------------------------------


@pytest.mark.check("sample_text")
def test_sample_text(student, rng):
    """200 characters of the alphabet follow the prefix."""
    text = continuation(student)
    if text.lower().startswith(PREFIX):
        raise Mistake("prefix_twice")
    observed = f"{len(text)} characters follow the prefix."
    if len(text) == 200 - len(PREFIX):
        raise Mistake("prefix_counted", observed)
    if len(text) != 200 and len(text) - 200 != surplus(student, rng):
        raise Mistake("wrong_length", observed)
    strange = sorted(set(text) - set(ALPHABET))
    if strange:
        is_capital = all(letter.lower() in ALPHABET for letter in strange)
        raise Mistake("capitals" if is_capital else "other_characters", f"sample_text holds {strange[:5]}.")


def surplus(student, rng):
    """How many characters too many the notebook's predict_rnn_gluon writes, which is judged elsewhere."""
    fake, target = TableModel(rng, 4), student.ref("predict_rnn_gluon")
    rest = [4, student.ctx, *alphabet(student, rng, 4)]
    prefix = "".join(rest[2][i] for i in range(4))
    text = student.stubs.judge_with_model(target, {}, fake.begin, fake.step, [prefix, 9], rest)
    return len(as_text(text, "predict_rnn_gluon(...)")) - 13


### END HIDDEN TESTS
