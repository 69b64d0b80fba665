"""The interpreter of the notebooks may be another than the grader's; it is asked what it is, and what it lacks."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from grader.errors import RuntimeUnavailable
from grader.sandbox.runtime import cuda_folders, interpreter, missing, require, runtime_identity, version_of


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter of its own, in an environment with no package."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return str(folder / "bin" / "python")


def test_what_is_missing_is_said_by_name(empty: str) -> None:
    """An environment without packages lacks three; the grader's own lacks none."""
    assert missing(sys.executable) == ""
    reason = missing(empty)
    for name in ("mxnet", "nbclient", "ipykernel"):
        assert f"{name} (ModuleNotFoundError: No module named '{name}')" in reason
    with pytest.raises(RuntimeUnavailable, match="install what is missing"):
        require(empty)


def test_a_build_that_finds_no_driver_is_quoted(empty: str) -> None:
    """A CUDA build of MXNet cannot be imported without a driver, and the loader's sentence says which library lacks."""
    packages = Path(interpreter(empty).packages[0])
    (packages / "mxnet.py").write_text("raise OSError('libcuda.so.1: cannot open shared object file')")
    try:
        assert "mxnet (OSError: libcuda.so.1: cannot open shared object file)" in missing(empty)
    finally:
        (packages / "mxnet.py").unlink()


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/true"])
def test_what_is_no_interpreter_is_named(python: str) -> None:
    """A path that leads nowhere, or to another program, is a sentence with the path and where it stands."""
    with pytest.raises(RuntimeUnavailable, match=rf"{python} .*`runtime` in assignment\.yaml"):
        version_of(python)
    assert python in missing(python)


def test_what_is_no_interpreter_repeats_little_of_what_it_was_asked() -> None:
    """`ls` names what it cannot find: our whole question."""
    with pytest.raises(RuntimeUnavailable) as refused:
        version_of("/bin/ls")
    assert "/bin/ls: cannot access" in str(refused.value)
    assert "distributions" not in str(refused.value)


def test_the_identity_is_python_and_the_build_of_mxnet(empty: str) -> None:
    """What decides a grade: another Python, another build or another version of MXNet have another identity."""
    version = sys.version.split()[0]
    assert runtime_identity(sys.executable) == f"Python {version}, mxnet==1.9.1"
    assert runtime_identity(empty) == f"Python {version}, no mxnet"


def test_cuda_libraries_of_an_environment_are_found(empty: str) -> None:
    """pip puts them into site-packages/nvidia/<library>/lib."""
    assert cuda_folders(empty) == ()
    made = Path(interpreter(empty).packages[0]) / "nvidia" / "cudnn" / "lib"
    made.mkdir(parents=True)
    assert cuda_folders(empty) == (str(made),)


def test_packages_of_a_pth_file_are_known(empty: str) -> None:
    """Folders of installed packages are bound into the sandbox; a source folder that a .pth file adds is not."""
    packages = Path(interpreter(empty).packages[0])
    (packages / "more.pth").write_text(f"{sysconfig.get_path('purelib')}\n{Path(__file__).parent}\n")
    interpreter.cache_clear()
    assert interpreter(empty).packages == (str(packages), sysconfig.get_path("purelib"))
