"""The template of warm sandboxes: imports once what every notebook needs, and makes a sealed copy of itself for each.

Started inside an outer sandbox as `python zygote.py REQUESTS_FD FILTER_FD LAYOUT`. It never reads a submission: a
request is four descriptors, which only the copy reads. (Or it is a line for another worker: then a second template is
forked, which shares the memory of this one, answers on that line, and ends with it.) Each copy is the first process of
user, pid, mount, network, ipc, uts and cgroup namespaces of its own: it mounts fresh folders, gives up every right,
takes the filter of system calls, and forks the runner. The runner forks the kernel in turn, before it has threads.
Standard library, what is imported once, `runner.py` and `wire.py` only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import platform
import resource
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)
import runner  # type: ignore[import-not-found, unused-ignore]  # noqa: E402  lies beside this file in the sandbox

os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as the kernel would
WARM = (
    *("nbformat.v4", "nbclient", "jupyter_client.asynchronous", "jupyter_client.provisioning"),
    *(
        "tornado.platform.asyncio",
        "ipykernel.kernelapp",
        "ipykernel.debugger",
        "ipykernel.kernelspec",
        "ipykernel_launcher",
    ),
    *(f"IPython.core.{name}" for name in ("completer", "completerlib", "debugger", "logger", "oinspect", "pylabtools")),
    *("IPython.extensions.storemagic", "IPython.utils.wildcard", "faulthandler", "pdb", "sqlite3"),
)
WARM_FOR_NOTEBOOKS = ("mxnet", "matplotlib.pyplot", "matplotlib_inline.backend_inline")
FDS = 4  # of a request: control, bridge, job, standard error

# SIGCHLD, and of clone(2): PIDFD, and new namespaces of mounts, cgroups, names, ipc, users, pids, network
_PIDFD = 0x1000
_SPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_CLONE, _CAPSET = {"x86_64": (56, 126), "aarch64": (220, 91)}.get(platform.machine(), (0, 0))
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = (
    *(1, 2, 4, 8, 32),
    *(4096, 16384, 1 << 18),
)
_PDEATHSIG, _DUMPABLE, _CAPBSET_DROP, _NO_NEW_PRIVS, _CAP_AMBIENT, _AMBIENT_CLEAR = 1, 4, 24, 38, 47, 4
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41
_CAPABILITIES_V3 = 0x20080522
# with the interpreter's lock kept: the copy must not come back to a lock that nobody gives back
_libc = ctypes.PyDLL(None, use_errno=True)


def main() -> None:
    """Import, say so, then answer requests until the grader hangs up."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    code, layout = os.pread(int(sys.argv[2]), 1 << 16, 0), json.loads(sys.argv[3])
    os.close(int(sys.argv[2]))
    # nobody debugs here, and every kernel would import a debugger: 0.1 s each time
    sys.modules["debugpy"] = None  # type: ignore[assignment]
    for name in WARM:
        importlib.import_module(name)
    del sys.modules["debugpy"]
    # what every client would look for among all packages, and is the same each time
    sys.modules["jupyter_client.provisioning"].KernelProvisionerFactory.instance()
    for name in WARM_FOR_NOTEBOOKS:
        with contextlib.suppress(ImportError):  # the notebook that wants it will hear so
            importlib.import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1 or not code or not _CLONE or not hasattr(_libc, "_Fork"):  # of the GNU C library, since 2.34
        requests.send(json.dumps({"error": f"{threads} threads on {platform.platform()}"}).encode())
        return
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, _reap)
    nothing = [*(os.open(os.devnull, os.O_RDWR) for _ in range(FDS - 1)), os.dup(2)]
    _answer(requests, nothing, code, layout)  # to the grader's first question: can there be copies at all?
    while True:
        request, fds, _, _ = socket.recv_fds(requests, 16, FDS)
        if not request:
            return
        if request == b"share":
            requests = _line(requests, fds[0])
        else:
            _answer(requests, fds, code, layout)


