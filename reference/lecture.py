"""Train the lecture's networks on The Time Machine and lay the perplexities beside the lecture's: `make lecture`.

The functions are those of `homework.py` beside this file, without the cells that train there. Settings and figures are
the lecture's (Berkeley STAT 157, recurrent neural networks).
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import http.client
import math
import os
import random
import statistics
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

import yaml

HERE = Path(__file__).parent
REGISTRY = HERE.parent / "datasets" / "corpora.yaml"

SYMBOLS, CHARACTERS = 43, 178_887  # of the whole text, normalised as in the lecture
SHA256 = "9a19bac4ee9a1ee0e536dac4e141b48a20e1102cb4b8ef3e412adbab126b6ed0"  # of the same, in UTF-8
TRAIN_CHARS = 10_000
EPOCHS, GLUON_EPOCHS = 500, 200
STEPS, BATCH, RATE, THETA = 64, 32, 1e2, 1e-2
UNITS, GLUON_UNITS = 512, 256
PERIOD, WRITTEN, PREFIXES = 50, 50, ("traveller", "time traveller")
LECTURE: Mapping[str, Mapping[int, float]] = {  # its perplexities, by epoch; it names none for Gluon
    "random": {350: 1.5, 500: 1.37},
    "sequential": {358: 1.25, 500: 1.17},
}
TITLES = {
    "random": "from scratch, random sampling",
    "sequential": "from scratch, sequential sampling",
    "gluon": f"Gluon RNN({GLUON_UNITS})",
    "shorter": "sequential, carried on with shorter steps",
}
COLORS = {"random": "#c2571a", "sequential": "#1f5fa8", "gluon": "#3f8f4f", "shorter": "#8a3fa0"}
FILES = ("lecture.md", "lecture.svg", "perplexities.csv")
NEAR = 20  # a perplexity that wobbles is summed up over this many epochs
MAX_BYTES, NETWORK_TIMEOUT_S = 16 * 2**20, 60.0


class NoText(Exception):
    """There is no text to train on; the message is one sentence."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one training came to: a perplexity for each epoch, a gradient's norm for each mini-batch."""

    perplexities: list[float]
    norms: list[float]  # before clipping
    theta: float = THETA
    params: Any = None

    def near(self, epoch: int) -> list[float]:
        """The perplexities of the epochs up to this one."""
        return self.perplexities[max(0, epoch - NEAR) : epoch]


# ---------------------------------------------------------------- the text


def normalise(raw: str) -> str:
    """Lower case, and a space for each line end; all else stays as it is."""
    return raw.replace("\r\n", "\n").replace("\r", "\n").replace("\n", " ").lower()


def read_text(place: str | None) -> str:
    """The normalised text of a file or, without one, from the registry's address. Raises NoText."""
    try:
        if place is None:
            place = str(yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))["time-machine"]["source"]["url"])
            with urllib.request.urlopen(place, timeout=NETWORK_TIMEOUT_S) as response:
                data = response.read(MAX_BYTES)
        else:
            data = Path(place).read_bytes()
        text = normalise(data.decode("utf-8-sig"))
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason
        raise NoText(f"The text cannot be read from {place} ({reason}); name a copy of it: TEXT=FILE.") from error
    except UnicodeDecodeError as error:
        raise NoText(f"{place} is not UTF-8 text (byte {error.start}); name a copy of the text: TEXT=FILE.") from error
    if len(text) <= BATCH * STEPS:
        raise NoText(f"{place} has {len(text):,} characters, and one mini-batch needs {BATCH * STEPS + 1:,}.")
    return text


def doubt(text: str) -> str:
    """What to say of a text that is not the lecture's; nothing of the one that is."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest == SHA256:
        return ""
    return (
        f"This is not the lecture's text, and its perplexities cannot be compared: {CHARACTERS:,} characters of "
        f"{SYMBOLS} symbols were expected (sha256 {SHA256[:12]}…), and it has {len(text):,} of {len(set(text))} "
        f"({digest[:12]}…)."
    )


# ---------------------------------------------------------------- the training


def homework() -> dict[str, Any]:
    """The imports, functions and classes of the homework's solution, in a namespace of their own."""
    path = HERE / "homework.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    tree.body = [node for node in tree.body if isinstance(node, kinds)]
    space: dict[str, Any] = {"__name__": "homework"}
    exec(compile(tree, str(path), "exec"), space)
    return space


