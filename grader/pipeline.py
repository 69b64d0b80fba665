"""Grades one submission from its bytes to its record: the only module that composes intake, sandbox, checks, scores.

A student's fault becomes an outcome with points. A fault of ours leaves here as an InfrastructureError, and the
caller retries: it never becomes a zero.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone

from grader import __version__
from grader.baselines import BEST_NGRAM, NGRAMS
from grader.bench import Bench
from grader.checks import run_checks, scores_of_weights, without_session
from grader.errors import InfrastructureError, SubmissionError
from grader.intake import MAX_PARAMS_BYTES, read_with_params
from grader.integrity import (
    memorised,
    reported_otherwise,
    reported_perplexities,
    trained_on_test,
    weights_disagree,
    weights_distance,
    weights_unknown,
)
from grader.notebook import parse_submission, to_json
from grader.perplexity import score_models, without_model
from grader.sandbox import template
from grader.sandbox.bridge import Session, StudentError, warm_start
from grader.sandbox.lease import Lease, leased, require_present, require_working
from grader.sandbox.student import Student
from grader.types import (
    CheckResult,
    Curve,
    Execution,
    Flag,
    Grade,
    Outcome,
    PerplexityScore,
    Status,
    Submission,
)

log = logging.getLogger(__name__)
MOST_OPEN = 4  # models of a notebook in the open class
DEATHS = 3  # of a process, at one place, by something unknown: then it was the notebook
LIBRARIES = {
    "OMP_NUM_THREADS": "1",
    # mallopt(3): memory that every step frees and takes again is not given back to the kernel in between
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}  # of a notebook's environment, what is read when it begins
OPEN_SHARE = 40  # of the time for one sandbox, each of them has this part for one text
ENDED = "Another model of the open class ended the notebook's process."

_STATUS = {
    Outcome.PASSED: Status.GRADED,
    Outcome.RAISED: Status.RUNTIME_ERROR,
    Outcome.OUTPUT_EXCEEDED: Status.RUNTIME_ERROR,
    Outcome.TIMED_OUT: Status.TIMED_OUT,
    Outcome.MEMORY_EXCEEDED: Status.MEMORY_EXCEEDED,
    Outcome.GPU_MEMORY_EXCEEDED: Status.MEMORY_EXCEEDED,
    Outcome.KERNEL_DIED: Status.KERNEL_DIED,
    Outcome.PROTOCOL_VIOLATION: Status.PROTOCOL_VIOLATION,
}
_UNFIT = (
    "{model}.params could not be loaded: it does not fit the model that the notebook defines, is no file of MXNet's, "
    f"or is larger than {MAX_PARAMS_BYTES >> 20} MB."
)


_ENDED = (Outcome.KERNEL_DIED, Outcome.NOT_RUN)  # of what was asked when the process ended, or was to be asked then


@dataclass(slots=True)
class _Work:
    """What has been found out about one submission so far."""

    execution: Execution
    checks: dict[str, CheckResult]
    scores: dict[str, PerplexityScore]
    open_class: tuple[Curve, ...] | None = None  # None: not asked yet

    def copied(self) -> _Work:
        return dataclasses.replace(self, checks=dict(self.checks), scores=dict(self.scores))

    def outcomes(self) -> dict[str, Outcome]:
        """Of all that is decided."""
        checks = {f"check {name}": result.outcome for name, result in self.checks.items()}
        return checks | {f"model {name}": score.outcome for name, score in self.scores.items()}

    def without(self, names: Collection[str]) -> _Work:
        """With some of `outcomes` undecided."""
        checks = {name: result for name, result in self.checks.items() if f"check {name}" not in names}
        scores = {name: score for name, score in self.scores.items() if f"model {name}" not in names}
        return dataclasses.replace(self, checks=checks, scores=scores)


def grade_submission(submission: Submission, bench: Bench) -> Grade:
    """Grade one submission.

    Raises:
        InfrastructureError: a fault of ours; nothing about the submission is known by it.
    """
    started = time.monotonic()
    if not submission.path:
        return _ungraded(submission, bench, Status.MISSING, "No notebook was handed in.", started)
    try:
        notebook, params = _handed_in(submission)
    except SubmissionError as error:
        return _ungraded(submission, bench, Status.INVALID_NOTEBOOK, str(error), started)
    work = _examine(notebook, params, submission, bench)
    flags = flags_of(work.scores, bench)
    status = _STATUS[work.execution.outcome]
    if flags and status is Status.GRADED:
        status = Status.HELD_FOR_REVIEW
    return _grade(submission, bench, status, work, flags, started)


def _handed_in(submission: Submission) -> tuple[bytes, dict[str, bytes]]:
    """The notebook, and by model the weights beside it: nothing of a file that is too large. Raises SubmissionError."""
    data, params = read_with_params(submission)
    weights = {model: found if len(found) <= MAX_PARAMS_BYTES else b"" for model, found in params.items()}
    return to_json(parse_submission(data)).encode(), weights


def _examine(notebook: bytes, params: Mapping[str, bytes], submission: Submission, bench: Bench) -> _Work:
    """Run the notebook and ask it everything; again in a fresh sandbox if a check wedged or killed the last one.

    What may have been killed from outside is believed when it happens DEATHS times at the same place, or at several
    when there is time for no more. No round begins when the time for one sandbox is used up by those before it: no
    submission may hold up the batch.

    Raises:
        InfrastructureError: something killed its process, and there is no time to run it again.
    """
    started, deaths, is_in_doubt, ends = time.monotonic(), Counter[str](), False, 0
    work: _Work | None = None
    while not ends or time.monotonic() - started < bench.profile.limits.total_wall_s:
        with _session(notebook, params, bench) as session:
            execution = session.execute()
            said = execution.message and f" ({execution.message})"
            log.info("notebook: %s after %.1f s%s", execution.outcome.value, execution.wall_time_s, said)
            found = work.copied() if work else _Work(execution, {}, {})
            if session.over is None:
                _ask(session, found, bench.check_seed(submission), bench, params)
        ends += session.over is not None
        new = set(found.outcomes()) - set(work.outcomes() if work else ())
        place = {name for name in new if found.outcomes()[name] in _ENDED} or {"the notebook"}
        deaths.update(place if session.was_killed else ())
        is_in_doubt = session.was_killed and max(deaths[name] for name in place) < DEATHS
        if is_in_doubt:
            log.warning("its process was killed, at %s: asked again", ", ".join(sorted(place)))
            work = found.without(place) if new else work
            continue
        work = found
        if session.over is None or not new:
            break
    if is_in_doubt and ends == 1:
        raise InfrastructureError("something killed the notebook's process, and the time for it was used up.")
    return _fill(found, bench)


@contextmanager
def ran(submission: Submission, bench: Bench) -> Iterator[Student]:
    """The proxy of a notebook that has run; nothing is graded.

    Raises:
        SubmissionError: not a notebook, or its process ended, with the reason.
    """
    with _session(*_handed_in(submission), bench) as session:
        session.execute()
        yield Student(session, bench.assignment.stubs_source)


def share_template(bench: Bench, end: socket.socket) -> None:
    """Have a worker's line answered by the template of the bench's notebooks, if there is to be one."""
    if bench.device != "gpu":
        template.share(bench.tier, bench.python, bench.private, warm_start(LIBRARIES), end)


def join_template(bench: Bench, line: socket.socket) -> None:
    """Make this process' copies of notebooks at the other end of such a line."""
    if bench.device != "gpu":
        template.join(bench.tier, bench.python, bench.private, warm_start(LIBRARIES), line)


