"""What grading needs besides a submission: the assignment, its profile, the texts as drawn, their baselines."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grader import identity
from grader.baselines import NAMES, Blocks, baselines
from grader.corpus import cache_folder, load_corpus
from grader.errors import AssignmentError
from grader.sandbox.runtime import runtime_identity
from grader.split import split_corpus
from grader.types import Assignment, Curve, Profile, Split, Submission


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """All that grading needs besides the submission; the same for every submission of a batch."""

    assignment: Assignment
    profile: Profile
    split: Split
    yardsticks: Mapping[str, Blocks]
    tier: str
    private: tuple[str, ...]  # folders that no notebook may see, wherever they lie
    device: str = "cpu"  # what notebooks run on; the profile may ask for another

    def key_parts(self, submission: Submission) -> dict[str, str]:
        """Everything that decides the grade of a submission, by the names of `identity.PARTS`."""
        return identity.key_parts(
            submission,
            assignment=self.assignment,
            profile=self.profile,
            split=self.split,
            tier=self.tier,
            device=self.device,
            runtime=runtime_identity(self.python),
        )

    def key(self, submission: Submission) -> str:
        """Hash of everything that decides the grade of a submission."""
        return identity.key_of(self.key_parts(submission))

    @property
    def cpu_instead(self) -> bool:
        """Whether the profile asks for a GPU, and notebooks run on the CPU."""
        return self.profile.device == "gpu" and self.device == "cpu"

    @property
    def python(self) -> str:
        """The interpreter of the notebooks; on the CPU instead of a GPU the grader's own, which needs no CUDA."""
        return sys.executable if self.cpu_instead else self.profile.runtime.python or sys.executable

    @property
    def lane_chars(self) -> tuple[int, int]:
        """How many characters a lane of held-out text has, and one of test text."""
        return len(self.split.held_out) // self.profile.lanes, len(self.split.test) // self.profile.lanes

    @property
    def drawn_lanes(self) -> tuple[int, int]:
        """How many lanes of held-out and of test text are of blocks that were drawn alike, and not of whole works."""
        texts = zip((self.split.held_out, self.split.test), self.split.works_chars, self.lane_chars, strict=True)
        held_out, test = ((len(text) - works_chars) // lane for text, works_chars, lane in texts)
        return held_out, test

    def check_seed(self, submission: Submission) -> int:
        """Seed of the random inputs of the checks: new for each submission, the same when it is graded again."""
        return int(self.key(submission)[:15], 16)


def set_up(
    assignment: Assignment,
    profile: Profile,
    tier: str,
    corpus_source: str | None = None,
    private: Sequence[Path] = (),
    device: str = "cpu",
) -> Bench:
    """Load the corpus and draw its split. Raises CorpusUnavailable, AssignmentError."""
    corpus = load_corpus(assignment.corpus, source=corpus_source)
    split = split_corpus(
        corpus,
        seed=assignment.seed,
        train_chars=profile.train_chars,
        test_chars=profile.test_chars,
        held_out_chars=profile.held_out_chars,
        works=profile.works,
    )
    for curve in profile.curves:
        if curve.relative_to not in ("", *NAMES):
            raise AssignmentError(
                f"profile {profile.name!r}: curve {curve.model!r} is relative to {curve.relative_to!r}; "
                f"the baselines are {', '.join(NAMES)}."
            )
    yardsticks = baselines(split, profile.lanes) if profile.curves else {}
    profile = dataclasses.replace(profile, curves=tuple(_placed(curve, yardsticks) for curve in profile.curves))
    closed = tuple(str(folder.resolve()) for folder in (Path(assignment.folder), cache_folder(), *private))
    return Bench(
        assignment=assignment,
        profile=profile,
        split=split,
        yardsticks=yardsticks,
        tier=tier,
        private=closed,
        device=device,
    )


def _placed(curve: Curve, yardsticks: Mapping[str, Blocks]) -> Curve:
    """A curve in nats/char as they are on this split."""
    origin = float(yardsticks[curve.relative_to][0].mean()) if curve.relative_to else 0.0
    return dataclasses.replace(curve, relative_to="", credit=tuple((origin + x, y) for x, y in curve.credit))
