"""Reads `assignment.yaml`: checks, points, credit curves, limits and profiles, validated before anything runs."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import typing
from pathlib import Path
from typing import Any

import yaml

from grader.course import SECRET, read_roster, read_secret
from grader.errors import AssignmentError
from grader.rules import read_rules
from grader.types import Assignment, Check, Curve, Limits, ManualItem, Profile, Runtime

LARGEST = 1e6  # of points, and of nats/char


def load_assignment(folder: Path) -> Assignment:
    """Read an assignment folder.

    Raises:
        AssignmentError: names the file and the entry that is wrong, and what was expected.
    """
    path = folder / "assignment.yaml"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AssignmentError(
            f"{folder} is no assignment folder: it has no assignment.yaml. Name the right one by --assignment."
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AssignmentError(f"{path} cannot be read as YAML: {_one_line(error)}") from None
    if not isinstance(raw, dict):
        raise AssignmentError(f"{path} should be a mapping with name, title, checks, profiles.")
    stubs = folder / str(raw.pop("guest", "checks/stubs.py"))
    shared = _mistakes(path, "`mistakes`", raw.pop("mistakes", {}))
    rules = read_rules(path, raw, str(raw.get("duedate", "")))
    checks = tuple(_check(path, entry, shared) for entry in _entries(path, raw, "checks"))
    limits, runtime = raw.pop("limits", {}), raw.pop("runtime", {})
    profiles = tuple(_profile(path, entry, limits, runtime) for entry in _entries(path, raw, "profiles"))
    manual = tuple(_manual(path, entry) for entry in (_entries(path, raw, "manual") if "manual" in raw else []))
    try:
        source = stubs.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AssignmentError(f"{path} names {stubs.name}, which cannot be read: {_one_line(error)}") from None
    if raw.get("weights") and not (folder / str(raw["weights"])).is_file():
        raise AssignmentError(f"{path} names {raw['weights']} in `weights`, and there is no such file.")
    values = {
        "duedate": rules.due,
        "rules": rules,
        "seed": 0,
        "reported": "",
        "weights": "",
        **raw,
        "folder": str(folder),
        "checks": checks,
    }
    values |= {"profiles": profiles, "manual": manual, "roster": read_roster(folder)}
    if raw.get("score", "retrain") not in ("retrain", "checkpoint"):
        raise AssignmentError(
            f"{path}: `score` is {raw['score']!r}; expected retrain (models as the notebook trains them) or checkpoint "
            "(weights that are handed in beside it)."
        )
    if values["seed"] == SECRET:
        values |= {"seed": read_secret(folder), "has_secret": True}
    assignment: Assignment = _build(
        Assignment, {**values, "stubs_source": source, "checks_sha256": _digest(folder, stubs)}, str(path)
    )
    _refuse_repeats(path, "check", [check.id for check in checks])
    _refuse_repeats(path, "check or manual item", [check.id for check in checks] + [item.id for item in manual])
    _refuse_repeats(path, "profile", [profile.name for profile in profiles])
    _refuse_unlike(path, profiles)
    return assignment


def _entries(where: Path | str, raw: dict[str, Any], key: str, *, least: int = 1) -> list[dict[str, Any]]:
    entries = raw.pop(key, None)
    is_list = isinstance(entries, list) and len(entries) >= least
    if not is_list or not all(isinstance(entry, dict) for entry in entries or ()):
        raise AssignmentError(f"{where}: `{key}` should be a list of mappings with at least {least} entries.")
    return entries or []


def _check(path: Path, entry: dict[str, Any], shared: dict[str, str]) -> Check:
    where = f"{path}: check {entry.get('id')!r}"
    mistakes = {**shared, **_mistakes(path, where, entry.get("mistakes", {}))}
    check: Check = _build(Check, {**entry, "mistakes": mistakes}, where)
    if check.points < 0:
        raise AssignmentError(f"{path}: check {check.id!r} has {check.points} points; expected none or more.")
    return check


def _manual(path: Path, entry: dict[str, Any]) -> ManualItem:
    item: ManualItem = _build(ManualItem, entry, f"{path}: manual item {entry.get('id')!r}")
    if not 0 < item.points < math.inf:
        raise AssignmentError(f"{path}: manual item {item.id!r} has {item.points} points; expected more than none.")
    return item


def _mistakes(path: Path, where: str, raw: Any) -> dict[str, str]:
    """Sentences by the names of mistakes."""
    if not isinstance(raw, dict) or not all(isinstance(text, str) for pair in raw.items() for text in pair):
        raise AssignmentError(f"{where} of {path} should map the names of mistakes to sentences.")
    return raw


def _profile(path: Path, entry: dict[str, Any], limits: Any, runtime: Any) -> Profile:
    where = f"{path}: profile {entry.get('name')!r}"
    curves = tuple(_curve(where, curve) for curve in _entries(where, {"curves": [], **entry}, "curves", least=0))
    own = entry.get("limits", {})
    if not isinstance(limits, dict) or not isinstance(own, dict):
        raise AssignmentError(f"{where}: `limits` should be a mapping.")
    merged = {**limits, **own}
    values = {"works": 0, **entry, "curves": curves, "limits": _build(Limits, merged, f"{where}: limits")}
    values["runtime"] = _runtime(where, runtime, entry.get("runtime", {}))
    _refuse_repeats(path, "curve", [curve.model for curve in curves])
    profile: Profile = _build(Profile, values, where)
    if profile.lanes < 1:
        raise AssignmentError(f"{where}: `lanes` is {profile.lanes}; expected 1 or more.")
    if profile.device not in ("cpu", "gpu"):
        raise AssignmentError(f"{where}: `device` is {profile.device!r}; expected cpu or gpu.")
    return profile


def _runtime(where: str, shared: Any, own: Any) -> Runtime:
    """What runs the notebooks: what stands beside the profiles, and in one of them. Whether it works is asked later."""
    if not isinstance(shared, dict) or not isinstance(own, dict):
        raise AssignmentError(f"{where}: `runtime` should be a mapping, {{python: PATH_OF_INTERPRETER}} for example.")
    runtime: Runtime = _build(Runtime, {**shared, **own}, f"{where}: runtime")
    if runtime.python and not Path(runtime.python).is_absolute():
        raise AssignmentError(
            f"{where}: `python` of `runtime` is {runtime.python!r}; expected the whole path of an interpreter."
        )
    if runtime.slots_per_gpu < 1:
        raise AssignmentError(f"{where}: `slots_per_gpu` is {runtime.slots_per_gpu}; expected 1 or more.")
    return runtime


def _curve(where: str, entry: dict[str, Any]) -> Curve:
    """A curve that is complete, from no points to all, and along which a better model never has fewer points."""
    name = f"{where}: curve {entry.get('model')!r}"
    knots: Any = entry.get("credit")
    is_list = isinstance(knots, list) and len(knots) > 1
    if not is_list or not all(isinstance(knot, list) and len(knot) == 2 for knot in knots):
        raise AssignmentError(f"{name}: `credit` should list two or more pairs [nats/char, points].")
    if not all(type(number) in (int, float) and abs(number) < LARGEST for knot in knots for number in knot):
        raise AssignmentError(f"{name}: `credit` holds something that is no number: {knots}.")
    credit = tuple((float(nats), float(points)) for nats, points in knots)
    for (nats, points), (lower, more) in itertools.pairwise(credit):
        if lower >= nats or more < points:
            raise AssignmentError(
                f"{name}: from [{nats:g}, {points:g}] to [{lower:g}, {more:g}] the nats/char should fall and the "
                "points should not."
            )
    if credit[0][1] != 0 or credit[-1][1] <= 0:
        raise AssignmentError(f"{name}: `credit` should begin with 0 points and end with all that there are.")
    curve: Curve = _build(Curve, {"relative_to": "", **entry, "credit": credit}, name)
    return curve


def _refuse_unlike(path: Path, profiles: tuple[Profile, ...]) -> None:
    """Every profile that gives credit gives it for the same models, and as much: what a homework is worth is one."""
    graded = [profile for profile in profiles if profile.curves]
    worth = [{curve.model: curve.points for curve in profile.curves} for profile in graded]
    for profile, one in zip(graded[1:], worth[1:], strict=True):
        for model in sorted({*one, *worth[0]}):
            if one.get(model) != worth[0].get(model):
                raise AssignmentError(
                    f"{path}: the curve of {model!r} ends with {one.get(model, 'no')} points in profile "
                    f"{profile.name!r} and with {worth[0].get(model, 'no')} in {graded[0].name!r}; they should agree."
                )


def _build(kind: Any, values: dict[str, Any], where: str) -> Any:
    """A dataclass from a mapping. Raises AssignmentError for a missing, unknown or mistyped entry."""
    types = typing.get_type_hints(kind)
    required = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    for problem, names in (
        ("lacks", required - set(values)),
        ("has the unknown entry", set(values) - set(types)),
    ):
        if names:
            raise AssignmentError(f"{where} {problem} {', '.join(sorted(map(str, names)))}.")
    converted = {}
    for name, value in values.items():
        if types[name] is float and type(value) is int:
            value = float(value)
        if types[name] in (float, int, str, bool) and type(value) is not types[name]:
            raise AssignmentError(f"{where}: `{name}` is {value!r}; expected {types[name].__name__}.")
        converted[name] = value
    return kind(**converted)


def _refuse_repeats(path: Path, what: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise AssignmentError(f"{path} lists the {what} {repeated[0]!r} more than once.")


def check_files(folder: Path) -> list[Path]:
    """Every file of checks/."""
    return sorted((folder / "checks").glob("*.py"))


def _digest(folder: Path, stubs: Path) -> str:
    """Identity of every file of checks/, and of the stubs, wherever they lie."""
    digest = hashlib.sha256()
    for path in [stubs, *check_files(folder)]:
        data = path.read_bytes()
        digest.update(f"{path.name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
