"""Intake: finds who handed in what, in a file, a folder or an LMS export, and reads it within bounds."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
import zoneinfo
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from grader.errors import InfrastructureError, SubmissionError, UsageError
from grader.types import Grade, Person, Status, Submission
from grader.unzip import MAX_FILE_BYTES, WRAPPERS, is_ignored, unzip

METADATA = "submission_metadata.yml"  # Gradescope's
TIMESTAMP = "timestamp.txt"  # nbgrader's
MAX_PARAMS_BYTES = 6 * 2**20  # of one file of weights; the homework's largest model has half as much
STAFF_SUFFIXES = {".csv", ".db", ".md", ".yaml", ".yml"}  # what lies beside submissions and is none
# lastfirst_[LATE_]12345_678_homework.ipynb: the student, the upload, and the file's name
CANVAS = re.compile(r"(?P<name>[^_]+)_(?:LATE_)?(?P<id>\d{3,})_(?P<upload>\d{3,})_(?P<file>.+)")
# First Last_123456_assignsubmission_file_, a folder, or the beginning of a file's name; the first id counts, as what
# follows is the student's to choose
MOODLE = re.compile(r"(?P<name>.+?)_(?P<id>\d+)_assignsubmission_[a-z]+(?:_(?P<file>.*))?")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A file that may be somebody's submission."""

    path: Path
    name: str  # without what the LMS put before it
    upload: int = 0  # Canvas numbers them: the higher, the later

    @property
    def is_notebook(self) -> bool:
        return self.path.suffix.lower() == ".ipynb"


def collect(path: Path, work: Path, exclude: Path | None = None, weights_of: Collection[str] = ()) -> list[Submission]:
    """All submissions under `path`, one for each student, by student id.

    `path` is a notebook (or whatever was handed in as one), a zip file, or a folder: `<student>.ipynb`;
    `<student>/homework.ipynb`; nbgrader's `submitted/<student>/<assignment>/`; an export of Gradescope,
    Canvas or Moodle, zipped or not. Zip files are extracted below `work`, once.

    A student's submission is `homework.ipynb`; failing that the latest or first notebook; failing that the
    first file of another kind, which will be found not to be a notebook; failing that it is missing.
    Hidden files and links are never followed or read. A results folder inside `path` is told by `exclude`.
    Files `<model>.params` of the models `weights_of`, which lie beside the notebook, are part of the submission.

    Raises UsageError if there is nothing to collect, InfrastructureError if a zip cannot be extracted.
    """
    if not path.exists():
        raise UsageError(f"There is no file or folder {path}; give a notebook, a zip file or a folder of them.")
    if path.is_file() and path.suffix.lower() == ".zip":
        path = unzip(path, work)
    try:
        if path.is_dir():
            found = _by_student(_root(path))
            if exclude and path.resolve() in exclude.resolve().parents:
                found = {raw: files for raw, files in found.items() if not _all_below(exclude, files)}
        else:
            file = _File(path=path.resolve(), name=path.name)
            found = {_student(path.name)[0]: [file, *_beside(file.path, weights_of)]}
        for stray in sorted(weights_of):
            if [file.name for file in found.get(stray, [])] == [f"{stray}.params"]:
                log.warning("%s is left out: whose it is cannot be told.", found.pop(stray)[0].path)
        ids = _unique_ids(found)
        submissions = [_submission(ids[raw], _best(raw, files), files, weights_of) for raw, files in found.items()]
    except OSError as error:
        raise UsageError(f"{error.filename or path} cannot be read: {error.strerror}.") from error
    if not any(submission.path for submission in submissions):
        raise UsageError(f"There is no submission in {path}: no notebook, and no folder of a student with a file.")
    return sorted(submissions, key=lambda submission: submission.student_id)


