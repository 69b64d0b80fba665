"""Rank the held-out perplexities of a course, with ties where the intervals say so; as CSV, table or page.

Rule of the ranks: entries are ordered by nats/char of their best model. The first leads a group; every next
entry whose difference from the leader is not resolved shares its rank, the first whose is leads the next group
and takes the rank of its place (1, 1, 3). A difference is resolved if 0 lies outside its 95 % interval, by the
paired bootstrap over the blocks of text that both were measured on: some blocks are hard for everybody, and that
cancels out. Entries measured on different texts are compared by their own intervals; one without counts as a point.
Baselines stand among the entries without a rank; who has no measured model stands at the end, with the status that
says why. The open class is a second board, of models that the assignment does not ask for.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from grader import plot
from grader.baselines import BEST_NGRAM
from grader.disclose import provisos
from grader.gradebook import best_score
from grader.lockstep import Array
from grader.perplexity import bootstrap_interval
from grader.render import decimals, known, no_formula, one_line, page, perplexity
from grader.types import Grade

COLUMNS = ("rank", "pseudonym", "perplexity", "nats_per_char", "ci_low", "ci_high", "status", "submitted_at")
BASELINE_REACH = 1.1  # times the nats/char of the last entry: what lies beyond would push the entries together
# fmt: off
ADJECTIVES = (
    "amber", "azure", "bold", "brave", "bright", "brisk", "calm", "candid", "clever", "cosmic", "crimson",
    "curious", "daring", "deft", "eager", "early", "earnest", "fabled", "fair", "fleet", "fond", "frank",
    "gentle", "glad", "golden", "grand", "happy", "hardy", "honest", "humble", "jolly", "keen", "kind",
    "lively", "loyal", "lucid", "lunar", "mellow", "merry", "mighty", "nimble", "noble", "patient",
    "placid", "plucky", "polite", "proud", "quick", "quiet", "radiant", "rapid", "royal", "serene",
    "silver", "sincere", "sly", "steady", "sunny", "swift", "tidy", "vivid", "warm", "wise", "witty",
)
ANIMALS = (
    "badger", "bear", "beaver", "bee", "bison", "bobcat", "camel", "caribou", "cheetah", "condor",
    "cougar", "crane", "cricket", "deer", "dingo", "dolphin", "eagle", "egret", "falcon", "ferret",
    "finch", "fox", "gazelle", "gecko", "heron", "hare", "ibex", "ibis", "jackal", "jaguar", "kestrel",
    "kiwi", "koala", "lark", "lemur", "leopard", "lion", "lynx", "marmot", "marten", "mole", "moose",
    "narwhal", "newt", "ocelot", "orca", "osprey", "otter", "owl", "panda", "pelican", "puffin", "quail",
    "raven", "robin", "salmon", "seal", "stork", "swan", "tapir", "tiger", "walrus", "wombat", "wren",
)
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A model to compare with that no student handed in."""

    name: str
    nats_per_char: float
    block_nats: tuple[float, ...] = ()
    data_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the leaderboard; nats/char throughout, the interval included."""

    rank: int | None  # None: a baseline, or nothing was measured
    name: str  # the pseudonym; the student id if asked for by staff
    status: str  # of the grade; `baseline` for a baseline
    submitted_at: str = ""
    model: str = ""
    nats_per_char: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    scores: tuple[tuple[str, float], ...] = ()  # (model, nats/char) of every measured model
    sandboxed: bool = True
    checkpoint: bool = False  # weights could be handed in
    cpu_instead: bool = False  # meant for a GPU, run on the CPU
    data_sha256: str = field(default="", repr=False)  # of the draw of texts
    block_nats: tuple[float, ...] = field(default=(), repr=False)
    has_badge: bool = False  # resolved better than the best n-gram: a network of 256 units loses to it for long
    flags: int | None = None  # how many questions for a human; None: not for this reader

    @property
    def perplexity(self) -> float | None:
        return perplexity(self.nats_per_char)

    @property
    def is_baseline(self) -> bool:
        return self.status == "baseline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """All scores of one model, nats/char, ascending."""

    model: str
    values: tuple[float, ...]
    median: float


def baselines_of(blocks: Mapping[str, tuple[Array, Array]], data_sha256: str) -> list[Baseline]:
    """Baselines from their losses on the held-out and the test text of a draw, by name."""
    return [
        Baseline(
            name=name,
            nats_per_char=float(held_out.mean()),
            block_nats=tuple(held_out.tolist()),
            data_sha256=data_sha256,
        )
        for name, (held_out, _) in blocks.items()
    ]


def rows(
    grades: Iterable[Grade],
    baselines: Sequence[Baseline] = (),
    *,
    salt: str,
    names: bool = False,
    open_class: bool = False,
) -> list[Row]:
    """The leaderboard, best first; that of the open class has those with a model there only, if there are any.

    `salt` is the course's secret: with it a student id gives the same pseudonym every time, without it nobody
    can work out whose it is. `names` is for staff: student ids and the number of flags.
    """
    by_id = {grade.student_id: grade for grade in grades}
    called = {one: one for one in by_id} if names else pseudonyms(by_id, salt)
    entries = [_row(grade, called[one], flags=names, open_class=open_class) for one, grade in by_id.items()]
    measured = _ranked([row for row in entries if row.nats_per_char is not None])
    if open_class and not measured:
        return []
    lines = [
        Row(
            rank=None,
            name=line.name,
            status="baseline",
            nats_per_char=line.nats_per_char,
            block_nats=line.block_nats,
            data_sha256=line.data_sha256,
        )
        for line in baselines
    ]
    to_beat = [line for line in lines if line.name == BEST_NGRAM]
    measured = [replace(row, has_badge=any(_is_better(row, line) for line in to_beat)) for row in measured] + lines
    unmeasured = [row for row in entries if row.nats_per_char is None and not open_class]
    return sorted(measured, key=_order) + sorted(unmeasured, key=lambda row: row.name)


def pseudonyms(student_ids: Iterable[str], salt: str) -> dict[str, str]:
    """adjective-animal from sha256(salt, student id); who meets a taken name gets digits of the hash too."""
    taken: dict[str, str] = {}
    digests = {one: _digest(salt, one) for one in student_ids}
    for one, digest in sorted(digests.items(), key=lambda item: item[1]):
        first, second = int(digest[:8], 16), int(digest[8:16], 16)
        name = f"{ADJECTIVES[first % len(ADJECTIVES)]}-{ANIMALS[second % len(ANIMALS)]}"
        length = 2
        while name in taken:
            name = f"{'-'.join(name.split('-')[:2])}-{digest[16 : 16 + length]}"
            length += 1
        taken[name] = one
    return {one: name for name, one in taken.items()}


def leaderboard_csv(rows: Sequence[Row]) -> str:
    """The columns of COLUMNS, and `flags` behind them for staff; unknown is empty, formulas are defused."""
    staff = any(row.flags is not None for row in rows)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, *(["flags"] if staff else [])))
    for row in rows:
        measured = (row.perplexity, row.nats_per_char, row.ci_low, row.ci_high)
        numbers = ["" if x is None else str(round(x, 6)) for x in measured]
        cells = [no_formula(row.name), *numbers, row.status, no_formula(row.submitted_at)]
        flags = ["" if row.flags is None else str(row.flags)] if staff else []
        writer.writerow(["" if row.rank is None else str(row.rank), *cells, *flags])
    return text.getvalue()


def leaderboard_table(rows: Sequence[Row], title: str = "Held-out perplexity") -> Table:
    """The leaderboard for a terminal; no text in it can colour, move or link anything."""
    staff = any(row.flags is not None for row in rows)
    caption = "Ranks are shared where the difference is not resolved (paired bootstrap, 95 %)."
    if any(row.has_badge for row in rows):
        caption += f"\n★ beats the {BEST_NGRAM}."
    if not all(row.sandboxed for row in rows):
        caption += "\n[bold red]Graded without a sandbox.[/]"
    for sentence in provisos(rows):
        caption += f"\n[bold red]{sentence}[/]"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("student" if staff else "pseudonym", overflow="ellipsis")
    table.add_column("model", no_wrap=True)
    for heading in ("perplexity", "nats/char", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("status", overflow="ellipsis")
    if staff:
        table.add_column("flags", justify="right")
    for row in rows:
        interval = "" if row.ci_low is None else f"{decimals(row.ci_low)}–{decimals(row.ci_high)}"
        values = ("" if row.nats_per_char is None else decimals(row.perplexity, 2), _nats(row), interval)
        cells = [
            "" if row.rank is None else str(row.rank),
            _cell(row.name),
            _cell(row.model) + " ★" * row.has_badge,
            *values,
        ]
        cells += [_cell(row.status), *([str(row.flags or "")] if staff else [])]
        table.add_row(*cells, style="dim" if row.rank is None else None)
    return table


def leaderboard_html(
    rows: Sequence[Row], open_rows: Sequence[Row] = (), *, assignment_title: str, updated_at: str = ""
) -> str:
    """One page that needs nothing else: the ranking with its intervals, the open class, and every model's scores."""
    baselines = [(row.name, row.nats_per_char) for row in rows if row.is_baseline and row.nats_per_char]
    entries = [row for row in rows if not row.is_baseline]
    shown = [*entries, *open_rows] or rows
    best = [x for row in shown for x in (row.nats_per_char, row.ci_low, row.ci_high) if x is not None]
    best += [nats for _, nats in baselines if nats <= BASELINE_REACH * max(best, default=0.0)]
    models = list(dict.fromkeys(name for row in entries for name, _ in row.scores))
    strips = [_strip(model, entries) for model in models]
    return page(
        "leaderboard.html",
        title=assignment_title,
        updated_at=updated_at,
        rows=rows,
        open_rows=open_rows,
        measured=sum(row.rank is not None for row in rows),
        entries=len(entries),
        staff=any(row.flags is not None for row in rows),
        unsandboxed=not all(row.sandboxed for row in rows),
        weaker=provisos(rows),
        axis=plot.axis(best),
        strip_axis=plot.axis([nats for row in entries for _, nats in row.scores]),
        baselines=baselines,
        badge=BEST_NGRAM,
        strips=strips,
    )


