"""One run of a training loop on a recurrence of the checks' own: what goes in, and what should come out.

Staff only. The text of a run holds each symbol once, so that what was fed to the model tells its place in the text,
its labels, and the order of the minibatches, whoever made them.
"""

import itertools
from dataclasses import replace

import numpy as np
import oracle
from expect import (
    PERPLEXITY,
    TRAINED,
    Mistake,
    as_array,
    as_arrays,
    as_indices,
    as_number,
    as_numbers,
    as_params,
    assert_close,
    callback,
    decoding,
    is_close,
    kind,
    onehot_for,
    wrong_kind,
)
from fakes import alphabet
from recognise import named

NUM_EPOCHS, H = 3, 4
MOST_CLIPPED = 100  # calls of grad_clipping that are remembered
# B, T, minibatches in an epoch, lr, theta / norm of the first gradient: clipping in every step, or in none
CASES = [(2, 3, 4, 0.15, 100.0), (1, 2, 5, 0.4, 0.5), (3, 1, 4, 0.8, 0.3)]


class Course:
    """One run of a training loop: what goes in, and what should come out of what was fed."""

    def __init__(self, student, rng, case, is_random):
        self.student, self.rng, self.is_random = student, rng, is_random
        self.B, self.T, self.num_minibatches, self.lr, bite = case
        V = self.B * (self.T * self.num_minibatches + 1)
        self.corpus = [int(i) for i in rng.permutation(V)]  # each symbol once: an input tells its place
        self.params = oracle.toy_params(rng, V, H)
        self.right = oracle.Loop(reset="minibatch" if is_random else "epoch")
        first = oracle.consecutive_minibatches(self.corpus, self.B, self.T)[:1]
        moved, _ = oracle.train(replace(self.right, clip="never"), self.params, [first], 1.0, 1.0)
        step = [before - after for before, after in zip(self.params, moved, strict=True)]
        self.theta = bite * oracle.global_norm(step)
        self.letters, self.index = alphabet(student, rng, V)

    def helpers(self):
        """Good ones, so that only the loop is judged; they remember how they were called."""

        def data_iter_random(corpus_indices, batch_size, num_steps, ctx=None):
            self.used.append("data_iter_random")
            self.assert_arguments("data_iter_random", corpus_indices, batch_size, num_steps)
            return oracle.random_minibatches(self.corpus, self.B, self.T, self.rng)

        def data_iter_consecutive(corpus_indices, batch_size, num_steps, ctx=None):
            self.used.append("data_iter_consecutive")
            self.assert_arguments("data_iter_consecutive", corpus_indices, batch_size, num_steps)
            return oracle.consecutive_minibatches(self.corpus, self.B, self.T)

        def clip(grads, theta):
            if not isinstance(grads, list) or any(grad is None for grad in grads):
                raise Mistake("clips_no_gradients", "grad_clipping is handed an array without gradient.")
            arrays = as_arrays(grads, "the gradients", len(grads))
            assert len(self.clipped) < MOST_CLIPPED, "grad_clipping is called without end."
            theta = as_number(theta, "theta, as handed to grad_clipping,")
            self.clipped.append((len(arrays), oracle.global_norm(arrays), theta))
            return [grad.astype("float32") for grad in oracle.clip(arrays, theta)]

        return {
            "to_onehot": onehot_for(len(self.corpus)),
            "grad_clipping": clip,
            "data_iter_random": callback("data_iter_random", data_iter_random),
            "data_iter_consecutive": callback("data_iter_consecutive", data_iter_consecutive),
            "predict_rnn": lambda *args, **kwargs: "",
            "predict_rnn_gluon": lambda *args, **kwargs: "",
        }

    def init_rnn_state(self, batch_size, num_hiddens, ctx):
        if (batch_size, num_hiddens) != (self.B, H):
            raise Mistake("wrong_sizes", f"init_rnn_state got {(batch_size, num_hiddens)!r}, expected {(self.B, H)}.")
        return [np.zeros((self.B, H), "float32")]  # of which a loop may also replace the entries

    def forget(self):
        """Nothing has been called yet."""
        self.used, self.clipped = [], []  # iterators; arrays, their norm and theta, as handed to grad_clipping

    def assert_arguments(self, name, corpus_indices, batch_size, num_steps):
        text = as_array(corpus_indices, f"The text handed to {name}")
        if text.shape != (len(self.corpus),) or (text != self.corpus).any():
            raise Mistake("other_text", f"{name} should be handed corpus_indices as they are.")
        sizes, right = (batch_size, num_steps), (self.B, self.T)
        if sizes != right:
            raise Mistake("wrong_sizes", f"{name} should be handed batch_size, num_steps = {right}, but got {sizes!r}.")

    def train_scratch(self):
        """(params, perplexities) of train_and_predict_rnn."""
        stubs, V = self.student.stubs, len(self.corpus)
        stubs.set_toy(self.params)
        first_state = callback("init_rnn_state", self.init_rnn_state)
        toy = (stubs.ref("toy_rnn"), stubs.ref("toy_get_params"), first_state, H, V, self.student.ctx)
        text = (self.corpus, self.letters, self.index, self.is_random)
        rest = (NUM_EPOCHS, self.T, self.lr, self.theta, self.B, NUM_EPOCHS + 1, 5, [])
        target = self.student.ref("train_and_predict_rnn")
        result = stubs.judge_loop(target, self.helpers(), self.forget, *toy, *text, *rest)
        params, perplexities = as_result(result)
        params = as_arrays(params, "params", len(self.params))
        for value, before in zip(params, self.params, strict=True):
            as_array(value, "each of params", before.shape)
        return params, perplexities

    def train_gluon(self):
        """(params, perplexities) of train_and_predict_rnn_gluon."""
        stubs, V = self.student.stubs, len(self.corpus)
        stubs.set_toy(self.params)
        model = self.student.keep(stubs.ref("make_toy_model"), True)
        text = (self.corpus, self.letters, self.index)
        rest = (NUM_EPOCHS, self.T, self.lr, self.theta, self.B, NUM_EPOCHS + 1, 5, [])
        target = self.student.ref("train_and_predict_rnn_gluon")
        toy = (model, H, V, self.student.ctx)
        perplexities = stubs.judge_loop(target, self.helpers(), self.forget, *toy, *text, *rest)
        return as_params(stubs.read_params(model), [param.shape for param in self.params]), perplexities

    def fed(self):
        """The places [B, T] of the minibatches that were fed while a gradient was recorded."""
        V = len(self.corpus)
        with decoding("The record of what the model was fed"):
            record = [array for array, is_recording in self.student.stubs.take_record() if is_recording]
            inputs = [as_indices(array, "The inputs fed to the model", V).T for array in record]
        if not inputs:
            raise Mistake("not_recorded", "The model is never called inside autograd.record().")
        fed = list(self.minibatches(inputs))
        if len(fed) > 2 * NUM_EPOCHS * (self.num_minibatches + 1):
            raise Mistake("wrong_epochs", f"{len(fed)} minibatches are far more than {NUM_EPOCHS} epochs have.")
        return fed

    def epochs_of(self, fed):
        """The minibatches cut into epochs: where a part of the text comes again.

        An iterator of the notebook's own may begin every epoch elsewhere in the text. Then other cuts are as good; they
        follow.
        """
        cuts, seen = [], set()
        for i, places in enumerate(fed):
            if seen & set(places.ravel()):
                cuts.append(i)
                seen.clear()
            seen |= set(places.ravel())
        yield cut(fed, cuts)
        for other in itertools.combinations(range(1, len(fed)), NUM_EPOCHS - 1):
            epochs = cut(fed, other)
            if not self.used and all(map(has_no_repeats, epochs)):
                yield epochs

    def minibatches(self, inputs):
        """The places [B, T] in the text of the minibatches that were fed, each at once or in pieces."""
        place = {symbol: i for i, symbol in enumerate(self.corpus)}
        begun = np.zeros((self.B, 0), int)
        for X in inputs:
            places = np.vectorize(place.get)(X)
            begun = np.hstack([begun, places]) if len(X) == self.B else places
            is_piece = (np.diff(begun) == 1).all() and begun.max() + 1 < len(self.corpus)
            if len(X) != self.B or begun.shape[1] > self.T or not is_piece:
                found = f"an array {list(X.shape)} that " + ("is" if is_piece else "is not") + " a piece of the text"
                raise Mistake("wrong_input", f"The model is fed {found}, where [{self.B}, {self.T}] is expected.")
            if begun.shape[1] == self.T:
                yield begun
                begun = begun[:, :0]
        if begun.size:
            raise Mistake("wrong_input", "The last minibatch that the model is fed is not complete.")

    def assert_complete(self, epochs):
        """So many epochs, and all minibatches in each; an iterator of the notebook's own may leave one more out."""
        count = sum(map(len, epochs))
        if len(self.used) == NUM_EPOCHS and count < NUM_EPOCHS * self.num_minibatches:
            raise Mistake("minibatch_skipped", f"Of {NUM_EPOCHS * self.num_minibatches} minibatches {count} are used.")
        if len(epochs) != NUM_EPOCHS:
            raise Mistake("wrong_epochs", f"{NUM_EPOCHS} epochs were asked for, {len(epochs)} were run.")
        fewest = self.num_minibatches - (not self.used)
        if min(map(len, epochs)) < fewest:
            raise Mistake("minibatch_skipped", f"An epoch should have {self.num_minibatches} minibatches.")

    def assert_order(self, epochs):
        """The right iterator was used (or another, if it does the same)."""
        starts = [[places[:, 0] for places in epoch] for epoch in epochs]
        pairs = [pair for epoch in starts for pair in itertools.pairwise(epoch)]
        goes_on = all((after == before + self.T).all() for before, after in pairs)
        if self.is_random and goes_on and set(self.used) != {"data_iter_random"}:
            raise Mistake("wrong_iterator", "The minibatches should come from data_iter_random.")
        orders = {np.concatenate(epoch).tobytes() for epoch in starts}
        if self.is_random and len(orders) == 1 and len(self.used) < NUM_EPOCHS and self.num_minibatches > 4:
            raise Mistake("same_order", f"The iterator is called {len(self.used)} times in {NUM_EPOCHS} epochs.")
        if not self.is_random and not goes_on:
            raise Mistake("wrong_iterator", "The minibatches should come from data_iter_consecutive.")

    def judge(self, params, perplexities):
        """Parameters and perplexities are right for one of the ways to tell the epochs apart."""
        problems = []
        for epochs in self.epochs_of(self.fed()):
            try:
                return self.judge_epochs(epochs, params, perplexities)
            except AssertionError as problem:
                problems.append(problem)
        raise problems[0]

    def judge_epochs(self, epochs, params, perplexities):
        """Parameters, then perplexities; the failure bears the name of the mistake if it is a known one."""
        self.assert_complete(epochs)
        self.assert_order(epochs)
        text = np.array(self.corpus)
        epochs = [[(text[places], text[places + 1]) for places in epoch] for epoch in epochs]
        expected, losses = self.train(self.right, epochs)
        if not same(params, expected):
            self.name_the_mistake(params, expected, epochs)
            names = ("W_xh", "W_hh", "b_h", "W_hq", "b_q")
            with named("other_updates"):
                for name, value, right in zip(names, params, expected, strict=True):
                    assert_close(value, right, f"After {NUM_EPOCHS} epochs an entry of {name}", TRAINED)
        if isinstance(perplexities, (list, tuple)) and not perplexities:
            raise Mistake("only_when_printing", "The list of perplexities is empty.")
        found = as_numbers(perplexities, "perplexities", NUM_EPOCHS)
        if is_close(found, oracle.perplexities(losses), **PERPLEXITY):
            return
        for name, wrong in wrong_perplexities(losses, self.B, self.T):
            if is_close(found, wrong, **PERPLEXITY):
                raise Mistake(name, f"The perplexities are {np.round(found, 4).tolist()}.")
        with named("other_perplexities"):
            assert_close(found, oracle.perplexities(losses), "A perplexity", PERPLEXITY)

    def train(self, loop, epochs, theta=None):
        """What a loop makes of these minibatches."""
        return oracle.train(loop, self.params, epochs, self.lr, self.theta if theta is None else theta)

    def name_the_mistake(self, params, expected, epochs):
        if same(params, self.params):
            raise Mistake("nothing_learnt", "The parameters are those from before training.")
        thetas = {theta for *_, theta in self.clipped} - {self.theta}
        with np.errstate(all="ignore"):  # wrong loops diverge
            if any(same(params, self.train(self.right, epochs, theta)[0]) for theta in thetas):
                raise Mistake("wrong_theta", f"grad_clipping is handed theta {thetas}, where it is {self.theta}.")
            for name, changes in MISTAKES:
                loop = replace(self.right, **changes)
                if loop != self.right and same(params, self.train(loop, epochs)[0]):
                    raise Mistake(self.clipped_when() if name == "not_clipped" else name)
        if any(count != len(self.params) for count, *_ in self.clipped):
            raise Mistake("clips_some", f"grad_clipping is handed {self.clipped[0][0]} parameters.")
        kept = [is_close(value, before, **TRAINED) for value, before in zip(params, self.params, strict=True)]
        moves = [not is_close(right, before, **TRAINED) for right, before in zip(expected, self.params, strict=True)]
        if any(is_kept and should_move for is_kept, should_move in zip(kept, moves, strict=True)):
            raise Mistake("not_all_updated", f"Parameters that stay as they were: {np.flatnonzero(kept).tolist()}.")

    def clipped_when(self):
        """The name for training in which clipping has no effect."""
        if not self.clipped:
            return "not_clipped"
        return "clipped_too_late" if self.clipped[0][1] > 0 else "clipped_too_early"


