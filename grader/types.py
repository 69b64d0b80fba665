"""The records that the layers exchange: frozen, keyword-only, plain data (they pickle and turn into JSON)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


def storable(text: str) -> str:
    """The same as files and databases can hold it: a lone surrogate, which UTF-8 has not, as `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Outcome(str, Enum):
    """What became of one check or of one run of student code."""

    PASSED = "PASSED"
    FAILED = "FAILED"  # an assertion about the result did not hold
    RAISED = "RAISED"  # the student's code raised
    MISSING = "MISSING"  # the name asked for does not exist, or is still the stub
    TIMED_OUT = "TIMED_OUT"
    MEMORY_EXCEEDED = "MEMORY_EXCEEDED"
    GPU_MEMORY_EXCEEDED = "GPU_MEMORY_EXCEEDED"
    OUTPUT_EXCEEDED = "OUTPUT_EXCEEDED"
    KERNEL_DIED = "KERNEL_DIED"
    PROTOCOL_VIOLATION = "PROTOCOL_VIOLATION"
    NOT_RUN = "NOT_RUN"  # nothing was measured; `message` says why


class Status(str, Enum):
    """How the grading of one submission ended."""

    GRADED = "graded"
    MISSING = "missing"
    INVALID_NOTEBOOK = "invalid_notebook"
    RUNTIME_ERROR = "runtime_error"
    TIMED_OUT = "timed_out"
    MEMORY_EXCEEDED = "memory_exceeded"
    KERNEL_DIED = "kernel_died"
    PROTOCOL_VIOLATION = "protocol_violation"
    HELD_FOR_REVIEW = "held_for_review"
    NEEDS_REGRADE = "needs_regrade"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One graded item of an assignment."""

    id: str
    title: str
    points: float
    hidden: bool
    hint: str  # written for students: what to look at
    purpose: str = ""  # what it is for, in one sentence
    section: str = ""  # where in the notebook to look
    mistakes: Mapping[str, str] = field(default_factory=dict)  # by name, the sentence for a mistake that is recognised


@dataclass(frozen=True, slots=True, kw_only=True)
class ManualItem:
    """One graded item that only a person can mark."""

    id: str
    title: str
    points: float
    section: str = ""  # where in the notebook to look
    guide: str = ""  # what the person who marks looks for; never shown to students


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Credit for one model: points by nats/char, linear between the knots and level beyond them."""

    model: str
    relative_to: str  # the baseline of the same split that stands at 0 nats/char; empty: nats/char as they are
    credit: tuple[tuple[float, float], ...]  # (nats/char, points): nats/char fall, points rise from 0

    @property
    def points(self) -> float:
        return self.credit[-1][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one submission may use; each limit has an outcome of its own."""

    notebook_cpu_s: float  # of the kernel; at its end the running cell is interrupted and the checks begin
    notebook_wall_s: float  # the same, for a notebook that sleeps; generous, since a busy machine is no fault
    check_wall_s: float  # one call into the student's code
    total_wall_s: float  # then the sandbox is killed
    memory_bytes: int  # resident, summed over the sandbox
    output_bytes: int  # the executed notebook that comes back
    file_bytes: int
    processes: int
    open_files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What runs the notebooks of a profile."""

    python: str = ""  # path of an interpreter with MXNet, nbclient and ipykernel; empty: the grader's own
    slots_per_gpu: int = 1  # notebooks that may share a GPU; with more than one they share its memory, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One scale at which the homework runs and is graded."""

    name: str
    train_chars: int | None  # None: all that is left of the corpus
    test_chars: int
    held_out_chars: int
    time_budget_s: float  # what the notebook is told
    lanes: int  # sequences scored side by side
    works: int  # of the corpus, set aside whole for test text, and as many for held-out text
    limits: Limits
    curves: tuple[Curve, ...]  # none in a student's copy: nothing is held out there
    device: str = "cpu"  # or `gpu`
    runtime: Runtime = Runtime()


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """What the roster of a course knows of a student and grades do not; all of it may be empty."""

    last_name: str = ""
    first_name: str = ""
    email: str = ""
    section: str = ""
    lms_id: str = ""  # Canvas's ID, or Moodle's `Participant 123`


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which of a student's submissions counts, and what lateness costs; as they are: the latest, and nothing."""

    most: int | None = None  # attempts that count; None: all
    counts: str = "latest"  # or `best`: the one with the most points, lateness taken off
    due: str = ""  # ISO 8601 with a time zone; empty: nothing is late
    grace_minutes: float = 0.0  # after `due`, in which nothing is late
    penalty_per_day: float = 0.0  # share of the score for each day, begun ones as whole
    max_days: int | None = None  # later than that there are no points; None: never


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """An assignment folder, read and validated."""

    folder: str
    name: str
    title: str
    duedate: str  # ISO 8601, or empty
    corpus: str
    seed: int  # of the split
    checks: tuple[Check, ...]
    stubs_source: str  # runs in the student's process; decides nothing
    weights: str  # the file of checks/ that computes scores from weights, `checks/weights.py`; empty: none
    reported: str  # where the notebook reports a test perplexity, `report/{model}/test_perplexity`; empty: nowhere
    profiles: tuple[Profile, ...]
    checks_sha256: str  # of every file of checks/
    manual: tuple[ManualItem, ...] = ()  # in a student's copy: none
    has_secret: bool = False  # the seed is a course's own, and not the one that assignment.yaml shows to everybody
    roster: Mapping[str, Person] = field(default_factory=dict)  # by student id; empty: whoever hands something in
    rules: Rules = Rules()
    score: str = "retrain"  # or `checkpoint`: weights that were handed in beside a notebook are scored

    def profile(self, name: str) -> Profile:
        """The profile of that name; KeyError if there is none."""
        return {profile.name: profile for profile in self.profiles}[name]

    def weights_of(self, profile: Profile) -> tuple[str, ...]:
        """The models whose weights can be handed in."""
        return tuple(curve.model for curve in profile.curves) if self.score == "checkpoint" else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One draw of train, test and held-out text from a corpus."""

    train: str
    test: str
    held_out: str
    sha256: str  # of (corpus sha256, seed, profile sizes): the identity of the draw
    corpus_sha256: str = ""
    works_chars: tuple[int, int] = (0, 0)  # at the end of held-out and of test text, of works that were set aside whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One notebook handed in by one student, and the weights beside it where a course takes them."""

    student_id: str
    path: str  # the file; empty if the student handed in none
    sha256: str  # identity of its bytes, weights included; of nothing if missing
    submitted_at: str  # ISO 8601, UTC
    params: Mapping[str, str] = field(default_factory=dict)  # by model, the files with its weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What the run of a notebook's cells came to."""

    outcome: Outcome
    message: str  # in the student's terms; empty if all went well
    wall_time_s: float
    notebook_json: str  # the executed notebook: for showing, never for deciding


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The verdict on one check."""

    check_id: str
    outcome: Outcome
    points: float
    max_points: float
    message: str = ""  # what was observed; shown to the student only for visible checks
    mistake: str = ""  # its name, if it was recognised: a key of the check's `mistakes`, or the type of an exception
    wall_time_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityScore:
    """Held-out perplexity of one model: exp(−(1/N) Σ ln p(x_t | x_<t)), measured in lock-step."""

    model: str
    outcome: Outcome
    points: float
    max_points: float
    message: str = ""
    nats_per_char: float | None = None  # None: could not be measured
    ci_low: float | None = None  # 95 % bootstrap interval over blocks, nats/char
    ci_high: float | None = None
    num_chars: int = 0
    block_nats: tuple[float, ...] = ()  # mean loss of each held-out block
    test_block_nats: tuple[float, ...] = ()  # the same on the test text that the notebook was given
    weights_distance: float | None = None  # total variation of its answers from what its weights compute; None: unknown
    splice_gap: float | None = None  # nats/char that it loses on held-out text that is cut up and shuffled
    splice_gap_error: float | None = None  # standard error of the gap
    reported: float | None = None  # the test perplexity that the notebook itself reports; None: none

    @property
    def is_open(self) -> bool:
        """A model that the assignment does not ask for: it earns nothing, and competes in the open class."""
        return self.max_points == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A question for a human, with its evidence; it deducts nothing."""

    kind: str  # TRAINED_ON_TEST | MEMORISED | DUPLICATE | REPORTED_OTHERWISE | WEIGHTS_DISAGREE | WEIGHTS_UNKNOWN
    model: str
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """All that grading one submission came to."""

    student_id: str
    submission_sha256: str
    submitted_at: str
    status: Status
    message: str  # one sentence for the student; empty if all went well
    score: float | None  # None: unknown (needs_regrade), never zero
    max_score: float
    checks: tuple[CheckResult, ...]
    perplexities: tuple[PerplexityScore, ...]
    flags: tuple[Flag, ...]
    key: str  # hash of everything that decides the grade
    seed: int | None  # of the random inputs of its checks, for `grader replay`; None: not recorded
    grader_version: str
    data_sha256: str
    profile: str
    sandbox: str  # the tier it ran in
    wall_time_s: float
    graded_at: str  # ISO 8601, UTC
    notebook_json: str = field(default="", repr=False)  # executed, for showing
    checkpoint: bool = False  # weights could be handed in: what was scored need not have been trained in the sandbox
    late_days: int = 0  # begun days between due and handed in, where the rules of the course count them
    late_penalty: float = 0.0  # the share of the score that they cost; both are filled in by `Gradebook.counting`
    key_parts: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)  # by name; none: not recorded
    cpu_instead: bool = False  # the profile asks for a GPU, and this ran on the CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The points that a person gave one student for one item."""

    student_id: str
    item: str  # the id of a ManualItem
    points: float
    comment: str  # for the student
    submission_sha256: str  # of the notebook that was marked
    marked_by: str  # a login name
    marked_at: str  # ISO 8601, UTC