def absent(roster: Mapping[str, Person], collected: Sequence[Submission], grades: Iterable[Grade]) -> list[Submission]:
    """Who is on the roster and handed in nothing, now or before.

    Nobody is, as long as somebody who handed in is not on the roster: it may be one of them under another name, and
    unknown is not missing. Case counts for nothing, and an LMS's number in a name (`doejane_12345`) is understood.
    """
    by_name = {student.casefold(): student for student in roster}
    by_name |= {person.lms_id: student for student, person in roster.items() if person.lms_id}
    here, strangers = set(), []
    for one in collected:
        names = [one.student_id.casefold(), *one.student_id.split("_")[1:]]
        known = next((by_name[name] for name in names if name in by_name), None)
        if known is None:
            strangers.append(one.student_id)
        else:
            here.add(known)
    if roster and strangers:
        log.warning(
            "%d who handed in are not on the roster (%s): they are graded, and nobody is recorded as missing.",
            len(strangers),
            ", ".join(sorted(strangers)[:3]),
        )
        return []
    here |= {grade.student_id for grade in grades if grade.status is not Status.MISSING}
    return [_submission(student, None) for student in sorted(set(roster) - here)]


def _all_below(folder: Path, files: list[_File]) -> bool:
    inside = [file.path.resolve().is_relative_to(folder.resolve()) for file in files]
    return bool(inside) and all(inside)


def read_submission(submission: Submission) -> bytes:
    """The bytes of the notebook, as `read_with_params` has them."""
    return read_with_params(submission)[0]