# Names of mistakes in updates, and what each changes in the right loop; a name may have several causes.
MISTAKES = [
    ("not_clipped", {"clip": "never"}),
    ("own_norm", {"clip": "each"}),
    ("state_kept", {"reset": "epoch"}),
    ("state_dropped", {"reset": "minibatch"}),
    ("state_never_reset", {"reset": "once"}),
    ("lr_ignored", {"step": "1/lr"}),
    ("ascent", {"step": "-1"}),
    ("loss_sum", {"loss": "BT"}),
    ("loss_sum", {"step": "BT"}),
    ("clips_the_sum", {"loss": "BT", "step": "1/BT"}),
    ("larger_by_batch", {"loss": "B"}),
    ("larger_by_batch", {"step": "B"}),
    ("larger_by_steps", {"loss": "T"}),
    ("larger_by_steps", {"step": "T"}),
    ("smaller_by_batch", {"loss": "1/B"}),
    ("smaller_by_batch", {"step": "1/B"}),
    ("smaller_by_steps", {"loss": "1/T"}),
    ("smaller_by_steps", {"step": "1/T"}),
    ("divided_twice", {"loss": "1/BT"}),
    ("divided_twice", {"step": "1/BT"}),
    ("labels_by_row", {"labels": "batch first"}),
    ("outputs_by_row", {"labels": "outputs batch first"}),
    ("labels_are_inputs", {"labels": "inputs"}),
    ("last_step_only", {"steps": "last"}),
    ("softmax_twice", {"softmax": True}),
    ("state_in_part", {"carry": 0.5}),  # ToyModel: each of its two arrays holds a half
    ("stale_gradients", {"gradients": "stale"}),
    ("summed_gradients", {"gradients": "summed"}),
    ("new_each_epoch", {"params": "new"}),
    ("adam", {"adam": True}),
    *(("momentum", {"momentum": value}) for value in (0.9, 0.5, 0.95, 0.99)),
    *(("weight_decay", {"decay": value}) for value in (1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 0.1)),
]