def train(
    name: str, text: str, *, epochs: int, seed: int, advance: Callable[[], None], start: Run | None = None
) -> Run:
    """Train as the lecture does, or sequentially on from where `start` ended, with steps a tenth as long."""
    space = homework()
    nd, ctx = space["nd"], space["mx"].cpu()
    theta = THETA if start is None else start.theta / 10
    norms: list[float] = []

    def watched_perplexity(nats_per_char: float, of: Callable[[float], float] = space["to_perplexity"]) -> float:
        advance()  # the homework asks for one perplexity in each epoch
        return of(nats_per_char)

    def watched_clipping(params: Any, theta: float, ctx: Any, of: Callable[..., None] = space["grad_clipping"]) -> None:
        g = nd.concat(*[param.grad.reshape((-1,)) for param in params], dim=0)
        norms.append(math.sqrt(nd.dot(g, g).asscalar()))
        of(params, theta, ctx)

    symbols = sorted(set(text))
    to_index = {char: i for i, char in enumerate(symbols)}
    units = GLUON_UNITS if name == "gluon" else UNITS
    space.update(to_perplexity=watched_perplexity, grad_clipping=watched_clipping)
    space.update(vocab_size=len(symbols), num_hiddens=units, ctx=ctx)  # get_params reads them

    random.seed(seed)
    space["np"].random.seed(seed)
    space["mx"].random.seed(seed)
    prefixes = [prefix for prefix in PREFIXES if set(prefix) <= set(symbols)]
    data = (len(symbols), ctx, [to_index[char] for char in text[:TRAIN_CHARS]], symbols, to_index)
    how = (epochs, STEPS, RATE, theta, BATCH, min(PERIOD, epochs), WRITTEN, prefixes)
    if name == "gluon":
        model = space["RNNModel"](space["gluon"].rnn.RNN(units), len(symbols))
        params, perplexities = None, space["train_and_predict_rnn_gluon"](model, units, *data, *how)
    else:
        get_params = space["get_params"] if start is None else lambda: start.params
        network = (space["rnn"], get_params, space["init_rnn_state"], units)
        params, perplexities = space["train_and_predict_rnn"](*network, *data, name == "random", *how)
    return Run(perplexities=perplexities, norms=norms, theta=theta, params=params)


