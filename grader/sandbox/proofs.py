"""Remembers that a sandbox was proven, so that the next command of the same hour need not prove it again.

A proof holds for what it was made with: this boot of the machine, this kernel and container, these rights, these
programs and this code. Anything else, and after a day, is proven anew. `grader doctor` always proves anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import stat
import sys
import time
from pathlib import Path

from grader.corpus import cache_folder, write_whole
from grader.sandbox import tiers
from grader.sandbox.selftest import is_to_be_warm, require
from grader.sandbox.template import OFF

VALID_S = 86_400.0
BOOT = Path("/proc/sys/kernel/random/boot_id")
_FACTS = (  # of this container and these rights
    *("/proc/version", "/proc/self/uid_map", "/proc/self/mountinfo"),
    *("/proc/self/attr/current", "/sys/kernel/security/lsm"),
    *("/proc/sys/kernel/unprivileged_userns_clone", "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
    *("/proc/sys/user/max_user_namespaces", "/proc/sys/kernel/yama/ptrace_scope"),
)
_RIGHTS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
PROGRAMS = ("bwrap", "unshare", "setpriv", "choom", "sh", "mount", "env")  # that sandboxes are started with
_NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "cgroup")


def require_proven(tier: str) -> None:
    """Refuse a sandbox that does not keep its promises, as `require`, unless it was proven here already.

    Raises SandboxUnavailable.
    """
    try:
        path = cache_folder() / "proofs" / _basis(tier)
    except (OSError, RuntimeError):  # there is no home, or nothing to be known about this boot or a program
        require(tier)
        return
    if _holds(path):
        return
    is_proven_warm = require(tier)
    if is_proven_warm or not is_to_be_warm(tier):
        with contextlib.suppress(OSError):  # it is proven, and will be once more
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for other in path.parent.iterdir():
                if len(other.name) == len(path.name) and not _holds(other):
                    other.unlink()
            write_whole(path, b"", mode=0o600)


def _holds(path: Path) -> bool:
    """Whether a proof lies there that is not old, and that nobody else could have put there."""
    try:
        found = [path.lstat(), path.parent.lstat()]
    except OSError:
        return False
    kept = all(one.st_uid == os.getuid() and not one.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for one in found)
    return kept and stat.S_ISREG(found[0].st_mode) and 0 <= time.time() - found[0].st_mtime < VALID_S


def _basis(tier: str) -> str:
    """The hash of all that a proof of this tier rests on. Raises OSError where that is not to be known."""
    facts = [BOOT.read_text(), tier, os.environ.get(OFF, ""), platform.machine(), sys.version, tiers.PATH]
    facts += [_text(name) for name in _FACTS]
    facts += [line for line in _text("/proc/self/status").splitlines() if line.split(":")[0] in _RIGHTS]
    spaces = [Path("/proc/self/ns", name) for name in _NAMESPACES]
    facts += [str(space.readlink()) for space in spaces if space.is_symlink()]
    programs = [sys.executable, *filter(None, (shutil.which(name, path=tiers.PATH) for name in PROGRAMS))]
    for program in programs:
        real = Path(program).resolve()
        known = real.stat()
        facts.append(f"{real} {known.st_dev} {known.st_ino} {known.st_size} {known.st_mtime_ns} {known.st_mode}")
    facts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
