"""What the hidden checks compare with is right: numpy against MXNet, gradients against differences, mistakes apart."""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHECKS = Path(__file__).parents[2] / "reference" / "checks"
sys.path.insert(0, str(CHECKS))  # as pytest does for the checks themselves
with warnings.catch_warnings():  # MXNet's last release and numpy's last deprecations
    warnings.simplefilter("ignore")
    import mxnet as mx
    from mxnet import autograd, gluon, nd
import course  # noqa: E402  the path is set above
import expect  # noqa: E402
import fakes  # noqa: E402
import oracle  # noqa: E402
import reading  # noqa: E402
import weights as readable  # noqa: E402

B, T, V, H = 3, 5, 7, 4


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(157)


def load_stubs(notebook: dict[str, Any]) -> dict[str, Any]:
    """The stubs beside a notebook with these globals, as they are loaded in the student's process."""
    stubs = {"__name__": "stubs", "notebook": notebook}
    exec(compile((CHECKS / "stubs.py").read_text(encoding="utf-8"), "stubs.py", "exec"), stubs)
    return stubs


def arrays(values: Any) -> list[Any]:
    """MXNet arrays of numpy arrays."""
    return [nd.array(value, dtype="float32") for value in values]


def random_case(rng: np.random.Generator) -> tuple[Any, Any, list[Any], Any]:
    """One-hot inputs [T, B, V], a state, parameters, labels [T, B]."""
    inputs = oracle.to_onehot(rng.integers(0, V, (B, T)), V)
    params = [rng.normal(0, 0.5, shape) for shape in ((V, H), (H, H), (H,), (H, V), (V,))]
    return inputs, rng.normal(0, 0.5, (B, H)), params, rng.integers(0, V, (T, B))


# -- forward --------------------------------------------------------------------------------------------------


def test_onehot_puts_time_first() -> None:
    """Entry [t, b] of the result is the unit vector of X[b, t]."""
    X = np.array([[0, 2], [1, 1]])
    assert oracle.to_onehot(X, 3).tolist() == [[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 1, 0]]]


@pytest.mark.parametrize(
    ("kind", "num_layers"), [("rnn", 1), ("rnn", 2), ("gru", 1), ("gru", 2), ("lstm", 1), ("lstm", 2)]
)
def test_recurrent_layers_agree_with_the_fused_ones_of_mxnet(kind: str, num_layers: int) -> None:
    """The order of the gates and all formulas are Gluon's, to float32 precision."""
    draw = np.random.default_rng(num_layers)
    stubs = load_stubs({})
    layer, dense = stubs["make_layer"](kind, H, num_layers), gluon.nn.Dense(V)
    X = draw.integers(0, V, (B, T))
    block = [layer, dense]
    for part in block:
        part.initialize()
    hidden = layer(nd.one_hot(nd.array(X.T), V))
    dense(hidden.reshape((-1, H)))
    for part in block:
        for param in part.collect_params().values():
            param.set_data(nd.array(draw.uniform(-0.5, 0.5, param.shape)))
    output = dense(layer(nd.one_hot(nd.array(X.T), V)).reshape((-1, H))).asnumpy()
    weights = [param.data().asnumpy() for param in layer.collect_params().values()]
    layers = [weights[4 * i : 4 * i + 4] for i in range(num_layers)]
    expected = oracle.gluon_model(kind, layers, (dense.weight.data().asnumpy(), dense.bias.data().asnumpy()), X, V)
    assert np.allclose(output, expected, **expect.FORWARD)


