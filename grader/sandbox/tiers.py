"""The kinds of sandbox that a machine can have, from the strongest to the weakest, and the command that starts each.

bubblewrap as an ordinary user makes a user namespace of its own. bubblewrap started as root is no sandbox, so root
first takes a uid of its own (one for each grading process, so that process limits do not add up). That uid may not
reach the interpreter (a home folder is closed), so root binds it into a private mount namespace before the uid is
dropped. Where user namespaces are forbidden, root has bubblewrap make the others, and drops the uid inside. In an
ordinary container none of this is allowed: there remains a uid of its own, without privileges or network.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from grader.errors import SandboxUnavailable
from grader.sandbox.lease import Lease
from grader.sandbox.runtime import interpreter

USER, ROOT, NO_USERNS, UID, NONE = "bubblewrap", "bubblewrap-root", "bubblewrap-no-userns", "uid", "none"
WHAT = {
    USER: "bubblewrap, as an ordinary user",
    ROOT: "bubblewrap, as root, which drops its uid first",
    NO_USERNS: "bubblewrap, as root, without user namespaces",
    UID: "a uid of its own in an ordinary container (weaker)",
}
_REMEDY: Mapping[str, str] = {
    USER: "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone), or run as root.",
    ROOT: "allow user namespaces (sysctl user.max_user_namespaces).",
    NO_USERNS: "give the container CAP_SYS_ADMIN.",
    UID: "run as root with CAP_SETUID, CAP_SETGID, CAP_SETPCAP, CAP_CHOWN and CAP_KILL, from an installation of the "
    "grader and of Python that every user can read, in /opt for example.",
}
_NEEDS = {"bwrap": "bubblewrap", "choom": "util-linux", "setpriv": "util-linux", "unshare": "util-linux"}
WARM = (USER, ROOT)  # where a template may make user namespaces
HOME, GUEST = "/home/student", "/opt/guest"
# The first to go when the machine runs out of memory; from inside it can only be made worse.
FIRST_TO_GO = ("choom", "-n", "1000", "--")
PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
SLOT_UID_BASE, SLOTS = 0x60000000, 0x400000  # far above the uids of people and services; the process id is added
SMALL_UID_BASE, SMALL_SLOTS = 40000, 20000  # where a container maps no more than 65,536
HOME_MB = 128
_FOLDERS = (("/dev/shm", "1777", 32), ("/tmp", "1777", 64))  # mode and megabytes
_HERE = Path(__file__).parent
_STAGE = """
set -e
mount -t tmpfs -o mode=0755,size=64k tmpfs /mnt
n=$1; shift
i=0
while [ $i -lt $n ]; do
  if [ -d "$1" ]; then mkdir /mnt/$i; else : > /mnt/$i; fi
  mount --bind "$1" /mnt/$i
  shift; i=$((i+1))