@contextmanager
def bar(total: int) -> Iterator[Callable[[], None]]:
    """A bar with an ETA on a terminal, nothing elsewhere; yields the function that advances it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("epochs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def train_all(text: str, *, epochs: int, seed: int) -> dict[str, Run]:
    """The lecture's three runs, and the sequential one carried on with shorter steps, by name."""
    gluon_epochs, more_epochs = max(1, epochs * GLUON_EPOCHS // EPOCHS), max(1, epochs // 10)
    lengths = {"random": epochs, "sequential": epochs, "gluon": gluon_epochs, "shorter": more_epochs}
    runs: dict[str, Run] = {}
    for name, length in lengths.items():
        print(f"{TITLES[name]}: {length} epoch{'s' * (length > 1)}", flush=True)
        start = runs["sequential"] if name == "shorter" else None
        with bar(length) as advance:
            runs[name] = train(name, text, epochs=length, seed=seed, advance=advance, start=start)
    return runs


# ---------------------------------------------------------------- what is shown


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown that is aligned for reading as it is, too."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = [
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in (header, *rows)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def compared(runs: Mapping[str, Run]) -> str:
    """A row for each epoch of which the lecture speaks, and for the last epoch of each run."""
    rows = []
    for name, run in runs.items():
        lecture = LECTURE.get(name, {})
        for epoch in sorted({*lecture, len(run.perplexities)}):
            if epoch <= len(run.perplexities):
                near = run.near(epoch)
                figures = [f"{x:.3f}" for x in (run.perplexities[epoch - 1], statistics.median(near))]
                theirs = f"about {lecture[epoch]:g}" if epoch in lecture else "–"
                rows.append((TITLES[name], str(epoch), *figures, f"{min(near):.3f} to {max(near):.3f}", theirs))
    return table(("run", "epoch", "perplexity", f"median of {NEAR}", f"range of {NEAR}", "lecture"), rows)


def steps(runs: Mapping[str, Run]) -> str:
    """How long the steps were over the last epochs of each run, and what that makes of the perplexity."""
    rows = []
    for name, run in runs.items():
        per_epoch = len(run.norms) // len(run.perplexities)
        norms, near = run.norms[-NEAR * per_epoch :], run.near(len(run.perplexities))
        rows.append(
            (
                TITLES[name],
                f"{statistics.median(norms):.3f}",
                f"{run.theta:g}",
                f"{100 * sum(norm > run.theta for norm in norms) / len(norms):.0f} %",
                f"{RATE * statistics.median(min(norm, run.theta) for norm in norms):.2f}",
                f"{min(near):.3f} to {max(near):.3f}",
            )
        )
    header = ("run", "gradient's norm", "clipped at", "clipped", "step's length", f"perplexity of {NEAR}")
    return table(header, rows)


def verdict(runs: Mapping[str, Run]) -> str:
    """Whether sequential sampling beats random sampling at the end, in a sentence."""
    epochs = len(runs["sequential"].perplexities)
    ours, other = (statistics.median(runs[name].near(epochs)) for name in ("sequential", "random"))
    return (
        f"After {epochs} epochs sequential sampling {'beats' if ours < other else 'does NOT beat'} random: "
        f"{ours:.3f} against {other:.3f} (medians)."
    )


def plot(runs: Mapping[str, Run], path: Path) -> None:
    """The perplexities by epoch, with the lecture's figures as rings, in an SVG that needs no other file."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "lecture"  # the same picture from the same numbers
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    ring = {"marker": "o", "ls": "", "ms": 10, "mfc": "none", "mew": 1.8}
    for name, run in runs.items():
        color, last = COLORS[name], len(run.perplexities)
        before = len(runs["sequential"].perplexities) if name == "shorter" else 0
        axes.plot(range(before + 1, before + last + 1), run.perplexities, color=color, lw=1.2, label=TITLES[name])
        marks = {epoch: figure for epoch, figure in LECTURE.get(name, {}).items() if epoch <= last}
        axes.plot(list(marks), list(marks.values()), mec=color, zorder=3, **ring)
    axes.plot([], [], mec="dimgray", label="the lecture's figures", **ring)
    axes.set(xlabel="epoch", ylabel="training perplexity (logarithmic)", yscale="log")
    axes.set_ylim(bottom=1)
    ticks = [tick for tick in (1, 1.2, 1.5, 2, 3, 5, 10, 20, 40) if tick <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="y", color="#dddddd", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def write(out: Path, runs: Mapping[str, Run], page: str) -> None:
    """The page, the plot, and every epoch's perplexity."""
    plot(runs, out / "lecture.svg")
    (out / "lecture.md").write_text(f"# The lecture, reproduced\n\n![](lecture.svg)\n\n{page}\n", encoding="utf-8")
    with (out / "perplexities.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", *runs])
        for epoch, values in enumerate(zip_longest(*(run.perplexities for run in runs.values())), 1):
            rows.writerow([epoch, *("" if value is None else f"{value:.6f}" for value in values)])


# ---------------------------------------------------------------- the command


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message[0].upper()}{message[1:]}.\n")


def at_least_one(word: str) -> int:
    """A whole number from 1 on."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 1 on")
    return int(word)


def main() -> int:
    """Read the text, train, show and write."""
    parser = Parser(prog="python -m reference.lecture", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("--text", metavar="FILE", help="a copy of the text; without one it is downloaded")
    parser.add_argument(
        "--epochs", type=at_least_one, default=EPOCHS, help="of a run from scratch; Gluon has 2/5 of it"
    )
    parser.add_argument("--seed", type=int, default=157)
    parser.add_argument("--out", type=Path, default=Path("out/lecture"), metavar="FOLDER")
    arguments = parser.parse_args()
    try:
        text = read_text(arguments.text)
        arguments.out.mkdir(parents=True, exist_ok=True)
        if warning := doubt(text):
            print(warning, file=sys.stderr)
        runs = train_all(text, epochs=arguments.epochs, seed=arguments.seed)
        note = f"“Of {NEAR}”: of the {NEAR} epochs up to the one that is named, or the last {NEAR}."
        parts = [compared(runs), note, verdict(runs), steps(runs)]
        page = "\n\n".join([*([warning] if warning else []), *parts])
        print(f"\n{page}\n")
        write(arguments.out, runs, page)
        print(f"Written: {', '.join(str(arguments.out / name) for name in FILES)}")
    except NoText as error:
        print(error, file=sys.stderr)
        return 3
    except OSError as error:
        print(f"{arguments.out} cannot be written ({error.strerror or error}).", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # MXNet gives the same numbers again with one thread only
    os.environ.setdefault("MPLBACKEND", "agg")
    sys.exit(main())