@pytest.mark.parametrize(
    ("model", "kind", "num_layers"), [("rnn", "rnn", 1), ("gru", "gru", 1), ("lstm", "lstm", 1), ("lstm2", "lstm", 2)]
)
@pytest.mark.parametrize("size", [0, 6, H], ids=("one-hot", "an embedding", "an embedding as wide as the layer"))
def test_weights_are_read_as_the_network_that_they_belong_to(model: str, kind: str, num_layers: int, size: int) -> None:
    """Whatever stands before the layers, one of the readings is what the network answers, and a stranger has none."""
    draw = np.random.default_rng(size)
    embedding = gluon.nn.Embedding(V, size or V)
    layer, dense = load_stubs({})["make_layer"](kind, H, num_layers), gluon.nn.Dense(V)
    X = nd.array(draw.integers(0, V, (B, T)))
    block = [embedding, layer, dense] if size else [layer, dense]
    for part in block:
        part.initialize(mx.init.Uniform(0.5))
    hidden = layer(embedding(X.T) if size else nd.one_hot(X.T, V))
    output = dense(hidden.reshape((-1, H))).reshape((T, B, V)).asnumpy()
    params = [(name, one.data().asnumpy()) for part in block for name, one in part.collect_params().items()]
    found = readable.scores(model, params, X.asnumpy().astype(int), V)
    assert any(np.allclose(output, one, **expect.FORWARD) for one in found)
    assert readable.scores(model, [*params, ("extra", np.zeros(3))], X.asnumpy().astype(int), V) == []
    assert readable.scores("my own", params, X.asnumpy().astype(int), V) == []


LAYERS = [gluon.rnn.RNN, gluon.rnn.GRU, gluon.rnn.LSTM, functools.partial(gluon.rnn.LSTM, num_layers=2)]


@pytest.mark.parametrize("layout", ["TNC", "NTC"])
@pytest.mark.parametrize("make", [*LAYERS, functools.partial(gluon.rnn.LSTM, bidirectional=True)])
def test_reading_faster_changes_no_answer(make: Callable[..., Any], layout: str) -> None:
    """A recurrent layer that is spared laying out its parameters computes the very same, also when these change."""
    stubs, draw = load_stubs({}), np.random.default_rng(1)
    layer = make(H, layout=layout)
    layer.initialize(mx.init.Uniform(0.5))
    states = layer.begin_state(batch_size=B), layer.begin_state(batch_size=B)
    before = gluon.rnn.rnn_layer._RNNLayer._forward_kernel
    for step in range(12):
        inputs = nd.array(draw.normal(size=(1, B, V) if layout == "TNC" else (B, 1, V)))
        with stubs["_quick_layers"]():
            assert gluon.rnn.rnn_layer._RNNLayer._forward_kernel is not before
            fast, *states[0][:] = _flat(layer(inputs, states[0]))
        slow, *states[1][:] = _flat(layer(inputs, states[1]))
        for mine, theirs in zip([fast, *states[0]], [slow, *states[1]], strict=True):
            assert np.array_equal(mine.asnumpy(), theirs.asnumpy())
        param = list(layer.collect_params().values())[step % 4]
        if step in (3, 4, 7):
            param.data()[:] *= 1.5  # as a trainer does
        elif step == 9:
            param.set_data(nd.random.normal(shape=param.shape))
        elif step == 10:
            param.initialize(mx.init.Uniform(0.7), force_reinit=True)
    assert gluon.rnn.rnn_layer._RNNLayer._forward_kernel is before


def _flat(answer: Any) -> list[Any]:
    output, states = answer
    return [output, *states]


def test_reading_faster_leaves_what_the_student_made() -> None:
    """A method that a layer overrides, an operator of the notebook's own and a recorded gradient are as ever."""
    stubs, inputs = load_stubs({}), nd.array(np.random.default_rng(1).normal(size=(1, B, V)))

    class Twice(gluon.rnn.GRU):
        def _forward_kernel(self, *args: Any, **kwargs: Any) -> Any:
            outputs, states = super()._forward_kernel(*args, **kwargs)
            return 2 * outputs, states

    class Negative(gluon.rnn.GRU):
        def forward(self, *args: Any) -> Any:
            outputs, states = super().forward(*args)
            return -outputs, states

    for made in (Twice(H), Negative(H), gluon.rnn.GRU(H)):
        made.initialize(mx.init.Uniform(0.5))
        state, operator = made.begin_state(batch_size=B), nd.RNN
        plain = made(inputs, state)[0].asnumpy()
        weight = next(iter(made.collect_params().values()))
        with autograd.record():
            loss = made(inputs, state)[0].sum()
        loss.backward()
        gradient = weight.grad().asnumpy()
        assert gradient.any()
        weight.zero_grad()
        with stubs["_quick_layers"]():
            for _ in range(3):
                assert np.array_equal(made(inputs, state)[0].asnumpy(), plain)
            with autograd.record():
                loss = made(inputs, state)[0].sum()
            loss.backward()
            assert np.array_equal(weight.grad().asnumpy(), gradient)
        nd.RNN = lambda *args, operator=operator, **kwargs: [3 * one for one in operator(*args, **kwargs)]
        try:
            with stubs["_quick_layers"]():
                assert np.array_equal(made(inputs, state)[0].asnumpy(), 3 * plain)
        finally:
            nd.RNN = operator


