"""Release: writes the students' folder from the staff folder, and refuses to give a solution away."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode

from grader.errors import AssignmentError, UsageError
from grader.notebook import read_percent, to_json

MARKERS = {f"### {edge} {kind}": (edge, kind) for edge in ("BEGIN", "END") for kind in ("SOLUTION", "HIDDEN TESTS")}
_LIKE_A_MARKER = re.compile(r"#\s*(BEGIN|END)[\s_-]+(SOLUTION|HIDDEN)", re.IGNORECASE)
CODE_STUB = ("# YOUR CODE HERE", "raise NotImplementedError")
TEXT_STUB = ("YOUR ANSWER HERE",)
STUDENT_KEYS = ("name", "title", "duedate", "corpus", "guest", "mistakes", "checks", "limits", "profiles")
SECRET_KEY = re.compile("seed|secret|curve|target|baseline|^device$|^runtime$")  # the last two are of our machines
WORDS_ELSEWHERE = 3  # that make a line of a solution recognisable outside the notebook
NOT_CHECKS = ("oracle.py",)  # staff only, whatever is in it
WHOLE = ("stubs.py",)  # runs in the student's process anyway


@dataclass(frozen=True, slots=True)
class Secret:
    """A line of a solution, and where staff wrote it."""

    line: str
    where: str


def release(assignment_folder: Path, out: Path, *, check: bool = False) -> list[Path]:
    """Writes the student folder `out`; returns the files that changed (or, with `check`, that would change).

    Everything is made and verified in memory first. A file that is as it should be is not touched; checks
    released earlier and no longer wanted are removed; other files in `out` are left alone.

    A release is refused if a line of a solution stands anywhere else in what students get. A line is looked
    for as a whole, spaces, comments and comment signs apart, so a solution that was copied into a test,
    commented out, or shown in the text is found. In the notebook every line counts that has a word which is
    not Python's (`else:` and imports are common property); in the other files, which were written for other
    purposes, lines with three such words do.

    Raises AssignmentError for a staff folder that cannot be released, UsageError for an unusable `out`.
    """
    if out.resolve() == assignment_folder.resolve():
        raise UsageError(f"The student folder must not be the staff folder {assignment_folder}.")
    files = student_files(assignment_folder)
    stale = {path.relative_to(out) for path in out.glob("checks/*.py")} - set(files)
    try:
        changed = {name for name, data in files.items() if _read(out / name) != data}
        if not check:
            _write(out, {name: files[name] for name in changed})
            for name in stale:
                (out / name).unlink()
    except OSError as error:
        raise UsageError(f"The student folder {out} cannot be written: {error.strerror}.") from error
    return sorted(out / name for name in changed | stale)


def student_files(folder: Path) -> dict[Path, bytes]:
    """All that students get, by path within their folder; verified."""
    master = folder / "homework.py"
    secrets: list[Secret] = []
    nb = student_notebook(read_percent(master), str(master), secrets)
    try:
        texts = {Path("homework.ipynb"): to_json(nb)}
    except nbformat.ValidationError as error:
        raise AssignmentError(f"{master}: the released notebook would be invalid: {error.message}.") from error
    texts |= student_checks(folder / "checks")
    texts[Path("assignment.yaml")] = student_yaml(folder / "assignment.yaml")
    for name in ("README.md", "requirements.txt"):
        if (folder / "student" / name).exists():
            texts[Path(name)] = _text(folder / "student" / name)
    _refuse_leaks(secrets, nb, {name: text for name, text in texts.items() if name.suffix != ".ipynb"})
    return {name: text.encode() for name, text in texts.items()}


# ---------------------------------------------------------------- regions


def hide(source: str, where: str, secrets: list[Secret], stub: tuple[str, ...] = CODE_STUB) -> str:
    """The source with each solution replaced by the stub and without hidden tests.

    The lines of solutions are added to `secrets`. `where` names the source in errors.

    Raises AssignmentError for a marker that is misspelt, unbalanced or nested.
    """
    shown: list[str] = []
    opened = ""  # the kind of the region we are in
    removed = False
    number, begun = 0, 0
    for number, line in enumerate(source.split("\n"), 1):
        edge, kind = MARKERS.get(line.strip(), ("", ""))
        if not edge and _LIKE_A_MARKER.search(line):
            known = ", ".join(MARKERS)
            raise AssignmentError(f"{where}, line {number}: {line.strip()!r} is not one of the markers {known}.")
        if edge == "BEGIN" and opened:
            raise AssignmentError(f"{where}, line {number}: a region begins within that of line {begun}.")
        if edge == "END" and kind != opened:
            raise AssignmentError(f"{where}, line {number}: END {kind} without its BEGIN {kind}.")
        if edge == "BEGIN":
            opened, begun, removed = kind, number, removed or kind != "SOLUTION"
            indent = line[: len(line) - len(line.lstrip())]
            shown += [indent + text for text in stub] if kind == "SOLUTION" else []
        elif edge == "END":
            opened = ""
        elif opened == "SOLUTION":
            secrets.append(Secret(line, f"{where}, line {number}"))
        elif not opened:
            shown.append(line)
    if opened:
        raise AssignmentError(f"{where}, line {begun}: BEGIN {opened} has no END {opened} before line {number + 1}.")
    text = "\n".join(shown)
    return re.sub(r"\n\s*\n\s*\n\s*\n+", "\n\n\n", text).strip("\n") if removed else text


def student_notebook(master: NotebookNode, name: str, secrets: list[Secret]) -> NotebookNode:
    """The master with stubs for solutions; cells that held nothing but hidden tests vanish.

    Raises AssignmentError for bad markers, and for a cell that is no longer Python without its solution.
    """
    cells = []
    for cell in master.cells:
        where = f"{name}, cell '{cell.id}'"
        shown = hide(cell.source, where, secrets, CODE_STUB if cell.cell_type == "code" else TEXT_STUB)
        if cell.source.strip() and not shown.strip():
            continue
        if shown != cell.source and cell.cell_type == "code":
            _parse(shown, f"{where}, as released")
        cell.source = shown
        cells.append(cell)
    master.cells = cells
    return master


def _parse(source: str, where: str) -> ast.Module:
    """The syntax tree, IPython's % and ! lines included."""
    try:
        return ast.parse(source)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager  # slow to load and seldom needed

        try:
            plain = TransformerManager().transform_cell(source)  # type: ignore[no-untyped-call]
            return ast.parse(plain)
        except SyntaxError as error:
            raise AssignmentError(
                f"{where}, line {error.lineno}: it is not valid Python ({error.msg}); move the markers."
            ) from error