def read_with_params(submission: Submission) -> tuple[bytes, dict[str, bytes]]:
    """The bytes handed in: of the notebook and, by model, of the weights; of a file that is too large, some.

    Raises SubmissionError if there are too many, InfrastructureError if they cannot be read, or are not
    those that were collected: neither is the student's fault.
    """
    try:
        data, params = read_bounded(Path(submission.path)), _read_params(submission.params)
    except OSError as error:
        path = _printable(str(error.filename or submission.path))
        raise InfrastructureError(
            f"{path} cannot be read any more: {error.strerror}; collect the submissions again."
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise SubmissionError(
            f"The file is larger than {MAX_FILE_BYTES // 2**20} MB: clear the outputs of all cells, save, and hand "
            "it in again."
        )
    if _identity(data, params) != submission.sha256:
        raise InfrastructureError(
            f"{_printable(submission.path)} has changed since it was collected; collect the submissions again."
        )
    return data, params


def _identity(notebook: bytes, params: Mapping[str, bytes]) -> str:
    """The sha256 of the notebook; with weights, that of a list of the sha256 of each file."""
    digest = hashlib.sha256(notebook).hexdigest()
    if not params:
        return digest
    lines = [f"{model} {hashlib.sha256(params[model]).hexdigest()}\n" for model in sorted(params)]
    return hashlib.sha256("".join([f"{digest}\n", *lines]).encode()).hexdigest()


def _submission(
    student: str, file: _File | None, files: Sequence[_File] = (), weights_of: Collection[str] = ()
) -> Submission:
    if file is None:
        return Submission(student_id=student, path="", sha256=hashlib.sha256().hexdigest(), submitted_at="")
    params = _params(file, files, weights_of)
    try:
        digest = _identity(read_bounded(file.path), _read_params(params))
    except OSError:
        digest = ""  # found out again, and told, when it is to be graded; the others go on
    when = _submitted_at(file.path)
    return Submission(student_id=student, path=str(file.path), sha256=digest, submitted_at=when, params=params)


def _beside(notebook: Path, weights_of: Collection[str]) -> list[_File]:
    """The files of weights in the folder of a notebook that was given by its name."""
    paths = [notebook.with_name(f"{model}.params") for model in weights_of]
    for path in filter(Path.is_symlink, paths):
        log.warning("%s is a link and is not followed.", path)
    return [_File(path=path, name=path.name) for path in paths if path.is_file() and not path.is_symlink()]


def _params(notebook: _File, files: Sequence[_File], weights_of: Collection[str]) -> dict[str, str]:
    """By model, the path of `<model>.params` beside the notebook: of several, the latest; Canvas appends `-1`."""
    found: dict[str, tuple[int, str]] = {}
    for file in files:
        stem = re.sub(r"-\d+$", "", Path(file.name).stem)
        if file.path.suffix == ".params" and stem in weights_of and file.path.parent == notebook.path.parent:
            found[stem] = max(found.get(stem, (0, "")), (file.upload, str(file.path)))
    return {model: path for model, (_, path) in sorted(found.items())}


def _printable(path: str) -> str:
    """A path for a sentence; its name may be no valid Unicode."""
    return os.fsencode(path).decode(errors="replace")


def read_bounded(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a file, one more than allowed at most. A link or a pipe that has taken its place is not read."""
    with open(path, "rb", opener=_open_file) as stream:
        return stream.read(limit + 1)


def _read_params(params: Mapping[str, str]) -> dict[str, bytes]:
    return {model: read_bounded(Path(path), MAX_PARAMS_BYTES) for model, path in params.items()}


def _open_file(path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a plain file", path)
    return fd


# ---------------------------------------------------------------- who handed in what


def _root(folder: Path) -> Path:
    """The folder whose entries are students: `folder`, or one inside it that wraps them."""
    if folder.name in WRAPPERS:
        return folder
    entries = list(_entries(folder))
    for entry in entries:
        if entry.name in WRAPPERS and entry.is_dir():
            return entry
    return _root(entries[0]) if len(entries) == 1 and _wraps(entries[0]) else folder


def _wraps(folder: Path) -> bool:
    """Whether the one folder in an archive holds the students, and is not itself the one student's."""
    if not folder.is_dir() or (folder / "homework.ipynb").exists():
        return False
    entries = list(_entries(folder))
    if any(entry.name in (METADATA, *WRAPPERS) for entry in entries):
        return True
    return sum(_any_notebook(_files(entry)) for entry in entries) > 1


def _by_student(root: Path) -> dict[str, list[_File]]:
    """The files of each student, by the id that the layout gives; an empty list if a student has none."""
    if (root / METADATA).is_file():
        return _gradescope(root)
    loose: dict[str, list[_File]] = defaultdict(list)
    folders: dict[str, list[_File]] = defaultdict(list)
    for entry in _entries(root):
        student, name, upload = _student(entry.name)
        if entry.is_dir():
            folders[student] += _files(entry)
        elif entry.suffix.lower() not in STAFF_SUFFIXES:
            loose[student].append(_File(path=entry, name=name, upload=upload))
    # Where notebooks lie loose, a folder without one is no student; where they lie in folders, loose files are none.
    if any(map(_any_notebook, loose.values())):
        folders = {student: files for student, files in folders.items() if _any_notebook(files)}
    elif any(map(_any_notebook, folders.values())):
        loose = {}
    return {student: [*loose.get(student, []), *folders.get(student, [])] for student in {**loose, **folders}}


def _files(entry: Path) -> list[_File]:
    """The file, or all files in the folder."""
    return [_File(path=path, name=path.name) for path in (_walk(entry) if entry.is_dir() else [entry])]


def _any_notebook(files: list[_File]) -> bool:
    return any(file.is_notebook for file in files)


def _student(entry: str) -> tuple[str, str, int]:
    """Of the name of a file or folder: the student, the name without the LMS's prefix, the upload's number."""
    if match := CANVAS.fullmatch(entry):  # first: the file's name is the student's to choose, and may be as Moodle's
        return f"{match['name']}_{match['id']}", match["file"], int(match["upload"])
    if match := MOODLE.fullmatch(entry):
        return match["id"], match["file"] or entry, 0
    stem = re.sub(r"\.ipynb$", "", Path(entry).stem, flags=re.IGNORECASE)  # homework.ipynb.txt
    return stem, entry, 0


def _best(student: str, files: list[_File]) -> _File | None:
    """The file that counts."""
    ranked = sorted(
        (file for file in files if file.name != TIMESTAMP),
        key=lambda f: (_kind(f), f.name != "homework.ipynb", -f.upload, len(f.path.parts), str(f.path)),
    )
    others = [file for file in ranked[1:] if file.is_notebook]
    if others and ranked[0].name != "homework.ipynb" and ranked[0].upload == others[0].upload:
        log.warning("%s handed in %d notebooks; %s counts.", student, len(others) + 1, ranked[0].path)
    return ranked[0] if ranked else None


def _kind(file: _File) -> int:
    """Notebooks first, weights last."""
    return 0 if file.is_notebook else 2 if file.path.suffix == ".params" else 1


def _unique_ids(found: dict[str, list[_File]]) -> dict[str, str]:
    """For each student an id that can be a file's name anywhere: letters, digits, `.`, `_` and `-`."""
    ids: dict[str, str] = {}
    taken: set[str] = set()
    for raw in sorted(found, key=lambda raw: (raw != raw.lower(), raw)):  # of two that differ in case, `ada` stays
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", raw).strip("._-")[:80] or "student"
        if plain != raw:  # who else hands in must not change whose id this is
            plain = f"{plain}_{hashlib.sha256(raw.encode(errors='surrogateescape')).hexdigest()[:6]}"
        unique, count = plain, 1
        while unique.lower() in taken:
            count += 1
            unique = f"{plain}_{count}"
        taken.add(unique.lower())
        ids[raw] = unique
    return ids


def _entries(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if is_ignored(path.name):
            continue
        if path.is_symlink():
            log.warning("%s is a link and is not followed.", path)
        elif path.is_dir() or path.is_file():
            yield path


def _walk(folder: Path) -> Iterator[Path]:
    pending = [folder]
    while pending:
        for path in _entries(pending.pop()):
            if path.is_dir():
                pending.append(path)
            else:
                yield path


# ---------------------------------------------------------------- Gradescope


class _RubyLoader(yaml.SafeLoader):
    """YAML as Ruby writes it: `!ruby/object:…` tags are read as plain data."""


def _plain(loader: _RubyLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None


_RubyLoader.add_multi_constructor("!ruby/", _plain)


def _gradescope(root: Path) -> dict[str, list[_File]]:
    """Students by the sid in the metadata, else their e-mail address or name, else the folder's name."""
    try:
        metadata = yaml.load(read_bounded(root / METADATA), Loader=_RubyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{root / METADATA} cannot be read as YAML; export the submissions again.") from error
    entries = metadata if isinstance(metadata, dict) else {}
    found: dict[str, list[_File]] = defaultdict(list)
    for handed_in in _entries(root):
        if handed_in.name == METADATA:
            continue
        entry = entries.get(handed_in.name)
        submitters = entry.get(":submitters") if isinstance(entry, dict) else None
        for submitter in submitters if isinstance(submitters, list) and submitters else [{}]:
            known = submitter if isinstance(submitter, dict) else {}
            names = [str(known[key]) for key in (":sid", ":email", ":name") if known.get(key)]
            found[names[0] if names else handed_in.name] += _files(handed_in)
    return found


# ---------------------------------------------------------------- when


def _submitted_at(path: Path) -> str:
    """What nbgrader's timestamp beside it says, else the file's own time; in UTC."""
    try:
        text = (path.parent / TIMESTAMP).read_text(encoding="utf-8")[:100].strip()
        moment = _parse_timestamp(text)
    except (OSError, ValueError, KeyError):
        moment = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds")


def _parse_timestamp(text: str) -> datetime:
    """`2024-02-02 15:58:23.948203 America/Los_Angeles`. Raises ValueError or KeyError."""
    day, clock, zone = text.split()
    moment = datetime.fromisoformat(f"{day}T{clock}")
    return moment.replace(tzinfo=timezone.utc if zone == "UTC" else zoneinfo.ZoneInfo(zone))