@contextmanager
def _session(notebook: bytes, params: Mapping[str, bytes], bench: Bench) -> Iterator[Session]:
    """A session on a notebook, with a GPU of its own if the bench has one: it waits until one is free.

    Raises:
        InfrastructureError: among others, the GPU was lost meanwhile, by a trial of ours: no notebook can be blamed.
    """
    if bench.device != "gpu":
        with _start(notebook, params, bench, None) as session:
            yield session
        return
    with leased(bench.python, slots_per_gpu=bench.profile.runtime.slots_per_gpu) as lease:
        with _start(notebook, params, bench, lease) as session:
            yield session
        if session.asks_for_trial:
            require_working(lease, bench.python)
        else:
            require_present(lease)


def _start(notebook: bytes, params: Mapping[str, bytes], bench: Bench, lease: Lease | None) -> Session:
    profile, split = bench.profile, bench.split
    texts = {"data/train.txt": split.train.encode(), "data/test.txt": split.test.encode()}
    return Session(
        notebook=notebook,
        files=texts | {f"checkpoint/{model}.params": weights for model, weights in params.items()},
        environment={
            "HW_DATA_DIR": "$HOME/data",
            **({"HW_CHECKPOINT_DIR": "$HOME/checkpoint"} if params else {}),
            "HW_PROFILE": profile.name,
            "HW_TIME_BUDGET_S": f"{profile.time_budget_s:g}",
            **LIBRARIES,
        },
        limits=profile.limits,
        tier=bench.tier,
        python=bench.python,
        private=bench.private,
        lease=lease,
    )