def as_result(result):
    """(params, perplexities) of train_and_predict_rnn."""
    names = "(params, perplexities)"
    if not isinstance(result, (list, tuple)):
        raise wrong_kind(result, "what train_and_predict_rnn returns", names)
    if len(result) != 2:
        raise Mistake("returns_one", f"What train_and_predict_rnn returns should be {names}, but is {kind(result)}.")
    if is_list_of_numbers(result[0]) and not is_list_of_numbers(result[1]):
        raise Mistake("returns_swapped", f"train_and_predict_rnn should return {names}, in this order.")
    return result


def is_list_of_numbers(value):
    """Whether these may be perplexities."""
    if not isinstance(value, (list, tuple)):
        return False
    return all(isinstance(item, (int, float)) or getattr(item, "size", 0) == 1 for item in value)


def cut(fed, cuts):
    """A list in parts, each but the first of which begins at one of the cuts."""
    return [fed[start:end] for start, end in itertools.pairwise([0, *cuts, len(fed)])]


def has_no_repeats(epoch):
    """Whether no place of the text comes twice."""
    places = np.concatenate([places.ravel() for places in epoch])
    return len(set(places)) == len(places)


def same(params, expected):
    """Whether all parameters agree."""
    return all(is_close(value, right, **TRAINED) for value, right in zip(params, expected, strict=True))


def wrong_perplexities(losses, B, T):
    """What known mistakes make of the same losses: pairs of name and perplexities."""
    means = np.array([np.mean(epoch) for epoch in losses])
    counts = np.array([len(epoch) for epoch in losses])
    sums = means * counts
    with np.errstate(over="ignore"):
        return [
            ("mean_of_exps", [np.mean(np.exp(epoch)) for epoch in losses]),
            ("no_exp", means),
            ("base_2", 2**means),
            ("inverse", np.exp(-means)),
            ("last_minibatch", [np.exp(epoch[-1]) for epoch in losses]),
            ("first_minibatch", [np.exp(epoch[0]) for epoch in losses]),
            *(("accumulates", np.exp(np.cumsum(sums) / divisor)) for divisor in (np.cumsum(counts), counts)),
            *(("miscounts", np.exp(sums * factor)) for factor in (1, B * T, 1 / (B * T), B, T, 1 / B, 1 / T)),
            *(("miscounts", np.exp(means * factor)) for factor in (B * T, 1 / (B * T), B, T, 1 / B, 1 / T)),
        ]