@pytest.mark.parametrize("activation", [np.tanh, oracle.linear])
def test_gradients_agree_with_differences(rng: np.random.Generator, activation: Any) -> None:
    """Backpropagation through time is the derivative of the forward pass, for every parameter."""
    inputs, state, params, _ = random_case(rng)
    weights = rng.normal(size=(T, B, V))
    grads = oracle.recurrence_gradients(inputs, state, params, weights, activation)
    step = 1e-6
    for number, grad in enumerate(grads):
        for place in list(np.ndindex(grad.shape))[:: max(1, grad.size // 6)]:
            ends = []
            for sign in (1, -1):
                moved = [param.copy() for param in params]
                moved[number][place] += sign * step
                ends.append((oracle.recurrence(inputs, state, moved, activation)[0] * weights).sum())
            assert grad[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-7)


def test_the_recurrence_and_its_gradients_agree_with_autograd(rng: np.random.Generator) -> None:
    """The tanh recurrence and the mean cross-entropy, in MXNet's own arithmetic."""
    inputs, state, params, labels = random_case(rng)
    theirs = arrays(params)
    for param in theirs:
        param.attach_grad()
    with autograd.record():
        hidden, outputs = nd.array(state), []
        for x in arrays(inputs):
            hidden = nd.tanh(nd.dot(x, theirs[0]) + nd.dot(hidden, theirs[1]) + theirs[2])
            outputs.append(nd.dot(hidden, theirs[3]) + theirs[4])
        loss = gluon.loss.SoftmaxCELoss()(nd.concat(*outputs, dim=0), nd.array(labels.reshape(-1))).mean()
    loss.backward()
    scores, states = oracle.recurrence(inputs, state, params)
    assert np.allclose(scores, np.stack([output.asnumpy() for output in outputs]), **expect.FORWARD)
    assert np.allclose(states[-1], hidden.asnumpy(), **expect.FORWARD)
    assert oracle.nats(scores, labels).mean() == pytest.approx(float(loss.asscalar()), rel=1e-5)
    d_outputs = (np.exp(oracle.log_softmax(scores)) - np.eye(V)[labels]) / labels.size
    for grad, param in zip(oracle.recurrence_gradients(inputs, state, params, d_outputs), theirs, strict=True):
        assert np.allclose(grad, param.grad.asnumpy(), rtol=1e-3, atol=1e-6)


# -- clipping, text, encodings --------------------------------------------------------------------------------


def test_clipping_has_one_norm_for_all_gradients() -> None:
    """3 and 4 have norm 5; zero gradients stay."""
    assert [float(g) for g in oracle.clip([np.array(3.0), np.array(4.0)], 2.5)] == [1.5, 2.0]
    assert [float(g) for g in oracle.clip([np.array(3.0), np.array(4.0)], 5.0)] == [3.0, 4.0]
    assert [float(g) for g in oracle.clip([np.array(0.0)], 1.0)] == [0.0]


def test_minibatches_by_hand(rng: np.random.Generator) -> None:
    """A text of 11 in rows of 5, two columns at a time; five windows of two, each once."""
    text = list(range(11))
    first, second = oracle.consecutive_minibatches(text, 2, 2)
    assert [array.tolist() for array in first] == [[[0, 1], [5, 6]], [[1, 2], [6, 7]]]
    assert [array.tolist() for array in second] == [[[2, 3], [7, 8]], [[3, 4], [8, 9]]]
    batches = oracle.random_minibatches(text, 1, 2, rng)
    assert sorted(X[0].tolist() for X, _ in batches) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert all((Y == X + 1).all() for X, Y in batches)


def test_encodings_by_hand() -> None:
    """Contexts, their one-hots side by side, and their counts."""
    X, y = oracle.ngram_pairs([2, 0, 2, 1], 3)
    assert (X.tolist(), y.tolist()) == ([[2, 0, 2]], [1])
    assert oracle.encode_sequential(X, 3).tolist() == [[0, 0, 1, 1, 0, 0, 0, 0, 1]]
    assert oracle.encode_bag(X, 3).tolist() == [[1, 0, 2]]


def test_a_table_machine_needs_all_of_the_past(rng: np.random.Generator) -> None:
    """The greedy text differs when the state is lost or when part of the prefix is not read."""
    differs = 0
    for _ in range(50):
        machine = oracle.TableMachine(rng, 9)
        prefix = [int(i) for i in rng.integers(0, 9, 6)]
        text = machine.greedy(prefix, 12)
        assert text[:6] == prefix
        assert len(text) == 18
        differs += machine.greedy(prefix[-1:], 12)[1:] != text[6:]
    assert differs >= 48


# -- training -------------------------------------------------------------------------------------------------


class NoNotebook:
    """Stands for a student whose notebook defines nothing."""

    def has(self, name: str) -> bool:
        return False


def run_of(seed: int, case: Any, is_random: bool) -> tuple[Any, list[Any]]:
    """One run of the training check, and the minibatches of its epochs."""
    draw = np.random.default_rng(seed)
    run = course.Course(NoNotebook(), draw, case, is_random)
    epochs = [
        oracle.random_minibatches(run.corpus, run.B, run.T, draw)
        if is_random
        else oracle.consecutive_minibatches(run.corpus, run.B, run.T)
        for _ in range(course.NUM_EPOCHS)
    ]
    return run, epochs


@pytest.mark.parametrize("is_random", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_mistakes_lie_far_beyond_the_tolerance(seed: int, is_random: bool) -> None:
    """Every known mistake of a training loop moves the parameters at least twenty tolerances away in some case."""
    furthest: dict[str, float] = {}
    for case in course.CASES:
        run, epochs = run_of(seed, case, is_random)
        right, losses = oracle.train(run.right, run.params, epochs, run.lr, run.theta)
        assert max(oracle.perplexities(losses)) < 1000
        for mistake, changes in course.MISTAKES:
            loop = replace(run.right, **changes)
            if loop == run.right or (is_random and "carry" in changes):
                continue
            wrong, _ = oracle.train(loop, run.params, epochs, run.lr, run.theta)
            gap = max(float(np.abs(a - b).max()) for a, b in zip(wrong, right, strict=True))
            key = f"{mistake} {changes}"
            furthest[key] = max(gap, furthest.get(key, 0.0))
    # to begin each minibatch, or each epoch, with zeros is right; what then goes on is nothing
    assert len(furthest) == len(course.MISTAKES) - 1 - is_random
    for key, gap in furthest.items():
        assert gap > 20 * expect.TRAINED["atol"], key


@pytest.mark.parametrize("case_number", range(len(course.CASES)))
def test_training_agrees_with_mxnet(case_number: int) -> None:
    """The trajectory of the toy recurrence under autograd, clip_global_norm and a plain update is the oracle's."""
    run, epochs = run_of(case_number, course.CASES[case_number], is_random=False)
    stubs = load_stubs({})
    stubs["set_toy"](arrays(run.params))
    params, found = stubs["toy_get_params"](), []
    for minibatches in epochs:
        state, losses = (nd.zeros((run.B, course.H)),), []
        for X, Y in minibatches:
            state = tuple(array.detach() for array in state)
            with autograd.record():
                onehot = [nd.one_hot(column, len(run.corpus)) for column in nd.array(X).T]
                outputs, state = stubs["toy_rnn"](onehot, state, params)
                labels = nd.array(Y.T.reshape(-1))
                loss = gluon.loss.SoftmaxCELoss()(nd.concat(*outputs, dim=0), labels).mean()
            loss.backward()
            gluon.utils.clip_global_norm([param.grad for param in params], run.theta)
            for param in params:
                param[:] = param - run.lr * param.grad
            losses.append(float(loss.asscalar()))
        found.append(math.exp(np.mean(losses)))
    expected, losses = oracle.train(run.right, run.params, epochs, run.lr, run.theta)
    tolerance = {name: value / 10 for name, value in expect.TRAINED.items()}
    assert all(np.allclose(a.asnumpy(), b, **tolerance) for a, b in zip(params, expected, strict=True))
    assert np.allclose(found, oracle.perplexities(losses), rtol=expect.PERPLEXITY["rtol"] / 10)


# -- what came back -------------------------------------------------------------------------------------------

JUNK = [None, 3, "x", [], {}, object(), [[1, 2], [3]], float("nan"), 10**400, np.array([np.nan]), {"a": 1}, [None, "x"]]


@pytest.mark.parametrize("value", JUNK, ids=lambda value: type(value).__name__)
def test_what_cannot_be_read_is_a_failed_check(value: Any) -> None:
    """No value that a notebook may return makes a check itself break."""
    readers = (
        lambda: expect.as_array(value, "it", (9, 9)),
        lambda: expect.as_arrays(value, "it", 5, (2, 2)),
        lambda: expect.as_state(value, "it", (2, 2)),
        lambda: expect.as_pair(value, "it", "a pair") and expect.as_array(value, "it", (9, 9)),
        lambda: expect.as_number([value], "it"),
        lambda: expect.as_numbers(value, "it", 5),
        lambda: expect.as_text([value], "it"),
        lambda: expect.as_dict(value, "it", ["rnn"]),
        lambda: expect.as_indices(value, "it", 3),
    )
    for read in readers:
        with pytest.raises(AssertionError, match=r"\w"):
            read()


@pytest.mark.parametrize("form", [np.float32, np.int64, np.array, lambda x: np.array([x]), float, int])
def test_a_number_may_come_in_any_form(form: Any) -> None:
    """A perplexity is a number, whether Python or numpy holds it, alone or in an array; so is a list of them."""
    value = form(5)
    assert expect.as_number(value, "it") == 5
    assert expect.as_numbers([value, value], "they", 2) == [5, 5]
    assert expect.as_numbers(np.array([5, 5], "float32"), "they", 2) == [5, 5]


def test_letters_survive_any_normalisation() -> None:
    """A notebook may lower its prefix or drop what is no letter before it reads it."""
    assert fakes.LETTERS.islower()
    assert fakes.LETTERS.isalpha()
    assert max(case[0] * (case[1] * case[2] + 1) for case in course.CASES) <= len(fakes.LETTERS)


def test_a_callback_called_in_the_wrong_way_is_a_failed_check() -> None:
    """A notebook that calls what it was given with other arguments hears which ones are right."""
    with pytest.raises(AssertionError, match=r"init_rnn_state\(batch_size, num_hiddens, ctx\)"):
        expect.zeros_for(2, 3)(2)


def test_the_message_shows_the_worst_entry() -> None:
    """Where, what was found, what was expected."""
    with pytest.raises(AssertionError, match=r"X is 3 at \[1\], expected 2\. Why"):
        expect.assert_close([1, 3], [1, 2], "X", expect.FORWARD, "Why.")


# -- stubs ----------------------------------------------------------------------------------------------------


def test_helpers_are_replaced_for_one_call_only() -> None:
    """A function is judged beside good helpers; afterwards the notebook is as it was, also when it raised."""
    notebook: dict[str, Any] = {"helper": "own"}
    stubs = load_stubs(notebook)
    seen = stubs["judge_alone"](lambda: (notebook["helper"], notebook["other"]), {"helper": 1, "other": 2})
    assert seen == (1, 2)

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        stubs["judge_alone"](fail, {"helper": 1, "other": 2})
    assert notebook == {"helper": "own"}


def test_a_loop_may_lean_on_helpers_of_its_own_form() -> None:
    """One that asks for more than the contract says gets the notebook's own helpers; the first error is what counts."""
    notebook: dict[str, Any] = {"data_iter_random": lambda *_: [1, 2, 3]}
    stubs, forgotten = load_stubs(notebook), []

    def loop() -> int:
        return len(notebook["data_iter_random"]([], 1, 1))

    def broken() -> None:
        raise ValueError("first" if "to_onehot" in notebook else "second")

    helpers = {"data_iter_random": lambda *_: [], "to_onehot": None}
    assert stubs["judge_loop"](loop, helpers, lambda: forgotten.append(1)) == 3
    assert len(forgotten) == 2
    with pytest.raises(ValueError, match="first"):
        stubs["judge_loop"](broken, helpers, lambda: None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("pass", []),
        ("indices.append(1)", ["indices"]),
        ("model.hidden.weight.grad()[:] = 0", ["model"]),
        ("model.collect_params().setattr('grad_req', 'null')", ["model"]),
        ("notebook['vocab_size'] = 28", ["vocab_size"]),
        ("notebook['scratch_params'][0][0] = 7", ["scratch_params"]),
        ("notebook['report']['rnn']['num_weights'] += 1", ["report"]),
        ("notebook['models']['rnn'].weight.set_data(nd.ones((2, 2)))", ["models"]),
        ("notebook['train_indices'][1000] = 0", ["train_indices"]),
        ("del notebook['ctx']", ["ctx"]),
    ],
)
def test_what_measuring_changes_is_seen(change: str, expected: list[str]) -> None:
    """Values, gradients and the notebook's variables are compared before and after, whatever they are made of."""

    class Model(gluon.Block):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = gluon.nn.Dense(2, in_units=2)

    other, model = gluon.nn.Dense(2, in_units=2), Model()
    other.initialize()
    model.initialize()
    notebook: dict[str, Any] = {"vocab_size": 27, "ctx": mx.cpu(), "train_indices": [1, 2] * 1000}
    notebook |= {"models": {"rnn": other}, "scratch_params": [nd.zeros(2)], "report": {"rnn": {"num_weights": 5}}}

    def measure(model: Any, indices: Any) -> float:
        if not isinstance(indices, list):
            raise TypeError
        exec(change, {"model": model, "indices": indices, "notebook": notebook, "nd": nd})
        return 5.0

    assert load_stubs(notebook)["judge_measuring"](measure, {}, model, [0, 1, 2]) == [5.0, expected]


@pytest.mark.parametrize("known", [list, np.ndarray, nd.NDArray])
def test_a_text_is_offered_in_the_forms_that_are_in_use(known: Any) -> None:
    """A function that knows lists, numpy arrays or MXNet arrays only is called with what it knows."""

    def function(indices: Any) -> Any:
        if not isinstance(indices, known):
            raise TypeError
        return [int(i.asscalar() if isinstance(i, nd.NDArray) else i) for i in indices]

    assert load_stubs({})["call_in_any_form"](function, [3, 1, 2]) == [3, 1, 2]


def test_printing_may_lean_on_the_notebook() -> None:
    """A loop whose printing fits the notebook's own network only is called with that; one that raises, raises."""
    own = {"rnn": "own", "get_params": 0, "init_rnn_state": 0, "num_hiddens": 256, "vocab_size": 27}
    run, seen = load_stubs(own)["judge_printing"], []

    def loop(rnn: str, *rest: Any) -> None:
        seen.append(rnn)
        if rnn == "toy":
            raise ValueError("sizes do not fit")

    run(loop, {}, ["toy", 0, 0, 4, 5, None], [])
    assert list(dict.fromkeys(seen)) == ["toy", "own"]
    with pytest.raises(NameError):
        run(lambda *_: undefined, {}, ["toy"], [])  # noqa: F821  as in a branch that was never tried


@pytest.mark.parametrize("activation", [None, "log_softmax", "relu", "tanh", "sigmoid", "softmax"])
def test_an_activated_output_is_told_from_scores(rng: np.random.Generator, activation: str | None) -> None:
    """Scores, less their mean in a row, scale with the output layer, with a minus, too; nothing else does."""

    class MLP(gluon.nn.Sequential):
        def __init__(self, vocab_size: int, num_hiddens: int) -> None:
            super().__init__()
            self.add(gluon.nn.Dense(num_hiddens, activation="relu"), gluon.nn.Dropout(0.5), gluon.nn.Dense(vocab_size))

        def forward(self, x: Any) -> Any:
            scores = super().forward(x)
            return getattr(nd, activation)(scores) if activation else scores

    stubs, inputs = load_stubs({"NGramMLP": MLP, "ctx": mx.cpu()}), nd.array(rng.normal(0, 1, (9, 12)))
    mlp = stubs["make_mlp"](inputs, 7, 16)
    before = mlp(inputs).asnumpy()
    stubs["multiply_output_layer"](mlp, 7, -3.0)
    gap = (mlp(inputs).asnumpy() + 3 * before) @ (np.eye(7) - 1 / 7)
    assert (np.abs(gap).max() < 1e-4) == (activation in (None, "log_softmax"))


def test_lock_step_asks_the_parameters_for_their_size() -> None:
    """num_hiddens may have changed since the network from scratch was trained."""
    states = []

    def rnn(inputs: Any, state: Any, params: Any) -> Any:
        states.append(state[0].shape)
        return [nd.zeros((2, 27))], state

    notebook = {
        "char_to_idx": {char: i for i, char in enumerate(fakes_alphabet())},
        "num_hiddens": 5,
        "scratch_params": [nd.zeros((27, 8)), nd.zeros((8, 8)), nd.zeros(8), nd.zeros((8, 27)), nd.zeros(27)],
        "init_rnn_state": lambda batch_size, num_hiddens, ctx: (nd.zeros((batch_size, num_hiddens)),),
        "to_onehot": lambda X, size: [nd.one_hot(column, size) for column in X.T],
        "rnn": rnn,
    }
    stubs = load_stubs(notebook)
    stubs["step"](stubs["open_model"]("scratch", 2), "ab")
    assert states == [(2, 8)]


@pytest.mark.parametrize("as_dict", [True, False])
def test_lock_step_speaks_characters_whatever_the_order_of_the_indices(as_dict: bool) -> None:
    """A model that finds the alphabet's next letter likeliest is understood under any char_to_idx."""
    alphabet = fakes_alphabet()
    order = np.random.default_rng(1).permutation(len(alphabet))
    chars = [alphabet[i] for i in order]
    index = {char: i for i, char in enumerate(chars)}
    follows = [index[alphabet[(alphabet.index(char) + 1) % len(alphabet)]] for char in chars]

    class Next:
        """Scores [B, V] with a one at the next letter; the state counts."""

        def begin_state(self, batch_size: int, ctx: Any) -> list[Any]:
            return [nd.zeros((1, batch_size, 1))]

        def __call__(self, inputs: Any, state: Any) -> Any:
            return nd.one_hot(nd.array([follows[int(i)] for i in inputs.T.reshape((-1,)).asnumpy()]), 27), [
                state[0] + 1
            ]

    notebook: dict[str, Any] = {"models": {"lstm": Next()}, "ctx": mx.cpu()}
    notebook |= {"idx_to_char": dict(enumerate(chars))} if as_dict else {"char_to_idx": index}
    stubs = load_stubs(notebook)
    opened = stubs["open_model"]("lstm", 3)
    for symbols in ([0, 5, 26], [1, 1, 1]):
        scores = stubs["step"](opened, "".join(alphabet[symbol] for symbol in symbols)).asnumpy()
        assert scores.shape == (3, 27)
        assert scores.argmax(axis=1).tolist() == [(symbol + 1) % 27 for symbol in symbols]
    assert opened.state[0].asnumpy().tolist() == [[[2], [2], [2]]]

    class Student:
        """Whom the checks ask."""

        def keep(self, target: Callable[..., Any], *given: Any) -> Any:
            return target(*given)

        class stubs:
            ref = staticmethod(stubs.get)

            @staticmethod
            def step(opened: Any, text: str) -> Any:
                return stubs["step"](opened, text).asnumpy()

    scores, came = reading.read(Student(), "lstm", alphabet * 30)
    assert scores.argmax(axis=-1).tolist() == came.tolist()


def fakes_alphabet() -> str:
    """The order in which characters cross the bridge."""
    alphabet: str = load_stubs({})["ALPHABET"]
    return alphabet


def test_a_reader_notices_a_forgotten_state(rng: np.random.Generator) -> None:
    """Handing the model its first state again is told from handing on the one that it returned."""
    model = fakes.TableModel(rng, 5)
    first = model.begin(1)
    _, state = model.step(np.array([[1.0, 2.0]]), first, False, False)
    model.step(np.array([[3.0]]), state, False, False)
    model.step(np.array([[3.0]]), first, False, False)
    assert model.went_on == [False, True, False]


@pytest.mark.parametrize(("device", "close"), [("cpu", False), ("gpu", True)])
def test_tolerances_are_looser_on_a_gpu(device: str, close: bool) -> None:
    """One part in a thousand is a mistake on a CPU, and rounding on a GPU; a mistake of a tenth is one on both."""
    try:
        expect.use_device(device)
        assert expect.is_close(1.001, 1.0, **expect.FORWARD) == close
        assert not expect.is_close(1.1, 1.0, **expect.FORWARD)
    finally:
        expect.use_device("cpu")