def _ask(session: Session, work: _Work, seed: int, bench: Bench, params: Collection[str]) -> None:
    """Run the checks, then the scores, that are still open; models with `params` take them in between."""
    open_checks = {check.id for check in bench.assignment.checks} - set(work.checks)
    try:
        student = Student(session, bench.assignment.stubs_source)
    except StudentError as error:
        outcome = error.outcome if error.outcome in _STATUS else Outcome.RAISED
        work.execution = dataclasses.replace(work.execution, outcome=outcome, message=str(error))
        return
    if open_checks:
        results = run_checks(bench.assignment, open_checks, student, seed, bench.split.test)
        work.checks |= {result.check_id: result for result in results}
        passed = sum(result.outcome is Outcome.PASSED for result in results)
        seconds = sum(result.wall_time_s for result in results)
        log.info("checks: %d of %d passed in %.1f s", passed, len(open_checks), seconds)
    _load_params(session, student, work, params, bench)
    open_curves = [curve for curve in bench.profile.curves if curve.model not in work.scores]
    if work.open_class is None and session.over is None:
        chosen = _open_class(student, bench)
        work.open_class = None if session.was_killed else chosen
    open_curves += [curve for curve in work.open_class or () if curve.model not in work.scores]
    asked_for = [curve.model for curve in open_curves if curve.points]
    reported = reported_perplexities(student, bench.assignment.reported, asked_for) if asked_for else {}
    if session.over is None and open_curves:
        compute = functools.partial(scores_of_weights, bench.assignment)
        judge = functools.partial(weights_distance, student, compute) if bench.assignment.weights else None
        patience_s = bench.profile.limits.total_wall_s / OPEN_SHARE
        scores = score_models(student, open_curves, bench.split, bench.profile.lanes, seed, judge, patience_s)
        for model, score in scores.items():
            said = None if model in params else reported.get(model)  # which is of the model before it took weights
            work.scores[model] = dataclasses.replace(score, reported=said)
            nats = "not measured" if score.nats_per_char is None else f"{score.nats_per_char:.3f} nats/char"
            log.info("model %s: %s %s%s", model, score.outcome.value, nats, score.message and f" ({score.message})")
        if session.over and any(score.is_open for score in scores.values()):
            for curve in work.open_class or ():  # once is enough: the others are to have their time
                work.scores.setdefault(curve.model, without_model(curve, Outcome.NOT_RUN, ENDED))


def _load_params(session: Session, student: Student, work: _Work, params: Collection[str], bench: Bench) -> None:
    """Have models take the weights that were handed in for them; one that cannot has no score, and the others go on."""
    for curve in bench.profile.curves:
        if curve.model in params and curve.model not in work.scores and session.over is None:
            try:
                student.stubs.load_params(curve.model)
            except StudentError as error:
                outcome, said = error.outcome, str(error)
                if outcome is Outcome.RAISED:  # said in our words, as its student is to read it
                    outcome, said = Outcome.NOT_RUN, _UNFIT.format(model=curve.model)
                work.scores[curve.model] = without_model(curve, outcome, said)