# ---------------------------------------------------------------- checks


def student_checks(folder: Path) -> dict[Path, str]:
    """The check files that have visible tests, without the hidden ones; the modules they import; `stubs.py`.

    Raises AssignmentError if what is left needs something that students do not get.
    """
    staff = {path.stem: path for path in sorted(folder.glob("*.py"))}
    shown = {stem: _visible(path) for stem, path in staff.items() if path.name not in NOT_CHECKS}
    released = [stem for stem, (_, tree) in shown.items() if _has_tests(tree) or staff[stem].name in WHOLE]
    for stem in released:  # grows by what it imports
        path, (_, tree) = staff[stem], shown[stem]
        for line, module in _imports(tree):
            if module in staff and module not in shown:
                raise AssignmentError(
                    f"{path}, as released, line {line}: it imports {module}, which students do not get; put "
                    "the import and all that uses it between the markers of hidden tests."
                )
            if module in shown and module not in released:
                released.append(module)
        for line, name in _unbound(tree):
            raise AssignmentError(
                f"{path}, as released, line {line}: '{name}' is defined nowhere, or in a hidden region only; "
                "move its definition out, or its use in."
            )
    return {Path("checks") / f"{stem}.py": shown[stem][0] for stem in released}


def _visible(path: Path) -> tuple[str, ast.Module]:
    text = _text(path)
    shown = hide(text, str(path), [])
    if path.name in WHOLE and shown != text:
        raise AssignmentError(f"{path} is released whole: take the markers out of it.")
    return shown.rstrip("\n") + "\n", _parse(shown, f"{path}, as released")


def _has_tests(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in ast.walk(tree))


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, name) for name in [(node.module or "").split(".")[0]])


def _unbound(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Names that are read and that nothing in the file binds, scopes apart."""
    bound = {*dir(builtins), "__file__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name.split(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
            bound.add(node.name or "")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in bound:
            yield node.lineno, node.id


# ---------------------------------------------------------------- assignment.yaml


def student_yaml(path: Path) -> str:
    """What students may know of assignment.yaml: listed keys, visible checks, profiles without secrets."""
    try:
        config = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise AssignmentError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(config, dict):
        raise AssignmentError(f"{path} must be a mapping.")
    shown = {key: config[key] for key in STUDENT_KEYS if key in config}
    checks = shown.get("checks", [])
    if not isinstance(checks, list) or not all(isinstance(check, dict) for check in checks):
        raise AssignmentError(f"{path}: checks must be a list of mappings.")
    shown["checks"] = [check for check in checks if check.get("hidden") is False]  # unsaid means hidden
    shown["profiles"] = _without_secrets(shown.get("profiles", {}))
    body = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100)
    return f"# Written by `grader release`: the visible part of the staff's assignment.yaml.\n{body}"


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if not SECRET_KEY.search(str(key).lower())}
        return {key: _without_secrets(each) for key, each in kept.items()}
    return [_without_secrets(each) for each in value] if isinstance(value, list) else value


# ---------------------------------------------------------------- nothing is given away


def _bare(line: str) -> str:
    """A line without spaces, trailing comment, and signs that quote it or comment it out."""
    return re.sub(r"\s", "", re.sub(r"\s#.*", "", line.strip().lstrip("#>*-` \t"))).rstrip("`")


def _words(line: str) -> int:
    """How many different words of a line are not Python's own; none in comments and imports."""
    if re.match(r"\s*(#|import\b|from\b)", line):
        return 0
    code = re.sub(r"\s#.*", "", line)
    return len({word for word in re.findall(r"[A-Za-z_]\w*", code) if not keyword.iskeyword(word)})


def _refuse_leaks(secrets: list[Secret], nb: NotebookNode, texts: dict[Path, str]) -> None:
    places = [(f"cell '{cell.id}' of the released notebook", cell.source, 1) for cell in nb.cells]
    places += [(str(name), text, WORDS_ELSEWHERE) for name, text in texts.items()]
    for place, text, words in places:
        by_line = {_bare(secret.line): secret for secret in secrets if _words(secret.line) >= words}
        for number, line in enumerate(text.split("\n"), 1):
            if secret := by_line.get(_bare(line)):
                raise AssignmentError(
                    f"{secret.where}: this line of a solution, `{secret.line.strip()}`, is also in {place}, "
                    f"line {number}; put that line between markers too, or write it differently."
                )


# ---------------------------------------------------------------- files


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise AssignmentError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise AssignmentError(f"{path} is not UTF-8 text (byte {error.start}).") from error


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write(out: Path, files: dict[Path, bytes]) -> None:
    """All files in a temporary folder first, then each into its place by a rename."""
    if not files:
        return
    out.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".release-", dir=out))
    try:
        for target in (temporary, out):
            for name in files:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (temporary / name).write_bytes(data)
        for name in files:
            (temporary / name).replace(out / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
