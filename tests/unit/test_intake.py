"""Intake: every layout that courses use is understood, and no archive does more than hand in files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import zipfile
from pathlib import Path

import pytest

from grader import intake, unzip
from grader.errors import InfrastructureError, SubmissionError, UsageError
from grader.intake import absent, collect, read_submission, read_with_params
from grader.types import Person, Status, Submission
from tests.unit.records import a_grade

NOTEBOOK = json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
WHEN = 1_706_889_600  # 2024-02-02 16:00 UTC


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def put(root: Path, *names: str) -> Path:
    """Files that each hold their own name, so that one can tell which was taken."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(NOTEBOOK + name, encoding="utf-8")
        os.utime(root / name, (WHEN, WHEN))
    return root


def zipped(root: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as made:
        for path in sorted(root.rglob("*")):
            made.write(path, path.relative_to(root))
    return archive


def taken(submissions: list[Submission], root: Path) -> dict[str, str]:
    return {s.student_id: s.path and Path(s.path).relative_to(root).as_posix() for s in submissions}


def collected(root: Path, work: Path) -> dict[str, str]:
    return taken(collect(root, work), root)


# ---------------------------------------------------------------- layouts


def test_single_notebook_is_the_student_of_that_name(tmp_path: Path, work: Path) -> None:
    """One file is one submission, identified by its bytes and dated in UTC."""
    path = put(tmp_path, "ada.ipynb") / "ada.ipynb"
    assert collect(path, work) == [
        Submission(
            student_id="ada",
            path=str(path),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            submitted_at="2024-02-02T16:00:00+00:00",
        )
    ]
    assert read_submission(collect(path, work)[0]) == path.read_bytes()


def test_flat_folder(tmp_path: Path, work: Path) -> None:
    """<student>.ipynb, and whatever else was handed in under a student's name; staff's own files are not."""
    names = ("b.ipynb", "a.ipynb", "c.pdf", "d.ipynb.txt", "e.IPYNB", "roster.csv", "README.md", ".DS_Store")
    root = put(tmp_path / "in", *names, "a.pdf", "data/train.txt", ".ipynb_checkpoints/b-checkpoint.ipynb")
    assert collected(root, work) == {
        "a": "a.ipynb",
        "b": "b.ipynb",
        "c": "c.pdf",
        "d": "d.ipynb.txt",
        "e": "e.IPYNB",
    }


def test_one_folder_for_each_student(tmp_path: Path, work: Path) -> None:
    """homework.ipynb counts, else the only notebook, else the first; another file is better than nothing."""
    root = put(
        tmp_path / "in",
        "ada/homework.ipynb",
        "ada/a-draft.ipynb",
        "ada/.ipynb_checkpoints/homework-checkpoint.ipynb",
        "bob/my work.ipynb",
        "bob/data/train.txt",
        "cy/two.ipynb",
        "cy/one.ipynb",
        "dot/answer.pdf",
        "__MACOSX/x.ipynb",
        "roster.txt",
    )
    (root / "eve").mkdir()
    submissions = collect(root, work)
    assert taken(submissions, root) == {
        "ada": "ada/homework.ipynb",
        "bob": "bob/my work.ipynb",
        "cy": "cy/one.ipynb",
        "dot": "dot/answer.pdf",
        "eve": "",
    }
    assert submissions[-1].sha256 == hashlib.sha256(b"").hexdigest()
    assert submissions[-1].submitted_at == ""


def test_choice_between_notebooks_is_said(tmp_path: Path, work: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Staff hear which of several notebooks was taken."""
    collect(put(tmp_path / "in", "cy/two.ipynb", "cy/one.ipynb", "d/homework.ipynb", "d/x.ipynb"), work)
    assert [record.getMessage() for record in caplog.records] == [
        f"cy handed in 2 notebooks; {tmp_path / 'in/cy/one.ipynb'} counts."
    ]


@pytest.mark.parametrize("prefix", ["", "submitted/"])
def test_nbgrader_course(tmp_path: Path, work: Path, prefix: str) -> None:
    """submitted/<student>/<assignment>/, from the course's folder or from submitted itself, with its timestamp."""
    put(tmp_path / "in", "source/hw/homework.ipynb")
    root = put(tmp_path / "in", "submitted/ada/hw/homework.ipynb", "submitted/bob/hw/rnn.ipynb")
    stamp = root / "submitted/ada/hw/timestamp.txt"
    stamp.write_text("2024-02-02 15:58:23.948203 America/Los_Angeles\n", encoding="utf-8")
    (root / "submitted/bob/hw/timestamp.txt").write_text("yesterday", encoding="utf-8")
    ada, bob = collect(root / prefix, work)
    assert (ada.student_id, bob.student_id) == ("ada", "bob")
    assert ada.submitted_at == "2024-02-02T23:58:23+00:00"
    assert bob.submitted_at == "2024-02-02T16:00:00+00:00"
    stamp.write_text("2024-02-02 15:58:23 UTC", encoding="utf-8")
    assert collect(root, work)[0].submitted_at == "2024-02-02T15:58:23+00:00"


def test_one_nbgrader_student_with_two_assignments_is_one_student(tmp_path: Path, work: Path) -> None:
    """In `submitted`, the one folder is a student even if it looks like a wrapper."""
    root = put(tmp_path / "submitted", "ada/hw1/one.ipynb", "ada/hw2/homework.ipynb")
    assert collected(root, work) == {"ada": "ada/hw2/homework.ipynb"}


CANVAS_NAMES = (
    "doejane_12345_678900_homework.ipynb",
    "roejim_LATE_23456_678901_homework-1.ipynb",
    "roejim_LATE_23456_678950_homework-2.ipynb",
    "poeann_34567_678902_scan.pdf",
)


def test_canvas_export(tmp_path: Path, work: Path) -> None:
    """Canvas puts name, id and upload number before the file's name; the last upload counts."""
    archive = zipped(put(tmp_path / "in", *CANVAS_NAMES), tmp_path / "submissions.zip")
    submissions = collect(archive, work)
    assert {s.student_id: Path(s.path).name for s in submissions} == {
        "doejane_12345": CANVAS_NAMES[0],
        "roejim_23456": CANVAS_NAMES[2],
        "poeann_34567": CANVAS_NAMES[3],
    }
    assert [s.student_id for s in submissions] == sorted(s.student_id for s in submissions)
    assert submissions[0].submitted_at.startswith("2024-02-02T")


def test_moodle_export(tmp_path: Path, work: Path) -> None:
    """Moodle's folders, with and without the last underscore, and its flat files, name the student by number."""
    root = put(
        tmp_path / "in",
        "Jane Doe_123456_assignsubmission_file_/homework.ipynb",
        "Jane Doe_123456_assignsubmission_onlinetext_/onlinetext.html",
        "Jim van der Roe_222222_assignsubmission_file/my_notebook.ipynb",
    )
    submissions = collect(zipped(root, tmp_path / "moodle.zip"), work)
    assert {s.student_id: Path(s.path).name for s in submissions} == {
        "123456": "homework.ipynb",
        "222222": "my_notebook.ipynb",
    }
    flat = put(tmp_path / "flat", "Jane Doe_123456_assignsubmission_file_homework.ipynb")
    assert list(collected(flat, work)) == ["123456"]


def test_a_file_cannot_be_named_as_another_students(tmp_path: Path, work: Path) -> None:
    """What a student calls a file stands behind what the LMS puts before it, and says nothing about whose it is."""
    moodle = put(tmp_path / "moodle", "Mal Lory_666_assignsubmission_file_Ada_1_assignsubmission_file_homework.ipynb")
    assert list(collected(moodle, work)) == ["666"]
    for i, chosen in enumerate(("doejane_12345_999999_homework.ipynb", "X_12345_assignsubmission_file_homework.ipynb")):
        canvas = put(tmp_path / f"canvas{i}", f"lorymal_666_777_{chosen}")
        assert list(collected(canvas, work)) == ["lorymal_666"]


GRADESCOPE = """
submission_11:
  :submitters:
  - :name: Jane Doe
    :sid: '0042'
    :email: jane@example.edu
  - {":name": Jim Roe, ":sid": null, ":email": jim@example.edu}
  :created_at: !ruby/object:ActiveSupport::TimeWithZone
    utc: &1 2019-09-27 23:23:11.123 Z
    zone: !ruby/object:ActiveSupport::TimeZone {name: Etc/UTC}
    time: *1
  :history: !ruby/array:Array [!ruby/sym later]
submission_12:
  :submitters: []
submission_13: nonsense
"""


@pytest.mark.parametrize("wrapper", ["", "assignment_99_export/"])
def test_gradescope_export(tmp_path: Path, work: Path, wrapper: str) -> None:
    """The metadata name the students of a submission: both partners get it, by sid, else by e-mail address."""
    names = ("submission_11/homework.ipynb", "submission_12/a.ipynb", "submission_13/a.ipynb")
    root = put(tmp_path / "in", *(wrapper + name for name in names))
    (root / wrapper / "submission_metadata.yml").write_text(GRADESCOPE, encoding="utf-8")
    submissions = collect(zipped(root, tmp_path / "export.zip"), work)
    assert {s.student_id: Path(s.path).parent.name for s in submissions} == {
        "0042": "submission_11",
        "jim_example.edu_2823e8": "submission_11",
        "submission_12": "submission_12",
        "submission_13": "submission_13",
    }
    (root / wrapper / "submission_metadata.yml").write_text(": [", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        collect(root, work)


@pytest.mark.parametrize(
    "names", [("hw/ada/homework.ipynb", "hw/bob/homework.ipynb"), ("hw/ada.ipynb", "hw/bob.ipynb")]
)
def test_folder_around_the_submissions_is_looked_into(tmp_path: Path, work: Path, names: tuple[str, ...]) -> None:
    """An archive of a folder of submissions is an archive of submissions."""
    archive = zipped(put(tmp_path / "in", *names), tmp_path / "hw.zip")
    assert [s.student_id for s in collect(archive, work)] == ["ada", "bob"]


def test_one_students_folder_is_not_taken_for_a_wrapper(tmp_path: Path, work: Path) -> None:
    """A course of one: the folder with homework.ipynb in it is the student's."""
    root = put(tmp_path / "in", "ada/homework.ipynb", "ada/old.ipynb")
    assert collected(root, work) == {"ada": "ada/homework.ipynb"}


def test_student_ids_are_safe_names(tmp_path: Path, work: Path) -> None:
    """Ids can be used as file names everywhere, and two students never share one."""
    root = put(tmp_path / "in", "a b.ipynb", "a:b.ipynb", "A?b.ipynb", "Zoë.ipynb", "-rf.ipynb", "♥.ipynb")
    found = collected(root, work)
    assert all(re.fullmatch("(A_b|a_b|Zo|rf|student)_[0-9a-f]{6}", student) for student in found)
    assert sorted(found.values()) == sorted(path.name for path in root.iterdir())


def test_an_id_does_not_depend_on_who_else_hands_in(tmp_path: Path, work: Path) -> None:
    """A late submission changes nobody's id, in whatever script the names are written."""
    root = put(tmp_path / "in", "李明.ipynb", "王芳.ipynb")
    before = collected(root, work)
    put(root, "丁一.ipynb")
    assert before.items() <= collected(root, work).items()


def test_results_inside_the_submissions_are_no_student(tmp_path: Path, work: Path) -> None:
    """`grade CLASS -o CLASS/out`, run again, grades nobody called out."""
    root = put(tmp_path / "in", "ada/homework.ipynb", "out/submissions/x.ipynb")
    assert [s.student_id for s in collect(root, work, exclude=root / "out")] == ["ada"]


def test_links_are_not_followed(tmp_path: Path, work: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A student cannot hand in somebody else's file by a link to it."""
    root = put(tmp_path / "in", "ada/homework.ipynb")
    (root / "mallory").mkdir()
    (root / "mallory/homework.ipynb").symlink_to(root / "ada/homework.ipynb")
    (root / "eve").symlink_to(root / "ada")
    assert collected(root, work) == {"ada": "ada/homework.ipynb", "mallory": ""}
    assert "is a link" in caplog.text


def test_nothing_to_collect_is_one_sentence(tmp_path: Path, work: Path) -> None:
    """A wrong path, an empty folder, or one without a single submission is the caller's mistake."""
    with pytest.raises(UsageError, match="There is no file or folder"):
        collect(tmp_path / "nowhere", work)
    (tmp_path / "in/ada").mkdir(parents=True)
    with pytest.raises(UsageError, match="There is no submission in"):
        collect(tmp_path / "in", work)
    put(tmp_path / "in", "roster.csv")
    with pytest.raises(UsageError, match="There is no submission in"):
        collect(tmp_path / "in", work)


def test_unreadable_file_is_named(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that staff cannot read is its student's matter alone: it is told when it is to be graded."""

    def forbidden(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(intake, "read_bounded", forbidden)
    (submission,) = collect(put(tmp_path / "in", "ada.ipynb"), work)
    with pytest.raises(InfrastructureError, match=r"ada\.ipynb cannot be read any more: Permission denied"):
        read_submission(submission)


def test_a_file_name_that_is_no_unicode_is_a_name(tmp_path: Path, work: Path) -> None:
    """Whatever bytes a student calls a file by, it is read; a sentence about it can be stored."""
    put(tmp_path / "in", "ada.ipynb")
    named = Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff.ipynb"))
    try:
        named.write_text(NOTEBOOK)
    except OSError:
        return  # this file system has Unicode names only
    ada, other = collect(tmp_path / "in", work)
    assert (ada.student_id, read_submission(other)) == ("ada", NOTEBOOK.encode())
    other.student_id.encode()
    named.unlink()
    with pytest.raises(InfrastructureError) as caught:
        read_submission(other)
    str(caught.value).encode()


# ---------------------------------------------------------------- reading


def test_oversize_file_is_the_students_to_fix(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file over the cap is collected, and refused with what to do when it is read."""
    root = put(tmp_path / "in", "ada.ipynb", "bob.ipynb")
    (root / "ada.ipynb").write_bytes(b" " * 3000)
    monkeypatch.setattr(intake, "MAX_FILE_BYTES", 2000)
    ada, bob = collect(root, work)
    with pytest.raises(SubmissionError, match="clear the outputs"):
        read_submission(ada)
    assert read_submission(bob)


def test_changed_or_vanished_file_is_not_the_students_fault(tmp_path: Path, work: Path) -> None:
    """What was collected is what is graded; if it is not there any more, nobody gets a zero for it."""
    path = put(tmp_path, "ada.ipynb") / "ada.ipynb"
    (submission,) = collect(path, work)
    path.write_text("something else", encoding="utf-8")
    with pytest.raises(InfrastructureError, match="has changed"):
        read_submission(submission)
    path.unlink()
    with pytest.raises(InfrastructureError, match="cannot be read any more"):
        read_submission(submission)


# ---------------------------------------------------------------- archives


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_archive_is_extracted_once(tmp_path: Path, work: Path) -> None:
    """A batch that goes on after an interruption finds the same files at the same paths."""
    archive = make_zip(tmp_path / "a.zip", {"ada.ipynb": b"1", "bob.ipynb": b"2"})
    first = collect(archive, work)
    assert collect(archive, work) == first
    assert len(list(work.iterdir())) == 1


def test_hostile_members_are_left_out(tmp_path: Path, work: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is written outside the folder, no link is made, and the other students are still collected."""
    archive = make_zip(
        tmp_path / "a.zip",
        {
            "ada.ipynb": b"1",
            "../evil.ipynb": b"2",
            "x/../../evil.ipynb": b"2",
            "..\\evil.ipynb": b"2",
            "/etc/evil.ipynb": b"2",
            "C:/evil.ipynb": b"2",
            "x" * 300 + ".ipynb": b"3",
            "d/" * 50 + "deep.ipynb": b"3",
            "ada.ipynb/below-a-file.ipynb": b"3",
            ".hidden.ipynb": b"4",
            "__MACOSX/._ada.ipynb": b"4",
        },
    )
    link = zipfile.ZipInfo("bob.ipynb")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(link, "/etc/passwd")
    assert [s.student_id for s in collect(archive, work)] == ["ada"]
    assert [p.name for p in work.rglob("*") if p.is_file()] == ["ada.ipynb"]
    assert not any("evil" in p.name for p in tmp_path.rglob("*"))
    for words in ("points outside", "is a link", "too deeply", "cannot be a file's name"):
        assert words in caplog.text


def test_zip_bomb_is_cut_off(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that unpacks to more than a file may have is kept one byte too long, and refused when read."""
    for module in (intake, unzip):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 2000)
    archive = make_zip(tmp_path / "a.zip", {"ada.ipynb": b" " * 10**6, "bob.ipynb": b"2"})
    ada, bob = collect(archive, work)
    assert Path(ada.path).stat().st_size == 2001
    with pytest.raises(SubmissionError):
        read_submission(ada)
    assert read_submission(bob) == b"2"
    monkeypatch.setattr(unzip, "MAX_TOTAL_BYTES", 2000)
    with pytest.raises(UsageError, match="unpacks to more than"):
        collect(archive, tmp_path / "other")


@pytest.mark.parametrize("wrapper", ["", "hw/", "hw/submitted/"])
def test_one_student_cannot_use_up_the_archive(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrapper: str
) -> None:
    """Of one who hands in too many files, or too much, the rest is left out; the notebook and the others are there."""
    for name, value in (("MAX_SHARE_MEMBERS", 5), ("MAX_SHARE_BYTES", 3000)):
        monkeypatch.setattr(unzip, name, value)
    members = {f"{wrapper}many/a{i}.txt": b"1" for i in range(9)} | {
        f"{wrapper}much/a{i}": b"1" * 2000 for i in range(4)
    }
    notebooks = {f"{wrapper}{name}/homework.ipynb": NOTEBOOK.encode() for name in ("ada", "many", "much")}
    archive = make_zip(tmp_path / "a.zip", members | notebooks)
    found = {s.student_id: Path(s.path).name for s in collect(archive, work)}
    assert found == dict.fromkeys(("ada", "many", "much"), "homework.ipynb")
    assert len(list(work.rglob("*/many/*"))) == 5
    assert len(list(work.rglob("*/much/*"))) == 3
    assert "too much of 'many': 5 files are left out" in caplog.text


def test_what_takes_the_place_of_a_file_is_not_read(tmp_path: Path, work: Path) -> None:
    """A link or a pipe put where a file was collected is a fault of nobody's, and holds up nothing."""
    root = put(tmp_path / "in", "ada.ipynb", "bob.ipynb")
    ada, bob = collect(root, work)
    (root / "ada.ipynb").unlink()
    (root / "ada.ipynb").symlink_to(root / "bob.ipynb")
    (root / "bob.ipynb").unlink()
    os.mkfifo(root / "bob.ipynb")
    for submission in (ada, bob):
        with pytest.raises(InfrastructureError, match="cannot be read any more"):
            read_submission(submission)
    link = tmp_path / "mine.ipynb"
    link.symlink_to(put(tmp_path / "other", "x.ipynb") / "x.ipynb")
    assert read_submission(collect(link, work)[0])


def test_unusable_archives_are_one_sentence_and_leave_nothing(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a zip, a damaged one, an encrypted one, one with too many files: each says so."""
    bad = tmp_path / "a.zip"
    bad.write_bytes(b"not a zip")
    with pytest.raises(UsageError, match="damaged or not a zip file"):
        collect(bad, work)
    good = make_zip(bad, {"ada.ipynb": bytes(range(256)) * 20}).read_bytes()
    bad.write_bytes(good[:60] + b"\0" * 8 + good[68:])
    with pytest.raises(UsageError, match="damaged or not a zip file"):
        collect(bad, work)
    at = good.index(b"PK\x01\x02") + 8
    bad.write_bytes(good[:at] + b"\x01" + good[at + 1 :])
    with pytest.raises(UsageError, match="is encrypted"):
        collect(bad, work)
    bad.write_bytes(good)
    monkeypatch.setattr(unzip, "MAX_MEMBERS", 0)
    with pytest.raises(UsageError, match="at most 0"):
        collect(bad, work)
    assert list(work.iterdir()) == []


def test_archive_that_cannot_be_written_is_our_fault(tmp_path: Path, work: Path) -> None:
    """A full or forbidden disk is an infrastructure error, which is retried."""
    work.write_text("a file where a folder should be")
    with pytest.raises(InfrastructureError, match="cannot be extracted"):
        collect(make_zip(tmp_path / "a.zip", {"ada.ipynb": b"1"}), work)


def test_member_without_a_date_is_still_collected(tmp_path: Path, work: Path) -> None:
    """A nonsensical date in an archive does not cost a submission."""
    info = zipfile.ZipInfo("ada.ipynb")
    info.date_time = (1980, 0, 0, 0, 0, 0)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, b"1")
    assert collect(tmp_path / "a.zip", work)[0].submitted_at == "1970-01-01T00:00:00+00:00"


def test_racing_extractions_agree(tmp_path: Path, work: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If another process has extracted the archive meanwhile, its folder is used."""
    caplog.set_level(logging.WARNING)
    done, late = put(tmp_path / "done", "ada.ipynb"), put(tmp_path / "late", "ada.ipynb")
    unzip._rename(late, done)
    assert (done / "ada.ipynb").exists()
    with pytest.raises(OSError, match="No such file"):
        unzip._rename(tmp_path / "none", tmp_path / "nowhere")


# ---------------------------------------------------------------- weights

MODELS = ("scratch", "rnn", "lstm")


def weights_of(submission: Submission, root: Path) -> dict[str, str]:
    return {model: Path(path).relative_to(root).as_posix() for model, path in submission.params.items()}


@pytest.mark.parametrize("layout", ["submitted/ada/hw/", "ada/", "ada_1234_567_", "Ada_1234_assignsubmission_file_"])
def test_weights_beside_a_notebook_belong_to_it(tmp_path: Path, work: Path, layout: str) -> None:
    """In every layout, those of the models that are scored; what lies elsewhere or is named otherwise does not."""
    names = [f"{layout}{name}" for name in ("homework.ipynb", "rnn.params", "lstm.params", "best.params", "rnn.txt")]
    root = put(tmp_path / "in", *names, *(["ada/old/scratch.params"] if layout == "ada/" else []))
    submission = collect(root, work, weights_of=MODELS)[0]
    assert weights_of(submission, root) == {"lstm": f"{layout}lstm.params", "rnn": f"{layout}rnn.params"}
    assert Path(submission.path) == root / f"{layout}homework.ipynb"
    notebook, params = read_with_params(submission)
    assert notebook == (root / f"{layout}homework.ipynb").read_bytes() == read_submission(submission)
    assert params["rnn"] == (root / f"{layout}rnn.params").read_bytes()


def test_weights_beside_a_notebook_that_is_named_are_found(tmp_path: Path, work: Path) -> None:
    """One notebook on the command line; and whatever is handed in as one stays what is graded."""
    root = put(tmp_path, "ada.ipynb", "rnn.params", "text.pdf")
    assert weights_of(collect(root / "ada.ipynb", work, weights_of=MODELS)[0], root) == {"rnn": "rnn.params"}
    assert collect(root / "text.pdf", work, weights_of=MODELS)[0].path == str(root / "text.pdf")


def test_canvas_numbers_weights_that_come_again(tmp_path: Path, work: Path) -> None:
    """The latest upload counts."""
    names = ("ada_1234_500_homework.ipynb", "ada_1234_1000_rnn.params", "ada_1234_999_rnn-1.params")
    root = put(tmp_path / "in", *names, "ada_1234_502_lstm-2.params", "ada_1234_501_lstm.params")
    found = weights_of(collect(root, work, weights_of=MODELS)[0], root)
    assert found == {"rnn": "ada_1234_1000_rnn.params", "lstm": "ada_1234_502_lstm-2.params"}


def test_weights_are_part_of_what_was_handed_in(tmp_path: Path, work: Path) -> None:
    """Other weights are another submission, and so are the same for another model; without any it is the notebook."""
    root = put(tmp_path / "in", "ada/homework.ipynb")
    found = [collect(root, work, weights_of=MODELS)[0].sha256]
    assert found == [hashlib.sha256((root / "ada/homework.ipynb").read_bytes()).hexdigest()]
    for name, content in (("rnn", b"1"), ("rnn", b"2"), ("lstm", b"2"), ("scratch", b"")):
        (root / "ada" / f"{name}.params").write_bytes(content)
        found.append(collect(root, work, weights_of=MODELS)[0].sha256)
    (root / "ada/rnn.params").unlink()
    found.append(collect(root, work, weights_of=MODELS)[0].sha256)
    (root / "ada/lstm.params").rename(root / "ada/rnn.params")
    found.append(collect(root, work, weights_of=MODELS)[0].sha256)
    assert len(set(found)) == len(found)
    assert collect(root, work)[0].sha256 == found[0]


def test_weights_without_an_owner_are_nobodys(tmp_path: Path, work: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Among the notebooks of a class they are left out, and are no student; where no weights are taken, one as ever."""
    root = put(tmp_path / "in", "ada.ipynb", "bob.ipynb", "rnn.params")
    submissions = collect(root, work, weights_of=MODELS)
    assert {one.student_id: dict(one.params) for one in submissions} == {"ada": {}, "bob": {}}
    assert "rnn.params is left out: whose it is cannot be told" in caplog.text
    assert list(collected(root, work)) == ["ada", "bob", "rnn"]


@pytest.mark.parametrize("named", [True, False])
def test_weights_that_are_a_link_are_not_followed(
    tmp_path: Path, work: Path, named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither when they are found nor when a link has taken the place of a file since."""
    root = put(tmp_path, "in/ada/homework.ipynb", "secret", "in/ada/lstm.params") / "in"
    (root / "ada/rnn.params").symlink_to(tmp_path / "secret")
    (root / "ada/scratch.params").mkdir()
    submission = collect(root / "ada/homework.ipynb" if named else root, work, weights_of=MODELS)[0]
    assert weights_of(submission, root) == {"lstm": "ada/lstm.params"}
    assert "rnn.params is a link and is not followed" in caplog.text
    (root / "ada/lstm.params").rename(tmp_path / "moved")
    (root / "ada/lstm.params").symlink_to(tmp_path / "moved")
    with pytest.raises(InfrastructureError, match=r"lstm\.params cannot be read any more"):
        read_with_params(submission)


def test_weights_that_change_after_they_were_collected_are_refused(tmp_path: Path, work: Path) -> None:
    """As a notebook is: what is graded is what was hashed."""
    root = put(tmp_path / "in", "ada/homework.ipynb", "ada/rnn.params")
    submission = collect(root, work, weights_of=MODELS)[0]
    (root / "ada/rnn.params").write_bytes(b"other")
    with pytest.raises(InfrastructureError, match="has changed since"):
        read_with_params(submission)


def test_of_weights_that_are_too_large_no_more_is_read_than_shows_it(tmp_path: Path, work: Path) -> None:
    """One byte beyond the limit."""
    root = put(tmp_path / "in", "ada/homework.ipynb")
    (root / "ada/rnn.params").write_bytes(bytes(2 * intake.MAX_PARAMS_BYTES))
    assert len(read_with_params(collect(root, work, weights_of=MODELS)[0])[1]["rnn"]) == intake.MAX_PARAMS_BYTES + 1


ROSTER = {"ada": Person(), "Bob": Person(lms_id="12345"), "cleo": Person()}


def test_who_is_missing_is_known_by_name_or_number() -> None:
    """Neither case nor Canvas's way of naming makes somebody missing who is there; who was graded before is not."""
    here = [Submission(student_id=one, path="x", sha256="", submitted_at="") for one in ("ADA", "bobby_12345")]
    assert [one.student_id for one in absent(ROSTER, here, [])] == ["cleo"]
    assert absent(ROSTER, here, [a_grade("cleo")]) == []
    missing = a_grade("cleo", status=Status.MISSING)
    assert [one.student_id for one in absent(ROSTER, here, [missing])] == ["cleo"]
    assert absent({}, here, []) == []


def test_nobody_is_missing_while_somebody_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    """The stranger may be one of those who seem to be missing, under another name."""
    here = [Submission(student_id="stranger", path="x", sha256="", submitted_at="")]
    assert absent(ROSTER, here, []) == []
    assert "1 who handed in are not on the roster (stranger)" in caplog.text
