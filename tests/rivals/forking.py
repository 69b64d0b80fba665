"""The floor: `python forking.py SCRIPT...` runs each in a fork of a process that has imported MXNet, one at a time."""

import os
import sys
from pathlib import Path

import mxnet  # noqa: F401

for script in sys.argv[1:]:
    pid = os.fork()
    if pid == 0:
        exec(compile(Path(script).read_text(), script, "exec"), {"__name__": "__main__"})
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        sys.exit(f"{script} failed")
