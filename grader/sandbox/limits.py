"""The limits of one sandbox: resource limits for its processes and a seccomp filter for their system calls."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from grader.types import Limits

# Numbers of system calls that no notebook needs, by machine: (x86_64, aarch64); None where there is no such call.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "memfd_create": (319, 279),  # memory that belongs to no process, and is counted nowhere
    "memfd_secret": (447, 447),
    "shmget": (29, 194),  # the same
    "perf_event_open": (298, 241),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    # what is cached of the system's files is the same for all sandboxes: a blackboard for those that come later
    "preadv2": (327, 286),
    "fadvise64": (221, 223),
    "mincore": (27, 232),
    "cachestat": (451, 451),
    "readahead": (187, 213),
}
_SOCKET, _CLONE, _CLONE3 = (41, 198), (56, 220), (435, 435)
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_AF_NETLINK = 16
_CLONE_NEWUSER = 0x10000000

# Private writable memory of a CUDA context and its libraries: generous, since what is resident is limited from outside.
CUDA_DATA_BYTES = 8 << 30

_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCH_AT, _ARGUMENT_AT = 0, 4, 16  # offsets in struct seccomp_data


def rlimits(limits: Limits, *, gpu: bool = False) -> dict[str, int]:
    """Resource limits, by their name after `RLIMIT_`, in bytes, counts or seconds of CPU time.

    There is none on address space, of which CUDA reserves more than the machine has memory. RLIMIT_DATA does not count
    what is reserved and not writable, nor what is shared with a device; what CUDA itself writes to is allowed for.
    """
    return {
        "DATA": limits.memory_bytes + (CUDA_DATA_BYTES if gpu else 0),
        "NPROC": limits.processes,
        "NOFILE": limits.open_files,
        "FSIZE": limits.file_bytes,
        "CPU": int(4 * limits.total_wall_s),
        "CORE": 0,
        "MEMLOCK": 8 << 20,
        "MSGQUEUE": 0,
        "SIGPENDING": 1024,
    }


def seccomp_filter(*, network: bool = True) -> bytes:
    """A classic BPF program that refuses what no notebook needs (seccomp(2)); empty on an unknown machine.

    `network` says whether there may be internet sockets: a network namespace holds nothing but loopback.
    """
    families = (_AF_UNIX, _AF_INET, _AF_INET6) if network else (_AF_UNIX,)
    machine = {"x86_64": 0, "aarch64": 1}.get(platform.machine())
    if machine is None:
        return b""
    program = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_JUMP_EQ, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if machine == 0:  # the x32 calls have numbers of their own
        program += [(_JUMP_GE, 0, 1, 0x40000000), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for numbers in _DENIED.values():
        number = numbers[machine]
        if number is not None:
            program += [(_JUMP_EQ, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    program += [
        # clone3 hides its flags behind a pointer: without it the C library falls back to clone
        (_JUMP_EQ, 0, 1, _CLONE3[machine]),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_JUMP_EQ, 0, 4, _CLONE[machine]),
        (_LOAD, 0, 0, _ARGUMENT_AT),
        (_JUMP_SET, 0, 1, _CLONE_NEWUSER),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
        (_JUMP_EQ, 1, 0, _SOCKET[machine]),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _ARGUMENT_AT),
        *((_JUMP_EQ, len(families) - i + 2, 0, family) for i, family in enumerate(families)),
        (_JUMP_EQ, 0, 1, _AF_NETLINK),
        (_RETURN, 0, 0, _ERRNO | errno.EOPNOTSUPP),
        (_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def anonymous_file(data: bytes) -> int:
    """A descriptor, at its start, of a nameless file that holds `data`; the caller closes it."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        return os.dup(file.fileno())


def oom_kills() -> int:
    """How often the kernel has killed a process of this machine because memory ran out (proc_vmstat(5))."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def family(root_pid: int) -> list[psutil.Process]:
    """A process and all its descendants; nothing if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(root_pid)
        return [root, *root.children(recursive=True)]
    return []


def uses_more_than(limit_bytes: int, members: Sequence[psutil.Process]) -> bool:
    """Whether processes hold more memory than that, pages that they share counted once.

    How pages are shared is asked only when the resident sizes add up to too much, and where it may be known.
    """
    return _sum(members, _resident) > limit_bytes and _sum(members, _proportional) > limit_bytes


def let_go_on(members: Sequence[psutil.Process]) -> None:
    """Have those go on that something has stopped (SIGSTOP): what is late by that is late by no fault of its own."""
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if member.status() == psutil.STATUS_STOPPED:
                member.resume()


def tree_cpu_s(root_pid: int) -> float:
    """CPU seconds of a process and all its descendants, and of those that have ended and were waited for."""
    return float(sum(sum(member.cpu_times()[:4]) for member in family(root_pid)))


def _sum(members: Sequence[psutil.Process], size: Callable[[psutil.Process], int]) -> int:
    total = 0
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += size(member)
    return total


def _resident(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


def _proportional(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return _resident(process)