done
exec "$@"
"""


def candidates() -> tuple[str, ...]:
    """The tiers that this user may try, the strongest first."""
    return (ROOT, NO_USERNS, UID) if os.geteuid() == 0 else (USER,)


def pick_tier() -> str:
    """The strongest tier that starts on this machine. Raises SandboxUnavailable where there is none."""
    reasons = []
    for tier in candidates():
        reason = why_not(tier)
        if not reason:
            return tier
        reasons.append(f"{WHAT[tier]}: {reason}")
    raise SandboxUnavailable(
        f"there is no sandbox on this machine, and nothing is graded without one. {reasons[0]} "
        "`grader doctor` says what each kind lacks."
    )


def why_not(tier: str) -> str:
    """What keeps a tier from starting here, and what to do about it; empty if it starts."""
    for command, package in _NEEDS.items():
        if not shutil.which(command) and not (tier == UID and command == "bwrap"):
            return f"the command {command} was not found: install the package {package}."
    program = [sys.executable, "-I", "-c", f"open({str(_HERE / 'runner.py')!r})"] if tier == UID else ["true"]
    tried = subprocess.run(
        _around(tier, program, [], None, ()), capture_output=True, text=True, env={"PATH": PATH}, cwd="/", timeout=60
    )
    said = tried.stderr.strip().splitlines()[-1:] or [f"it ended with {tried.returncode}"]
    return "" if tried.returncode == 0 else f"does not start ({said[0]}): {_REMEDY[tier]}"


def slot_uid() -> int:
    """The uid under which this process has student code run, when it is root."""
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    big = SLOT_UID_BASE + os.getpid() % SLOTS
    is_mapped = any(int(first) <= big < int(first) + int(count) for first, _, count in ranges)
    return big if is_mapped else SMALL_UID_BASE + os.getpid() % SMALL_SLOTS


def command(
    tier: str,
    python: str,
    inside: Sequence[int],
    filter_fd: int,
    private: Sequence[str],
    lease: Lease | None = None,
) -> list[str]:
    """The command that runs `runner.py` in a tier; `inside` are its two sockets, `lease` is the GPU that it may use.

    Without a mount namespace a GPU is not bound but named by the environment: what all users may open is open.
    """
    here = _HERE if tier in (UID, NONE) else Path(GUEST)
    program = [python, "-I", "-B", f"{here}/runner.py", *map(str, inside)]
    if tier == NONE:
        return program
    if tier == UID:
        program.append(str(filter_fd))
    binds = [(folder, folder) for folder in _interpreter_folders(python)]
    binds += [(str(_HERE / name), f"{GUEST}/{name}") for name in ("runner.py", "guest.py", "wire.py")]
    binds += [(library, library) for library in (lease.libraries if lease else ())]
    return [*FIRST_TO_GO, *_around(tier, program, binds, filter_fd, private, lease.nodes if lease else ())]


def template_command(
    tier: str,
    python: str,
    requests_fd: int,
    filter_fd: int,
    private: Sequence[str],
    environment: Mapping[str, str],
) -> list[str]:
    """The command that runs `zygote.py` in a tier, without what its copies need rights for and then take themselves."""
    interpreter = _interpreter_folders(python)
    fresh = [(path, mode, size << 20) for path, mode, size in (*_FOLDERS, (HOME, "0700", HOME_MB))]
    layout = json.dumps({"fresh": fresh, "interpreter": interpreter})
    program = ["env", *(f"{name}={value}" for name, value in environment.items())]
    # without -I, as a kernel is started: what imports what is not to depend on how the sandbox began
    program += [python, f"{GUEST}/zygote.py", str(requests_fd), str(filter_fd), layout]
    binds = [(folder, folder) for folder in interpreter]
    binds += [(str(_HERE / name), f"{GUEST}/{name}") for name in ("zygote.py", "runner.py", "guest.py", "wire.py")]
    return [*FIRST_TO_GO, *_around(tier, program, binds, None, private, user=_TEMPLATE)]


def _around(
    tier: str,
    program: Sequence[str],
    binds: Sequence[tuple[str, str]],
    filter_fd: int | None,
    private: Sequence[str],
    nodes: Sequence[tuple[str, str]] = (),
    user: Sequence[str] | None = None,
) -> list[str]:
    """A program in a tier; `user` are bubblewrap's words about users and rights, where not the tier's own."""
    drop = ["setpriv", "--reuid", str(slot_uid()), "--regid", str(slot_uid()), "--clear-groups", "--no-new-privs"]
    drop_all = [*drop, "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]
    if tier == UID:
        return [*drop_all, "env", *program]  # setpriv itself still has the rights to find any program
    hidden = _hidden(private, [("/usr", "/usr"), *binds])
    if tier == USER:
        return [*_bubblewrap(user or _OWN_USER, binds, filter_fd, hidden, nodes), *program]
    if tier == NO_USERNS:
        return [*_bubblewrap(_NO_USER, binds, filter_fd, hidden, nodes), *drop_all, *program]
    staged = [(f"/mnt/{i}", inner) for i, (_, inner) in enumerate(binds)]
    stage = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _STAGE, "stage", str(len(binds))]
    stage += [outer for outer, _ in binds]
    return [*stage, *drop, *_bubblewrap(user or _OWN_USER, staged, filter_fd, hidden, nodes), *program]


_OWN_USER = ("--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL")
# of a template: each copy makes a user namespace of its own, in which nobody makes another
_TEMPLATE = tuple(word for word in _OWN_USER if word != "--disable-userns")
_NO_USER = ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP")


def _bubblewrap(
    user: Sequence[str],
    binds: Sequence[tuple[str, str]],
    filter_fd: int | None,
    hidden: Sequence[str],
    nodes: Sequence[tuple[str, str]],
) -> list[str]:
    """The sandbox itself: own namespaces, no network, read-only system, private sized tmpfs, empty environment."""
    words = ["bwrap", *(word for word in user if word != "--disable-userns" or _can_disable_userns())]
    words += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--die-with-parent", "--new-session", "--hostname", "grader", "--clearenv"]
    environment = {"HOME": HOME, "TMPDIR": "/tmp", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    for name, value in environment.items():
        words += ["--setenv", name, value]
    words += ["--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"]
    words += ["--symlink", "usr/lib64", "/lib64", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    words += ["--proc", "/proc", "--dev", "/dev"]
    if user != _TEMPLATE:  # who sees a /proc with a part covered may not mount another
        words += ["--ro-bind-try", "/proc/sys", "/proc/sys"]
    home_mode = "0700" if "--uid" in user else "1777"  # of root, where the uid is dropped inside
    for path, mode, size in (*_FOLDERS, (HOME, home_mode, HOME_MB)):
        words += ["--perms", mode, "--size", str(size << 20), "--tmpfs", path]
    parents = {str(parent) for _, inner in binds for parent in Path(inner).parents if len(parent.parts) > 1}
    for parent in sorted(parents - {"/usr", "/tmp", "/home"}):  # bubblewrap as root would close them
        words += ["--perms", "0755", "--dir", parent]
    for outer, inner in binds:
        words += ["--ro-bind", outer, inner]
    for outer, inner in nodes:
        words += ["--dev-bind", outer, inner]
    for folder in hidden:
        words += ["--tmpfs", folder, "--remount-ro", folder]
    words += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", HOME]
    if filter_fd is not None:
        words += ["--seccomp", str(filter_fd)]
    return [*words, "--"]


@functools.cache
def _can_disable_userns() -> bool:
    """bubblewrap before 0.8 cannot; the seccomp filter then stands alone against nested user namespaces."""
    return "--disable-userns" in subprocess.run(["bwrap", "--help"], capture_output=True, text=True).stdout


def _interpreter_folders(python: str) -> list[str]:
    """Folders outside /usr that the interpreter needs: its environment and its installation."""
    if python == sys.executable:
        prefixes = [sys.prefix, sys.base_prefix]
    else:
        about = interpreter(python)
        elsewhere = [path for path in about.packages if not any(map(Path(path).is_relative_to, about.prefixes))]
        prefixes = [*about.prefixes, *elsewhere]
    folders = {str(Path(prefix)) for prefix in prefixes} | {str(Path(prefix).resolve()) for prefix in prefixes}
    return sorted(folder for folder in folders if not folder.startswith("/usr/") and folder != "/usr")


def _hidden(private: Sequence[str], binds: Sequence[tuple[str, str]]) -> list[str]:
    """Where private folders would be seen inside: an environment that is a link is bound under both its names."""
    found = set()
    for folder in map(os.path.realpath, private):
        for outer, inner in binds:
            if Path(folder).is_dir() and Path(folder).is_relative_to(os.path.realpath(outer)):
                found.add(str(Path(inner) / Path(folder).relative_to(os.path.realpath(outer))))
    return sorted(found)


def require_closed(tier: str, private: Sequence[str]) -> None:
    """Raises SandboxUnavailable if this tier cannot keep a private folder from being read."""
    for folder in map(Path, private if tier == UID else ()):
        if folder.exists() and all(place.stat().st_mode & 0o001 for place in [folder, *folder.parents]):
            raise SandboxUnavailable(
                f"any user of this machine can enter {folder}, and this kind of sandbox cannot hide it: "
                f"close it with `chmod o-rwx {folder}`."
            )
