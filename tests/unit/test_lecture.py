"""The lecture is reproduced with the homework's own functions, on its own text, and compared honestly."""

from __future__ import annotations

import csv
import hashlib
import inspect
import string
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import lecture

ROOT = Path(__file__).parents[2]
MARKS = " !\"'(),-.189:;?[]"  # with the lower case letters, the symbols of the lecture's text
ENOUGH = "Time Travellers!\n" * 130  # a little more than one mini-batch


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    words = [sys.executable, "-m", "reference.lecture", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def run(*perplexities: float) -> lecture.Run:
    """A training that came to these perplexities, two mini-batches to an epoch."""
    return lecture.Run(perplexities=list(perplexities), norms=[0.02, 0.004] * len(perplexities))


# ---------------------------------------------------------------- the text


def test_the_lecture_has_43_symbols() -> None:
    """Capitals and line ends of any kind add nothing to the letters and marks of the text."""
    text = lecture.normalise(string.ascii_letters + MARKS + "\n\r\n\r")
    assert set(text) == set(string.ascii_lowercase + MARKS)
    assert len(set(text)) == lecture.SYMBOLS == 43


def test_a_line_end_is_one_space() -> None:
    """Each line end becomes a space, whatever system wrote it, and spaces are not drawn together."""
    assert lecture.normalise("I\n\nThe  Time\r\nTraveller\r(for") == "i  the  time traveller (for"


@given(st.text(st.characters(max_codepoint=127)).filter(lambda raw: "\r" not in raw))
def test_normalising_keeps_every_place(raw: str) -> None:
    """Character by character: its lower case, or a space for a line end; doing it twice changes nothing."""
    text = lecture.normalise(raw)
    assert [*text] == [" " if char == "\n" else char.lower() for char in raw]
    assert lecture.normalise(text) == text


def test_another_text_is_told_from_the_lectures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text with another sha256 is doubted, with what was expected and what was found; its own is not."""
    text = lecture.normalise(ENOUGH)
    said = lecture.doubt(text)
    assert "178,887 characters of 43 symbols were expected" in said
    assert f"it has {len(text):,} of {len(set(text))} " in said
    monkeypatch.setattr(lecture, "SHA256", hashlib.sha256(text.encode()).hexdigest())
    assert lecture.doubt(text) == ""


def test_without_a_file_the_registry_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of `time-machine` in the registry is where the text comes from."""
    source, registry = tmp_path / "book.txt", tmp_path / "corpora.yaml"
    source.write_text(ENOUGH, encoding="utf-8")
    registry.write_text(f"time-machine: {{source: {{url: '{source.as_uri()}'}}}}\n", encoding="utf-8")
    monkeypatch.setattr(lecture, "REGISTRY", registry)
    assert lecture.read_text(None) == lecture.normalise(ENOUGH)
    source.unlink()
    with pytest.raises(lecture.NoText, match=r"book\.txt \(.*\); name a copy of it"):
        lecture.read_text(None)


# ---------------------------------------------------------------- the training


def test_the_homeworks_functions_are_the_ones_that_train() -> None:
    """They come from the reference without its training, and take the lecture's 18 arguments in its order."""
    with warnings.catch_warnings():  # MXNet's last release and numpy's last deprecations
        warnings.simplefilter("ignore")
        space = lecture.homework()
    assert not {"scratch_params", "models", "train_indices", "report"} & set(space)
    assert Path(space["rnn"].__code__.co_filename) == ROOT / "reference" / "homework.py"
    assert [*inspect.signature(space["train_and_predict_rnn"]).parameters] == [
        *("rnn", "get_params", "init_rnn_state", "num_hiddens", "vocab_size", "ctx", "corpus_indices", "idx_to_char"),
        *("char_to_idx", "is_random_iter", "num_epochs", "num_steps", "lr", "clipping_theta", "batch_size"),
        *("pred_period", "pred_len", "prefixes"),
    ]


def test_from_the_text_to_the_page(tmp_path: Path) -> None:
    """A few epochs on a small text train all three networks, print a row for each, and write what they print."""
    source, out = tmp_path / "book.txt", tmp_path / "out"
    source.write_text(ENOUGH, encoding="utf-8")
    done = command("--text", source, "--epochs", "5", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("This is not the lecture's text")
    assert done.stderr.count("\n") == 1
    compared = done.stdout[done.stdout.index("| run ") : done.stdout.index("“Of 20”")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in compared.split("\n")[2:5]]
    assert [(row[0], row[1]) for row in rows] == [
        ("from scratch, random sampling", "5"),
        ("from scratch, sequential sampling", "5"),
        ("Gluon RNN(256)", "2"),  # 2/5 of the epochs, as in the lecture
    ]
    with (out / "perplexities.csv").open(encoding="utf-8", newline="") as file:
        curves = list(csv.DictReader(file))
    assert len(curves) == 5
    assert [len([line for line in curves if line[name]]) for name in ("random", "sequential", "gluon")] == [5, 5, 2]
    for row, name in zip(rows, ("random", "sequential", "gluon"), strict=True):
        assert row[2] == f"{float(curves[int(row[1]) - 1][name]):.3f}"
    assert float(curves[4]["sequential"]) < float(curves[0]["sequential"]), "it learns"
    assert compared.strip() in (out / "lecture.md").read_text(encoding="utf-8")
    links = [
        value
        for node in ElementTree.parse(out / "lecture.svg").iter()
        for key, value in node.attrib.items()
        if key.endswith("href")
    ]
    assert all(link.startswith("#") for link in links), "the picture needs no other file"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--text", "no/such/file.txt"), 3, "no/such/file.txt (No such file or directory)"),
        (("--text", "."), 3, "(Is a directory)"),
        (("--text", "Makefile", "--out", "Makefile"), 3, "Makefile cannot be written"),
        (("--epochs", "0"), 2, "'0' is not a whole number from 1 on"),
        (("--epochs", "many"), 2, "'many' is not a whole number from 1 on"),
        (("--speed", "9"), 2, "--speed 9"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(arguments: tuple[str, ...], code: int, words: str) -> None:
    """One line, no traceback: 2 for usage, 3 where there is no text or no place to write."""
    done = command(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert words in done.stderr


def test_a_text_too_short_or_not_text_is_refused(tmp_path: Path) -> None:
    """One mini-batch needs 2,049 characters, and they must be UTF-8."""
    source = tmp_path / "book.txt"
    source.write_text("x" * 2048, encoding="utf-8")
    with pytest.raises(lecture.NoText, match="has 2,048 characters, and one mini-batch needs 2,049"):
        lecture.read_text(str(source))
    source.write_text("x" * 2049, encoding="utf-8")
    assert len(lecture.read_text(str(source))) == 2049
    source.write_bytes(b"caf\xe9" * 1000)
    with pytest.raises(lecture.NoText, match=r"is not UTF-8 text \(byte 3\)"):
        lecture.read_text(str(source))


# ---------------------------------------------------------------- what is shown


def test_the_lectures_figures_stand_at_its_epochs_only() -> None:
    """500 epochs are compared at 350, 358 and 500; a run that ends before is compared with nothing."""
    curve = [float(epoch) for epoch in range(1, 501)]
    rows = [line.split("|")[1:-1] for line in lecture.compared({"random": run(*curve)}).split("\n")[2:]]
    assert [[cell.strip() for cell in row[1:]] for row in rows] == [
        ["350", "350.000", "340.500", "331.000 to 350.000", "about 1.5"],
        ["500", "500.000", "490.500", "481.000 to 500.000", "about 1.37"],
    ]
    short = lecture.compared({"sequential": run(*curve[:357])})
    assert "357.000" in short
    assert "about" not in short


def test_the_verdict_follows_the_numbers() -> None:
    """Sequential beats random where its last epochs are lower, and not otherwise; one spike decides nothing."""
    low, high = run(*[1.2] * 40, 9.0), run(*[1.4] * 40, 1.0)
    assert "sampling beats random: 1.200 against 1.400" in lecture.verdict({"sequential": low, "random": high})
    assert "does NOT beat random: 1.400 against 1.200" in lecture.verdict({"sequential": high, "random": low})


def test_a_clipped_step_has_the_length_of_rate_times_theta() -> None:
    """Half of the gradients are longer than 0.01 and make a step of 1, the others a shorter one."""
    row = lecture.steps({"random": run(*[2.0] * 30)}).split("\n")[2].split("|")
    assert [cell.strip() for cell in row[2:6]] == ["0.012", "0.01", "50 %", "0.70"]