def _line(requests: socket.socket, fd: int) -> socket.socket:
    """Fork: what is answered from now on, here as before, and the new line in the fork. Where it fails, that ends."""
    line = socket.socket(fileno=fd)
    pid = -1
    with contextlib.suppress(OSError):
        pid = _fork()
    other = requests if pid == 0 else line
    other.close()
    return line if pid == 0 else requests


def _reap(*_: object) -> None:
    """Take note of the copies that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _answer(requests: socket.socket, fds: list[int], code: bytes, layout: dict[str, Any]) -> None:
    """Make one copy, and send its pidfd as soon as it is sealed."""
    sealed, sealing = os.pipe()
    pidfd = ctypes.c_int(-1)
    pid = _libc.syscall(_CLONE, _SPACES | _PIDFD | signal.SIGCHLD, None, ctypes.byref(pidfd), None, None)
    if pid == 0:
        try:
            _first_process(fds, sealing, code, layout)
        except BaseException as error:  # noqa: BLE001  a copy must never go on as the template
            _say(error)
        finally:
            os._exit(1)
    failed = ctypes.get_errno() if pid < 0 else 0
    for fd in [sealing, *fds]:
        os.close(fd)
    is_sealed = not failed and os.read(sealed, 1) == b"1"
    os.close(sealed)
    if is_sealed:
        socket.send_fds(requests, [b"{}"], [pidfd.value])
    else:
        requests.send(json.dumps({"error": os.strerror(failed) if failed else "the copy was not sealed"}).encode())
    if pidfd.value >= 0:
        os.close(pidfd.value)


def _first_process(fds: list[int], sealing: int, code: bytes, layout: dict[str, Any]) -> None:
    """The copy, as the first process of its namespaces: seal, fork the runner, end with it and take all along."""
    control, bridge, job, stderr = fds
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # from inside, the first process is sent only what it handles
    os.setsid()
    for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, stderr), (2, stderr)):
        os.dup2(source, target)
    _close_all_but(control, bridge, job, sealing)
    _own_folders(layout["fresh"], layout["interpreter"])
    _give_up_rights(code)
    _require_sealed()
    os.write(sealing, b"1")
    os.close(sealing)
    pid = _fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        runner.run_job(lambda size: _read(job, size), control, bridge, fork_kernel)
        os._exit(0)
    _close_all_but()
    while os.wait()[0] != pid:
        pass


def _fork() -> int:
    """os.fork() without the handlers of libraries: MXNet's would start threads, and do without OpenMP for good."""
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid = int(_libc._Fork())
    (python.PyOS_AfterFork_Parent if pid else python.PyOS_AfterFork_Child)()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "the copy could not be forked")
    return pid


def _say(error: BaseException) -> None:
    """The error's traceback into the file that the grader quotes the last line of."""
    os.write(2, "".join(traceback.format_exception(error)).encode())


