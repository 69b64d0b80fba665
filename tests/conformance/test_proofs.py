"""A proof of the sandbox is remembered for as long as what it rests on stays as it is, and no longer."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from grader.errors import SandboxUnavailable
from grader.sandbox import proofs
from grader.sandbox.proofs import require_proven


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A cache of its own, and the tiers that were proven anew: all hold, but for one called "broken"."""
    monkeypatch.setenv("GRADER_CACHE", str(tmp_path))
    found: list[str] = []

    def require(tier: str) -> bool:
        found.append(tier)
        if tier == "broken":
            raise SandboxUnavailable("the sandbox does not hold here")
        return True

    monkeypatch.setattr(proofs, "require", require)
    return found


def kept(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "proofs").iterdir()
    return path


def test_the_same_sandbox_is_proven_once(asked: list[str]) -> None:
    """And another tier by itself."""
    for tier in ("one", "one", "two", "one"):
        require_proven(tier)
    assert asked == ["one", "two"]


def test_a_sandbox_that_does_not_hold_is_refused_each_time(asked: list[str]) -> None:
    """Nothing is remembered of it."""
    for _ in range(2):
        with pytest.raises(SandboxUnavailable):
            require_proven("broken")
    assert asked == ["broken", "broken"]


@pytest.mark.parametrize("change", ["code", "boot", "rights", "warm"])
def test_a_proof_is_not_that_of_anything_else(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    """Other code of the sandbox, a restart, other rights, another way to start: proven anew."""
    require_proven("one")
    real = proofs._text
    if change == "code":
        (tmp_path / "code").mkdir()
        monkeypatch.setattr(proofs, "__file__", str(tmp_path / "code" / "proofs.py"))
    elif change == "warm":
        monkeypatch.setenv("GRADER_WARM", "0")
    elif change == "boot":
        (tmp_path / "boot").write_text("another")
        monkeypatch.setattr(proofs, "BOOT", tmp_path / "boot")
    else:
        other = {"/proc/self/status": "CapEff:\t0000000000000001"}
        monkeypatch.setattr(proofs, "_text", lambda path: other.get(path) or real(path))
    require_proven("one")
    assert asked == ["one", "one"]


def test_without_knowing_the_boot_nothing_is_remembered(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine that hides its boot could have been started anew, with another kernel, at any time."""
    monkeypatch.setattr(proofs, "BOOT", tmp_path / "nothing")
    for _ in range(2):
        require_proven("one")
    assert asked == ["one", "one"]


@pytest.mark.parametrize("change", ["old", "of tomorrow", "writable", "folder", "link"])
def test_a_proof_that_others_could_have_left_or_that_is_old_is_none(
    asked: list[str], tmp_path: Path, change: str
) -> None:
    """Made a day ago, or where others may write, or no file: proven anew."""
    require_proven("one")
    path = kept(tmp_path)
    if change in ("old", "of tomorrow"):
        at = time.time() + (86_401 if change == "of tomorrow" else -86_401)
        os.utime(path, (at, at))
    elif change == "writable":
        path.chmod(0o622)
    elif change == "folder":
        path.parent.chmod(0o777)
    else:
        (tmp_path / "empty").touch()
        path.unlink()
        path.symlink_to(tmp_path / "empty")
    require_proven("one")
    assert asked == ["one", "one"]


def test_a_sandbox_that_could_not_be_tried_warm_is_tried_again(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it was proven only in part, nothing is remembered."""
    monkeypatch.setattr(proofs, "is_to_be_warm", lambda tier: True)
    monkeypatch.setattr(proofs, "require", lambda tier: asked.append(tier))
    for _ in range(2):
        require_proven("one")
    assert asked == ["one", "one"]
