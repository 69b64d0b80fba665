"""Weights that are handed in beside a notebook: scored where the course says so, said on every report, else nothing."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grader.bench import Bench, set_up
from grader.config import load_assignment
from grader.disclose import WEAKER_PROMISE
from grader.gradebook import Gradebook
from grader.intake import MAX_PARAMS_BYTES, collect
from grader.pipeline import grade_submission
from grader.place import GRADEBOOK
from grader.types import Outcome, Submission
from tests.conftest import notebook_of
from tests.small import CHECK, LIMITS, folder_with

ROOT = Path(__file__).parents[1]
MODELS = ("scratch", "rnn", "gru", "lstm", "lstm2")
ALPHABET = "abcdefghijklmnopqrstuvwxyz "
# Networks that know nothing: all weights are zero, so that each of the 27 symbols is as likely as the others.
NOTEBOOK = """
import os
from mxnet import gluon, nd, cpu
ctx, vocab_size, num_hiddens = cpu(), 27, 27
char_to_idx = {char: i for i, char in enumerate("abcdefghijklmnopqrstuvwxyz ")}

def to_onehot(X, size): return [nd.one_hot(x, size) for x in X.T]
def init_rnn_state(batch_size, num_hiddens, ctx): return (nd.zeros((batch_size, num_hiddens)),)
def rnn(inputs, state, params):
    W_xh, W_hh, b_h, W_hq, b_q = params
    (H,), outputs = state, []
    for X in inputs:
        H = nd.tanh(nd.dot(X, W_xh) + nd.dot(H, W_hh) + b_h)
        outputs.append(nd.dot(H, W_hq) + b_q)
    return outputs, (H,)

class RNNModel(gluon.nn.Block):
    def __init__(self, layer):
        super().__init__()
        with self.name_scope():
            self.rnn, self.dense = layer, gluon.nn.Dense(27)
    def forward(self, inputs, state):
        Y, state = self.rnn(nd.one_hot(inputs.T, 27), state)
        return self.dense(Y.reshape((-1, Y.shape[-1]))), state
    def begin_state(self, *args, **kwargs): return self.rnn.begin_state(*args, **kwargs)

scratch_params = [nd.zeros((27, 27)), nd.zeros((27, 27)), nd.zeros(27), nd.zeros((27, 27)), nd.zeros(27)]
layers = {"rnn": gluon.rnn.RNN(27, activation="tanh"), "gru": gluon.rnn.GRU(27), "lstm": gluon.rnn.LSTM(27)}
models = {name: RNNModel(layer) for name, layer in (layers | {"lstm2": gluon.rnn.LSTM(27, 2)}).items()}
for model in models.values():
    model.initialize("zeros")
    model(nd.zeros((1, 1)), model.begin_state(batch_size=1))
"""
# Weights of networks that know the next letter of the alphabet: the state is the symbol, the output the one after it.
SAVE = """
import numpy as np
follows = nd.array(np.roll(np.eye(27), 1, axis=1)) * 20
def known(count):
    return [5 * nd.eye(27), nd.zeros((27, 27)), nd.zeros(27), follows, nd.zeros(27)]
nd.save("list.params", known(5))
nd.save("dict.params", dict(reversed(list(zip(["W_xh", "W_hh", "b_h", "W_hq", "b_q"], known(5))))))
model = models["rnn"]
model.rnn.l0_i2h_weight.set_data(5 * nd.eye(27))
model.dense.weight.set_data(follows.T)
model.save_parameters("rnn.params")
for name in ("gru", "lstm"):
    models[name].save_parameters(f"{name}.params")
