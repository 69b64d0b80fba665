"""Every error the grader raises on purpose, and whose fault each is.

GraderError
├── AssignmentError            staff: a broken assignment folder, a refused release     (exit 2)
├── UsageError                 the caller: a wrong path or option                       (exit 2)
├── SubmissionError            the student: becomes an outcome, never a traceback
│   └── ProtocolViolation      what came over the bridge is not what the protocol allows
└── InfrastructureError        ours: retried, then `needs_regrade`, never a zero        (exit 3)
    ├── CorpusUnavailable      a text that cannot be fetched, read or verified
    ├── SandboxUnavailable     no sandbox, hence no grading
    ├── RuntimeUnavailable     no interpreter or no GPU that can run the notebooks, or a GPU that was lost
    └── WorkerLost             a worker process that ended before its record came back
        ├── SchedulerLost      all of them at once
        └── PackageMissing     one that joined a batch before it had what the batch needs
"""


class GraderError(Exception):
    """One clear sentence: what, where, what was expected, what to do next."""

    exit_code = 3


class AssignmentError(GraderError):
    """The assignment folder is wrong; staff can fix it."""

    exit_code = 2


class UsageError(GraderError):
    """A path, flag or value that cannot be used as given."""

    exit_code = 2


class SubmissionError(GraderError):
    """The student's work cannot be graded as handed in."""


class ProtocolViolation(SubmissionError):
    """Bytes from the sandbox that break the protocol."""


class InfrastructureError(GraderError):
    """A fault of ours; the student loses nothing by it."""


class CorpusUnavailable(InfrastructureError):
    """A corpus could not be fetched, read or verified."""


class SandboxUnavailable(InfrastructureError):
    """No sandbox could be started on this machine."""


class RuntimeUnavailable(InfrastructureError):
    """The interpreter or the GPU that a profile asks for cannot be used on this machine, or not any more."""


class WorkerLost(InfrastructureError):
    """A worker process died with a submission in hand."""


class SchedulerLost(WorkerLost):
    """The scheduler went away with all that was in hand: nobody's attempt is used up by that."""


class PackageMissing(WorkerLost):
    """The runner has not got what the batch needs."""