def _open_class(student: Student, bench: Bench) -> tuple[Curve, ...]:
    """Models that the assignment does not ask for, with curves that give nothing; none if the notebook does not say."""
    known = {curve.model for curve in bench.profile.curves}
    if not known:
        return ()
    try:
        names = student.stubs.open_class(sorted(known))
    except StudentError:
        return ()
    words = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    fit = [name for name in words if 0 < len(name) <= 40 and name.isprintable()]
    chosen = sorted(set(fit) - known)[:MOST_OPEN]
    return tuple(Curve(model=name, relative_to="", credit=((0.0, 0.0),)) for name in chosen)


def _fill(work: _Work, bench: Bench) -> _Work:
    """Give what could not be asked the outcome of the run that prevented it."""
    outcome, message = work.execution.outcome, work.execution.message
    if outcome in (Outcome.PASSED, Outcome.RAISED):
        outcome, message = (
            Outcome.NOT_RUN,
            "Never reached: code that was asked before it ended or blocked the notebook's process, again and again.",
        )
    open_checks = [check for check in bench.assignment.checks if check.id not in work.checks]
    for result in without_session(open_checks, outcome, message):
        work.checks[result.check_id] = result
    for curve in bench.profile.curves:
        if curve.model not in work.scores:
            work.scores[curve.model] = without_model(curve, outcome, message)
    return work


def flags_of(scores: Mapping[str, PerplexityScore], bench: Bench) -> tuple[Flag, ...]:
    if not scores:  # and no baselines
        return ()
    ngrams = [bench.yardsticks[name] for name in NGRAMS]
    alike = bench.drawn_lanes
    found = [trained_on_test(score, ngrams, bench.lane_chars, alike=alike) for score in scores.values()]
    found += [memorised(score, bench.yardsticks[BEST_NGRAM]) for score in scores.values()]
    found += [ask(score) for score in scores.values() for ask in (weights_disagree, reported_otherwise)]
    found += [weights_unknown(score) for score in scores.values() if bench.assignment.weights]
    return tuple(flag for flag in found if flag)


def _ungraded(submission: Submission, bench: Bench, status: Status, message: str, started: float) -> Grade:
    """A grade without an execution: nothing ran, and the message says why."""
    execution = Execution(outcome=Outcome.NOT_RUN, message=message, wall_time_s=0.0, notebook_json="")
    return _grade(submission, bench, status, _fill(_Work(execution, {}, {}), bench), (), started)


def unmeasured(submission: Submission, bench: Bench, message: str) -> Grade:
    """The record of a submission that a fault of ours kept from being graded: its score is unknown, not zero."""
    grade = _ungraded(submission, bench, Status.NEEDS_REGRADE, message, time.monotonic())
    return dataclasses.replace(grade, score=None)


def _grade(
    submission: Submission, bench: Bench, status: Status, work: _Work, flags: tuple[Flag, ...], started: float
) -> Grade:
    checks = tuple(work.checks[check.id] for check in bench.assignment.checks)
    known = [curve.model for curve in (*bench.profile.curves, *(work.open_class or ()))]
    scores = tuple(work.scores[model] for model in known if model in work.scores)
    return Grade(
        student_id=submission.student_id,
        submission_sha256=submission.sha256,
        submitted_at=submission.submitted_at,
        status=status,
        message=work.execution.message,
        score=round(sum(check.points for check in checks) + sum(score.points for score in scores), 2),
        max_score=round(sum(check.max_points for check in checks) + sum(score.max_points for score in scores), 2),
        checks=checks,
        perplexities=scores,
        flags=flags,
        key=bench.key(submission),
        key_parts=bench.key_parts(submission),
        seed=bench.check_seed(submission),
        grader_version=__version__,
        data_sha256=bench.split.sha256,
        profile=bench.profile.name,
        sandbox=bench.tier,
        wall_time_s=time.monotonic() - started,
        graded_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        notebook_json=_shown(work.execution.notebook_json),
        checkpoint=bench.assignment.score == "checkpoint",
        cpu_instead=bench.cpu_instead,
    )


def _shown(notebook_json: str) -> str:
    """The executed notebook if it is one at all; it came out of the sandbox."""
    try:
        return notebook_json if isinstance(json.loads(notebook_json or "null"), dict) else ""
    except (ValueError, RecursionError):
        return ""