"""


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as a student's own run would write them."""
    folder = tmp_path_factory.mktemp("weights")
    subprocess.run([sys.executable, "-W", "ignore", "-c", NOTEBOOK + SAVE], cwd=folder, check=True)
    return folder


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """Five models on the alphabet, over and over; one student's folder with a notebook, without weights yet."""
    curves = [{"model": model, "credit": [[2.0, 0], [1.0, 2]]} for model in MODELS]
    profile: dict[str, Any] = {"name": "smoke", "train_chars": None, "time_budget_s": 60, "lanes": 4, "curves": curves}
    limits = {**LIMITS, "check_wall_s": 10}
    changes = {"corpus": "time-machine", "limits": limits, "score": "checkpoint"}
    changes["reported"] = "report/{model}/test_perplexity"
    (tmp_path / "assignment").mkdir()
    folder_with(tmp_path / "assignment", profiles=[profile | {"test_chars": 2000, "held_out_chars": 2000}], **changes)
    shutil.copy(ROOT / "reference" / "checks" / "stubs.py", tmp_path / "assignment" / "checks")
    (tmp_path / "assignment" / "checks" / "test_f.py").write_text(CHECK)
    (tmp_path / "text.txt").write_text(ALPHABET * 6700)
    (tmp_path / "class" / "ada").mkdir(parents=True)
    (tmp_path / "class" / "ada" / "homework.ipynb").write_bytes(notebook_of(NOTEBOOK, "def f(x): return 2 * x"))
    return tmp_path


def retrain(course: Path) -> None:
    path = course / "assignment" / "assignment.yaml"
    path.write_text(path.read_text().replace("score: checkpoint", "score: retrain"))


def bench_of(course: Path, tier: str) -> Bench:
    assignment = load_assignment(course / "assignment")
    return set_up(assignment, assignment.profile("smoke"), tier, str(course / "text.txt"))


def collected(course: Path, bench: Bench) -> Submission:
    return collect(course / "class", course / "work", weights_of=bench.assignment.weights_of(bench.profile))[0]


def hand_in(course: Path, weights: Path, **files: str) -> Path:
    """Put files of these weights beside the notebook: of which model, and which file it is."""
    for model, name in files.items():
        shutil.copy(weights / f"{name}.params", course / "class" / "ada" / f"{model}.params")
    return course / "class" / "ada"


@pytest.mark.parametrize("form", ["list", "dict"])
def test_weights_that_are_handed_in_are_scored(course: Path, weights: Path, tier: str, form: str) -> None:
    """A model with a file is as good as the file, one without is what the notebook made; what fits not costs itself.

    Checks judge the notebook as it ran, and its own figure is held against no other weights.
    """
    folder = hand_in(course, weights, scratch=form, rnn="rnn", lstm="gru")
    says = "report = {name: {'test_perplexity': 27.0} for name in ('rnn', 'lstm2')}"
    as_it_ran = "def f(x): return 2 * x if not scratch_params[0].sum().asscalar() else 'other weights'"
    (folder / "homework.ipynb").write_bytes(notebook_of(NOTEBOOK, says, as_it_ran))
    if form == "list":
        (folder / "gru.params").write_bytes((weights / "gru.params").read_bytes()[:500])
    else:
        (folder / "gru.params").write_bytes((weights / "gru.params").read_bytes().ljust(MAX_PARAMS_BYTES + 1))
    bench = bench_of(course, tier)
    grade = grade_submission(collected(course, bench), bench)
    scores = {score.model: score for score in grade.perplexities}
    nats = {model: score.nats_per_char for model, score in scores.items()}
    assert nats["scratch"] == pytest.approx(0, abs=0.01)
    assert nats["rnn"] == pytest.approx(0, abs=0.01)
    assert nats["lstm2"] == pytest.approx(3.296, abs=0.01)  # ln 27
    for model in ("gru", "lstm"):
        assert nats[model] is None
        assert scores[model].outcome is Outcome.NOT_RUN
        assert f"{model}.params could not be loaded" in scores[model].message
    assert [check.outcome for check in grade.checks] == [Outcome.PASSED]
    assert (scores["rnn"].reported, scores["lstm2"].reported) == (None, 27.0)
    assert "REPORTED_OTHERWISE" not in {flag.kind for flag in grade.flags}
    assert grade.checkpoint


def test_the_notebook_finds_its_weights_and_none_of_this_in_the_graders_process(
    course: Path, weights: Path, tier: str
) -> None:
    """The folder that HW_CHECKPOINT_DIR names holds the very bytes; a pickle in a file is not opened here."""
    folder = hand_in(course, weights, scratch="list")
    harm = course / "harm"
    (folder / "rnn.params").write_bytes(f"cposix\nsystem\n(S'touch {harm}'\ntR.".encode())
    look = "import hashlib, os, pathlib\ndef f(x):\n    folder = pathlib.Path(os.environ['HW_CHECKPOINT_DIR'])\n"
    look += "    names = sorted(path.name for path in folder.iterdir())\n"
    look += "    return 4 if names == ['rnn.params', 'scratch.params'] and (folder / 'rnn.params').read_bytes() == "
    look += f"{(folder / 'rnn.params').read_bytes()!r} else names"
    (folder / "homework.ipynb").write_bytes(notebook_of(NOTEBOOK, look))
    bench = bench_of(course, tier)
    grade = grade_submission(collected(course, bench), bench)
    assert [check.outcome for check in grade.checks] == [Outcome.PASSED]
    assert not harm.exists()