def _strip(model: str, entries: Sequence[Row]) -> Strip:
    values = sorted(nats for row in entries for name, nats in row.scores if name == model)
    return Strip(model=model, values=tuple(values), median=statistics.median(values))


def _row(grade: Grade, name: str, *, flags: bool, open_class: bool) -> Row:
    best = best_score(grade, open_class=open_class)
    measured = [(score.model, known(score.nats_per_char)) for score in grade.perplexities if not score.is_open]
    row = Row(
        rank=None,
        name=name,
        status=grade.status.value,
        sandboxed=grade.sandbox != "none",
        checkpoint=grade.checkpoint,
        cpu_instead=grade.cpu_instead,
        submitted_at=grade.submitted_at,
        scores=tuple((model, nats) for model, nats in measured if nats is not None),
        flags=len(grade.flags) if flags else None,
    )
    if best is None:
        return row
    return replace(
        row,
        model=best.model,
        nats_per_char=best.nats_per_char,
        ci_low=known(best.ci_low),
        ci_high=known(best.ci_high),
        data_sha256=grade.data_sha256,
        block_nats=best.block_nats,
    )


def _ranked(entries: Sequence[Row]) -> list[Row]:
    ranked: list[Row] = []
    leader: Row | None = None
    for place, row in enumerate(sorted(entries, key=_order), start=1):
        if leader is None or _is_worse(row, leader):
            leader = replace(row, rank=place)
        ranked.append(replace(row, rank=leader.rank))
    return ranked


