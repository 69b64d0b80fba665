"""The one small submission whose cost is measured: 1 s of training, then 12 calls; and the same without the grader."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grader.errors import InfrastructureError
from grader.sandbox.selftest import ENVIRONMENT

CALLS = 12
CELLS = (
    "import time\nfrom mxnet import autograd, gluon, nd",
    "model = gluon.rnn.LSTM(64, input_size=27)\nmodel.initialize()\n"
    "trainer = gluon.Trainer(model.collect_params(), 'sgd', {'learning_rate': 0.1})",
    "X = nd.random.uniform(shape=(35, 32, 27))\n"
    "started = time.process_time()\n"
    "while time.process_time() < started + 1:\n"
    "    with autograd.record():\n        loss = (model(X) ** 2).mean()\n"
    "    loss.backward()\n    trainer.step(1)\n    loss.asscalar()",
    "def predict(x): return model(nd.array(x).reshape((1, 4, 27))).sum().asnumpy()",
)
_CALLING = f"import numpy\nfor _ in range({CALLS}): predict(numpy.ones((4, 27), numpy.float32))"
_FORKING = """
import os, sys
import mxnet
script = compile(open(sys.argv[1]).read(), "script.py", "exec")
for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        exec(script, {"__name__": "__main__"})
        os._exit(0)
    _, status, used = os.wait4(pid, 0)
    assert status == 0
    print(used.ru_utime + used.ru_stime, flush=True)
"""


def environment() -> dict[str, str]:
    """Ours, with which numerical libraries take one thread, as in a sandbox."""
    return {**os.environ, **ENVIRONMENT}


def write_script(folder: Path) -> Path:
    """The same cells and calls as a program."""
    script = folder / "script.py"
    script.write_text("\n".join((*CELLS, _CALLING)))
    return script


@contextmanager
def warm_parent(script: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has imported MXNet, and runs the script in a fork of itself for each call of `fork`."""
    forking = script.with_name("forking.py")
    forking.write_text(_FORKING)
    with subprocess.Popen(
        [sys.executable, str(forking), str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
        start_new_session=True,  # as a sandbox has: a busy machine shares its time out by session
    ) as parent:
        yield parent
        if parent.poll() is None:
            parent.communicate()


def fork(parent: subprocess.Popen[str]) -> float:
    """Run the script once; the CPU seconds that it took. Raises InfrastructureError if it fails."""
    assert parent.stdin
    assert parent.stdout
    parent.stdin.write("\n")
    parent.stdin.flush()
    said = parent.stdout.readline()
    if not said:
        raise InfrastructureError("the program that the grader is compared with failed: see what it said above.")
    return float(said)