def test_weights_that_end_the_process_cost_their_model_only(course: Path, weights: Path, tier: str) -> None:
    """A model whose loading kills the process has no score; the others are scored in a fresh sandbox."""
    folder = hand_in(course, weights, scratch="list", gru="gru", lstm="lstm")
    kills = "models['gru'].load_parameters = lambda *args, **kwargs: os._exit(1)"
    (folder / "homework.ipynb").write_bytes(notebook_of(NOTEBOOK, kills, "def f(x): return 2 * x"))
    bench = bench_of(course, tier)
    scores = {score.model: score for score in grade_submission(collected(course, bench), bench).perplexities}
    assert scores["gru"].outcome is Outcome.KERNEL_DIED
    assert scores["scratch"].nats_per_char == pytest.approx(0, abs=0.01)
    assert all(scores[model].nats_per_char == pytest.approx(3.296, abs=0.01) for model in ("rnn", "lstm", "lstm2"))


def test_where_models_are_trained_in_the_sandbox_a_file_changes_nothing(course: Path, weights: Path, tier: str) -> None:
    """Not the scores, and not the key: who hands in weights all the same is not graded again."""
    retrain(course)
    bench = bench_of(course, tier)
    before = collected(course, bench)
    hand_in(course, weights, scratch="list", rnn="rnn")
    after = collected(course, bench)
    assert (after, bench.key(after)) == (before, bench.key(before))
    grade = grade_submission(after, bench)
    assert [score.nats_per_char for score in grade.perplexities] == [pytest.approx(3.296, abs=0.01)] * 5
    assert not grade.checkpoint


def test_the_weaker_promise_is_said_on_every_report(course: Path, weights: Path) -> None:
    """Pages, results.json and the terminal say it, whoever handed in what; other weights are graded anew, and kept."""
    folder = hand_in(course, weights, rnn="gru")
    (course / "class" / "bob").mkdir()
    shutil.copy(folder / "homework.ipynb", course / "class" / "bob")
    first = grader(course, "grade", str(course / "class"), "--profile", "smoke")
    again = grader(course, "grade", str(course / "class"), "--profile", "smoke")
    assert again.stdout.count("already graded") == 2
    hand_in(course, weights, rnn="rnn")
    third = grader(course, "grade", str(course / "class"), "--profile", "smoke")
    assert third.stdout.count("already graded") == 1
    out = course / "out"
    for done in (first, again, third):
        assert WEAKER_PROMISE in " ".join(done.stdout.split())
    grader(course, "curve", "--profile", "smoke")
    for name in ("leaderboard.html", "feedback/ada.html", "feedback/bob.html", "curves.html", "moodle.csv"):
        assert WEAKER_PROMISE in (out / name).read_text(), name
    for student in ("ada", "bob"):
        assert WEAKER_PROMISE in json.loads((out / "results" / f"{student}.json").read_text())["output"]
    with (out / "grades.csv").open(newline="") as stream:
        perplexities = {row["student_id"]: float(row["perplexity"]) for row in csv.DictReader(stream)}
    assert perplexities == {"ada": pytest.approx(1, abs=0.01), "bob": pytest.approx(27, abs=0.1)}
    with Gradebook.open(out / GRADEBOOK) as book:
        grade = {grade.student_id: grade for grade in book.latest()}["ada"]
    kept = out / ".submissions" / grade.submission_sha256
    assert [path.read_bytes() for path in kept.iterdir()] == [(weights / "rnn.params").read_bytes()]
    assert "PASSED  f" in grader(course, "replay", "ada", "f").stdout


def grader(course: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ["-o", str(course / "out"), "--assignment", str(course / "assignment")]
    options += ["--corpus-file", str(course / "text.txt")]
    program = [sys.executable, "-m", "grader.cli", name, *arguments, *options]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done