def _close_all_but(*kept: int) -> None:
    """Close every descriptor above 2 but these: nothing of the template's stays open."""
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _read(fd: int, size: int) -> bytes:
    """Exactly so many bytes of a file, or what there is of them."""
    parts = []
    while size and (part := os.read(fd, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    words = [word.encode() or None for word in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None):
        raise OSError(ctypes.get_errno(), f"{target} could not be mounted")


def _own_folders(folders: list[list[Any]], places: list[str]) -> None:
    """A uid, a loopback, and fresh folders over those of the template, which nothing can lift without rights."""
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text(f"{os.getegid()} {os.getegid()} 1")
    Path("/proc/self/uid_map").write_text(f"{os.geteuid()} {os.geteuid()} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anything:
        fcntl.ioctl(anything, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))
    _mount("", "/", "", _MS_REC | _MS_PRIVATE)
    for path, mode, size in folders:
        # an interpreter may lie below, in a folder of /tmp
        covered = {place: os.open(place, os.O_PATH) for place in places if place.startswith(path + "/")}
        _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode={mode},size={size}")
        for place, fd in covered.items():
            Path(place).mkdir(0o755, parents=True, exist_ok=True)
            _mount(f"/proc/self/fd/{fd}", place, "", _MS_BIND | _MS_REC)
            os.close(fd)
    _mount("devpts", "/dev/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    _mount("/proc/sys", "/proc/sys", "", _MS_BIND)
    read_only = _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _mount("", "/proc/sys", "", read_only)
    os.chdir(os.environ["HOME"])


def _give_up_rights(code: bytes) -> None:
    """Every capability, for good; then the filter of system calls."""
    for capability in range(64):
        if _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0):
            break  # the last that this kernel knows
    _libc.prctl(_CAP_AMBIENT, _AMBIENT_CLEAR, 0, 0, 0)
    header, none = struct.pack("=Ii", _CAPABILITIES_V3, 0), bytes(24)
    if _libc.syscall(_CAPSET, header, none):
        raise OSError(ctypes.get_errno(), "the capabilities could not be dropped")
    runner.filter_calls(code)
    _libc.prctl(_DUMPABLE, 0, 0, 0, 0)
    _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _require_sealed() -> None:
    """Raises PermissionError if anything above did not take: then there is no sandbox."""
    lines = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    rights = [lines[f"Cap{kind}"].strip("0") for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")]
    if any(rights) or (lines["NoNewPrivs"], lines["Seccomp"]) != ("1", "2") or os.getpid() != 1 or os.getuid() == 0:
        raise PermissionError("the copy has rights that it should not have")


class _Forked:
    """The kernel's process as `subprocess.Popen` would show it."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int | None:
        return self._reap(0)

    def _reap(self, how: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def fork_kernel(bridge: int) -> Any:
    """Fork the kernel, which waits until it is told its command; the provisioner class that tells it.

    Called before there is a thread, an event loop or a ZeroMQ context.
    """
    from jupyter_client.provisioning.local_provisioner import LocalProvisioner

    waiting, telling = os.pipe()
    pid = _fork()
    if pid == 0:
        try:
            _kernel(waiting, bridge)
        except BaseException as error:  # noqa: BLE001  the kernel must never go on as the runner
            _say(error)
        finally:
            os._exit(1)
    os.close(waiting)

    class Provisioner(LocalProvisioner):
        """Starts the kernel that is there already."""

        async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
            with os.fdopen(telling, "w") as pipe:
                json.dump({"command": cmd, "environment": kwargs["env"]}, pipe)
            self.pid = self.pgid = pid
            self.process: Any = _Forked(pid)
            return self.connection_info

    return Provisioner


def _kernel(waiting: int, bridge: int) -> None:
    """Become the kernel: what `python -m ipykernel_launcher` does, in a process that has it all imported."""
    os.setsid()
    _close_all_but(waiting, bridge)
    os.set_inheritable(bridge, True)
    _libc.prctl(_DUMPABLE, 1, 0, 0, 0)
    with os.fdopen(waiting) as pipe:
        start = json.load(pipe)
    os.environ.clear()
    os.environ.update(start["environment"], JPY_PARENT_PID=str(os.getppid()))
    sys.path[:] = [folder for folder in sys.path if folder != HERE]
    for name in ("runner", "wire"):
        sys.modules.pop(name, None)
    import ipykernel_launcher
    import numpy
    from ipykernel.kernelapp import IPKernelApp

    numpy.random.seed()  # Python's own generator is seeded anew by every fork, MXNet's is always the same
    arguments = start["command"][start["command"].index("ipykernel_launcher") + 1 :]
    sys.argv = [ipykernel_launcher.__file__, *arguments]
    IPKernelApp.launch_instance(arguments, parent_handle=os.getppid())
    os._exit(0)


if __name__ == "__main__":
    main()
