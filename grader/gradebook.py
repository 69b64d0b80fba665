"""Keep every grade for good: an append-only database, one transaction a grade.

The schema is made and upgraded by the Alembic migrations in `grader/migrations` and by nothing else.
Triggers refuse UPDATE and DELETE: a regrade is a new row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import sqlalchemy as sa

from grader.database import make_engine, reading, refuse_empty, require_server, upgrade, use_wal, writing
from grader.errors import InfrastructureError, UsageError
from grader.faults import OURS, plain_faults
from grader.place import KNOWN, Place, shown
from grader.rules import lateness, rank
from grader.tables import (
    ATTEMPTS,
    CHECK_RESULTS,
    COUNTING,
    FLAGS,
    GRADES,
    LATEST,
    MARKS,
    PERPLEXITY_SCORES,
    RULES,
    RUNS,
    SUBMISSIONS,
    seconds_of,
)
from grader.types import CheckResult, Flag, Grade, Mark, Outcome, PerplexityScore, Rules, Status

AT_ONCE = 500  # numbers in a list, of which Oracle takes 1,000


class _Attempt(NamedTuple):
    """A grade that may count, with what its lateness costs."""

    grade_id: int
    score: float | None
    late_days: int
    late_penalty: float


class Gradebook:
    """All grades of one course run; `open` it, use it in a `with` block, or `close` it."""

    def __init__(self, place: Place, engine: sa.Engine, wait_s: float) -> None:
        self.place = place
        self._engine = engine
        self._wait_s = wait_s

    @classmethod
    def open(cls, place: Place, *, create: bool = True, wait_s: float = 30.0) -> Gradebook:
        """Open the file, or the database on a server, made or upgraded to the newest schema first if need be.

        `wait_s` is how long to wait for another process that is writing.

        Raises:
            UsageError: not a gradebook, of a newer grader, not writable, missing and `create` is false, or a server
                that does not let us in.
            InfrastructureError: locked for longer than `wait_s`, damaged, the disk is full, or no server answers.
        """
        if not create and isinstance(place, Path) and not place.exists():
            raise UsageError(f"There is no gradebook at {place}: grade first, or name the file that holds one.")
        if not create and isinstance(place, Path):
            refuse_empty(place)
        book = cls(place, make_engine(place, wait_s), wait_s)
        with plain_faults(place):
            if isinstance(place, Path):
                use_wal(book._engine, wait_s)
                with book._engine.connect() as connection:
                    verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
                if verdict != "ok":
                    raise InfrastructureError(OURS["malformed"].format(path=place))
            else:
                require_server(place, wait_s)
            upgrade(book._engine, place, wait_s=wait_s, create=create)
        return book

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Gradebook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin_run(self, *, command: str, profile: str, started_at: str) -> int:
        """Record one call of the grader; the number that comes back goes with each grade of that call."""
        with self._writing() as connection:
            row = {"command": command, "profile": profile, "started_at": started_at}
            return _insert(connection, RUNS, row)

    def add(self, run_id: int, *grades: Grade) -> None:
        """Append grades with all their parts, all or nothing at all. The executed notebooks are not kept.

        Raises:
            InfrastructureError: a score, points or time that is not a finite number, or the write failed.
        """
        for grade in grades:
            _refuse_what_is_no_number(grade)
        with self._writing() as connection:
            for grade in grades:
                _add(connection, run_id, grade)

    def mark(self, mark: Mark) -> None:
        """Append the mark of a person; an earlier one for the same item stays on record and counts no longer.

        Raises:
            InfrastructureError: the points are not a finite number, or the write failed.
        """
        if not math.isfinite(mark.points):
            raise InfrastructureError(
                f"The mark of {mark.student_id!r} for {mark.item!r} is no finite number: it was not recorded."
            )
        with self._writing() as connection:
            _insert(connection, MARKS, _columns(MARKS, mark))

    def marks(self) -> dict[tuple[str, str], Mark]:
        """By student id and item, the mark that counts: the last one given."""
        newest = sa.select(sa.func.max(MARKS.c.id)).group_by(MARKS.c.student_id, MARKS.c.item)
        query = sa.select(*(MARKS.c[f.name] for f in fields(Mark))).where(MARKS.c.id.in_(newest))
        with plain_faults(self.place), self._engine.connect() as connection:
            found = [Mark(**row) for row in connection.execute(query).mappings()]
        return {(mark.student_id, mark.item): mark for mark in found}

    def find(self, student_id: str, key: str) -> Grade | None:
        """The newest grade of this student with this key; None if that is `needs_regrade`, a withdrawal."""
        newest = (
            sa.select(sa.func.max(GRADES.c.id))
            .join(SUBMISSIONS)
            .where(SUBMISSIONS.c.student_id == student_id, GRADES.c.key == key)
        )
        real = GRADES.c.status != Status.NEEDS_REGRADE.value
        found = self._read(sa.and_(GRADES.c.id == newest.scalar_subquery(), real))
        return found[0] if found else None

    def known(self) -> set[tuple[str, str]]:
        """Student and key of every grade that `find` would find."""
        newest = sa.select(sa.func.max(GRADES.c.id)).group_by(GRADES.c.student_id, GRADES.c.key)
        query = sa.select(GRADES.c.student_id, GRADES.c.key).where(GRADES.c.id.in_(newest))
        query = query.where(GRADES.c.status != Status.NEEDS_REGRADE.value)
        with plain_faults(self.place), self._engine.connect() as connection:
            return {(row.student_id, row.key) for row in connection.execute(query)}

    def latest(self) -> list[Grade]:
        """The last grade added for each student, by id; `needs_regrade` shadows a real one of its own key only."""
        with plain_faults(self.place), self._engine.connect() as connection:
            ids = list(connection.execute(sa.select(LATEST.c.grade_id)).scalars())
        return self._as_they_stand(self._of_ids(ids), ids)

    def counting(self, rules: Rules) -> list[Grade]:
        """The grade of each student that counts under these rules, by student id, with what its lateness costs.

        Nothing is recorded: whoever looks by other rules changes nothing for those who read the view `counting`.
        """
        if rules == Rules():
            return self.latest()
        with plain_faults(self.place), reading(self._engine) as connection:
            if _recorded_rules(connection) == rules:  # then it is kept, and read at once
                found = connection.execute(sa.select(COUNTING))
                chosen = [_Attempt(row.grade_id, None, row.late_days, row.late_penalty) for row in found]
            else:
                judged = _judged(connection, rules).values()
                chosen = [
                    max(mine, key=lambda one: (rank(rules, one.score, one.late_penalty), one.grade_id))
                    for mine in judged
                ]
        return self._with_lateness(chosen)

    def may_count(self, rules: Rules) -> list[Grade]:
        """All grades of which one may come to count if scores change: by student id, of each in the order of adding.

        Those are the newest of each notebook within the limit of attempts, or only the latest where that counts.
        """
        if rules.counts == "latest":
            return self.counting(rules)
        with plain_faults(self.place), reading(self._engine) as connection:
            judged = _judged(connection, rules).values()
        return self._with_lateness([one for mine in judged for one in mine])

    def recorded_rules(self) -> Rules:
        """Those by which the view `counting` says what counts."""
        with plain_faults(self.place), self._engine.connect() as connection:
            return _recorded_rules(connection)

    def record_rules(self, rules: Rules) -> None:
        """Have the view `counting` say what counts by these rules; a row more if they are others than before."""
        if self.recorded_rules() != rules:
            row = {f.name: getattr(rules, f.name) for f in fields(Rules)}
            with self._writing() as connection:
                _insert(connection, RULES, row | {"due_s": seconds_of(rules.due)})

    def _with_lateness(self, attempts: Iterable[_Attempt]) -> list[Grade]:
        chosen = {one.grade_id: one for one in attempts}
        found, ids = [], sorted(chosen)
        for grade_id, grade in zip(ids, self._of_ids(ids), strict=True):
            one = chosen[grade_id]
            found.append(replace(grade, late_days=int(one.late_days), late_penalty=float(one.late_penalty)))
        return self._as_they_stand(found, ids)

    def _as_they_stand(self, grades: Sequence[Grade], ids: Sequence[int]) -> list[Grade]:
        """These grades, with these ids, by student id; in the place of one that was withdrawn its withdrawal."""
        later = GRADES.alias("later")
        same = [later.c[name] == GRADES.c[name] for name in ("student_id", "key")]
        withdraws = sa.and_(*same, later.c.id > GRADES.c.id, later.c.status == Status.NEEDS_REGRADE.value)
        query = sa.select(sa.func.max(later.c.id)).select_from(GRADES).join(later, withdraws).group_by(GRADES.c.id)
        query = query.where(_among(self._engine, GRADES.c.id, ids), GRADES.c.status != later.c.status)
        with plain_faults(self.place), self._engine.connect() as connection:
            later_ids = list(connection.execute(query).scalars())
        withdrawn = self._of_ids(later_ids) if later_ids else []
        withdrawals = {(grade.student_id, grade.key): grade for grade in withdrawn}
        stand = (withdrawals.get((grade.student_id, grade.key), grade) for grade in grades)
        return sorted(stand, key=lambda grade: grade.student_id)

    def history(self, student_id: str) -> list[Grade]:
        """All grades of one student, in the order in which they were added."""
        return self._read(SUBMISSIONS.c.student_id == student_id)

    def of_run(self, run_id: int) -> list[Grade]:
        """The grades that one call of the grader added, in that order."""
        return self._read(GRADES.c.run_id == run_id)

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """One transaction that holds the write lock from its start and so cannot lose it half-way."""
        with plain_faults(self.place), writing(self._engine, self._wait_s) as connection:
            yield connection

    def _of_ids(self, ids: Sequence[int]) -> list[Grade]:
        return self._read(_among(self._engine, GRADES.c.id, ids))

    def _read(self, wanted: sa.ColumnElement[bool]) -> list[Grade]:
        query = sa.select(GRADES, SUBMISSIONS).join(SUBMISSIONS).where(wanted).order_by(GRADES.c.id)
        try:
            with plain_faults(self.place), reading(self._engine) as connection:  # grades and parts of one moment
                heads = connection.execute(query).all()
                ids = [int(head[0]) for head in heads]
                checks = _parts(connection, CHECK_RESULTS, CheckResult, ids)
                scores = _parts(connection, PERPLEXITY_SCORES, PerplexityScore, ids)
                flags = _parts(connection, FLAGS, Flag, ids)
            return [_grade(head, checks, scores, flags) for head in heads]
        except (ValueError, TypeError) as error:  # not what we wrote: no such status, no JSON
            raise InfrastructureError(OURS["malformed"].format(path=shown(self.place))) from error


def best_score(grade: Grade, *, open_class: bool = False) -> PerplexityScore | None:
    """The model of this grade with the lowest held-out perplexity, among those asked for or in the open class.

    None if none could be measured.
    """
    scores = [score for score in grade.perplexities if score.is_open == open_class]
    measured = [score for score in scores if _finite(score.nats_per_char) is not None]
    return min(measured, key=lambda score: score.nats_per_char or 0.0, default=None)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _refuse_what_is_no_number(grade: Grade) -> None:
    numbers = [grade.score or 0.0, grade.max_score, grade.wall_time_s]
    for check in grade.checks:
        numbers += [check.points, check.max_points, check.wall_time_s]
    for score in grade.perplexities:
        numbers += [score.points, score.max_points]
    if not all(map(math.isfinite, numbers)):
        raise InfrastructureError(
            f"The grade of {grade.student_id!r} holds a score, points or time that is no finite number: "
            "it was not recorded; report this as a fault of the grader."
        )


def _columns(table: sa.Table, record: Grade | CheckResult | PerplexityScore | Flag | Mark) -> dict[str, Any]:
    """The fields of a record that the table has; a measured number that is not finite becomes unknown."""
    row = {f.name: getattr(record, f.name) for f in fields(record) if f.name in table.c}
    for name in ("nats_per_char", "ci_low", "ci_high"):
        if name in row:
            row[name] = _finite(row[name])
    if "outcome" in row:
        row["outcome"] = row["outcome"].value
    return row


def _add(connection: sa.Connection, run_id: int, grade: Grade) -> None:
    row = _columns(GRADES, grade)
    row |= {"run_id": run_id, "submission_id": _submission_id(connection, grade)}
    row["status"] = grade.status.value
    grade_id = _insert(connection, GRADES, row)
    parts: list[tuple[sa.Table, Sequence[CheckResult | PerplexityScore | Flag]]]
    parts = [(CHECK_RESULTS, grade.checks), (PERPLEXITY_SCORES, grade.perplexities), (FLAGS, grade.flags)]
    for table, records in parts:
        rows = [
            {"grade_id": grade_id, "position": position} | _columns(table, record)
            for position, record in enumerate(records)
        ]
        if rows:
            connection.execute(sa.insert(table), rows)


def _recorded_rules(connection: sa.Connection) -> Rules:
    query = sa.select(*(RULES.c[f.name] for f in fields(Rules))).order_by(RULES.c.id.desc()).limit(1)
    last = connection.execute(query).mappings().first()
    return Rules(**last) if last else Rules()


def _judged(connection: sa.Connection, rules: Rules) -> dict[str, list[_Attempt]]:
    """By student, the attempts that the rules let count, in the order of their grades; if there is none, the latest."""
    due_s, found = seconds_of(rules.due), dict[str, list[_Attempt]]()
    query = sa.select(*ATTEMPTS.c, GRADES.c.score).join(GRADES, GRADES.c.id == ATTEMPTS.c.grade_id)
    for row in connection.execute(query.order_by(ATTEMPTS.c.grade_id)):
        if rules.most is None or row.attempt <= rules.most:
            late = lateness(rules, due_s, row.submitted_s)
            found.setdefault(row.student_id, []).append(_Attempt(row.grade_id, row.score, *late))
    for row in connection.execute(sa.select(LATEST)):  # that of whom only faults of ours have hit
        found.setdefault(row.student_id, [_Attempt(row.grade_id, None, 0, 0.0)])
    return found


def _insert(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> int:
    if connection.dialect.name not in KNOWN:
        number = int(connection.execute(sa.select(sa.func.max(table.c.id))).scalar() or 0) + 1
        plain = sa.table(table.name, *(sa.column(column.name, column.type) for column in table.c))
        connection.execute(sa.insert(plain).values(row | {"id": number}))
        return number
    key = connection.execute(sa.insert(table).values(row)).inserted_primary_key
    assert key is not None, "every table here has a primary key"
    return int(key[0])


def _submission_id(connection: sa.Connection, grade: Grade) -> int:
    row = {
        "student_id": grade.student_id,
        "sha256": grade.submission_sha256,
        "submitted_at": grade.submitted_at,
    }
    same = [SUBMISSIONS.c[name] == value for name, value in row.items()]
    known = connection.execute(sa.select(SUBMISSIONS.c.id).where(*same)).scalar()
    if known is not None:
        return int(known)
    return _insert(connection, SUBMISSIONS, row | {"submitted_s": seconds_of(grade.submitted_at)})


def _among(bound: sa.Engine | sa.Connection, column: sa.Column[int], ids: Sequence[int]) -> sa.ColumnElement[bool]:
    """The column is one of these, of which there may be many."""
    if bound.dialect.name == "sqlite":
        return column.in_(sa.select(sa.func.json_each(json.dumps(ids)).table_valued("value").c.value))
    if bound.dialect.name == "postgresql":
        return column == sa.any_(sa.cast(ids, sa.ARRAY(sa.Integer)))
    some = (ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE))
    return sa.or_(
        sa.false(), *(column.in_(sa.bindparam(None, each, expanding=True, literal_execute=True)) for each in some)
    )


def _parts(connection: sa.Connection, table: sa.Table, kind: type, ids: list[int]) -> dict[int, list[dict[str, Any]]]:
    names = [f.name for f in fields(kind)]
    found: dict[int, list[dict[str, Any]]] = {}
    columns = [table.c.grade_id, *(table.c[name] for name in names)]
    query = sa.select(*columns).where(_among(connection, table.c.grade_id, ids))
    query = query.order_by(table.c.grade_id, table.c.position)
    for grade_id, *values in connection.execute(query):
        part = dict(zip(names, values, strict=True))
        if "outcome" in part:
            part["outcome"] = Outcome(part["outcome"])
        found.setdefault(grade_id, []).append(part)
    return found


def _grade(
    head: sa.Row[Any],
    checks: dict[int, list[dict[str, Any]]],
    scores: dict[int, list[dict[str, Any]]],
    flags: dict[int, list[dict[str, Any]]],
) -> Grade:
    row = head._mapping
    names = [f.name for f in fields(Grade) if f.name in GRADES.c and f.name != "student_id"]
    return Grade(
        **{name: row[GRADES.c[name]] for name in names} | {"status": Status(row[GRADES.c.status])},
        student_id=row[SUBMISSIONS.c.student_id],
        submission_sha256=row[SUBMISSIONS.c.sha256],
        submitted_at=row[SUBMISSIONS.c.submitted_at],
        checks=tuple(CheckResult(**part) for part in checks.get(row[GRADES.c.id], [])),
        perplexities=tuple(PerplexityScore(**part) for part in scores.get(row[GRADES.c.id], [])),
        flags=tuple(Flag(**part) for part in flags.get(row[GRADES.c.id], [])),
    )