def _is_better(row: Row, line: Row) -> bool:
    """Whether an entry is below a baseline of the very text it was measured on, and the difference is resolved."""
    return bool(line.block_nats) and row.data_sha256 == line.data_sha256 and _is_worse(line, row)


def _is_worse(row: Row, leader: Row) -> bool:
    """Whether the difference is resolved."""
    if row.data_sha256 == leader.data_sha256 and len(row.block_nats) == len(leader.block_nats) > 0:
        return bootstrap_interval(np.subtract(row.block_nats, leader.block_nats))[0] > 0
    (low, _), (_, high) = (_interval(one) for one in (row, leader))
    return low > high


def _interval(row: Row) -> tuple[float, float]:
    nats = row.nats_per_char or 0.0
    return (nats if row.ci_low is None else row.ci_low, nats if row.ci_high is None else row.ci_high)


def _order(row: Row) -> tuple[float, str]:
    return (row.nats_per_char if row.nats_per_char is not None else math.inf, row.name)


def _digest(salt: str, student_id: str) -> str:
    return hashlib.sha256(f"{salt}\0{student_id}".encode("utf-8", "backslashreplace")).hexdigest()


def _nats(row: Row) -> str:
    return "" if row.nats_per_char is None else decimals(row.nats_per_char)


def _cell(value: str) -> str:
    return escape(one_line(value, 60))
