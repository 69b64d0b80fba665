"""All commands, and how each of them ends: with an exit code, and at most one sentence."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer._click.exceptions import (
    ClickException,
    NoArgsIsHelpError,
)  # typer carries its own click, and names only some of its errors

from grader import __version__
from grader.cli import bench, course, grading, machine, records  # noqa: F401  each registers its commands
from grader.cli.common import app
from grader.errors import GraderError
from grader.stopping import Interrupted
from grader.terminal import say

INTERRUPTED = 130


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Grade notebooks of a character language model homework: sandboxed, with held-out perplexity in lock-step."""
    if version:
        say(f"grader {__version__}")
        raise typer.Exit


def run() -> None:
    """Run a command; every expected error is one sentence on standard error and the exit code of its kind."""
    try:
        code = app(standalone_mode=False) or 0
    except Interrupted:
        print("grader: interrupted; the same command goes on where it stopped.", file=sys.stderr)
        code = INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        print("grader: interrupted before anything was graded.", file=sys.stderr)
        code = INTERRUPTED
    except NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        code = 2
    except ClickException as error:
        print(f"grader: {error.format_message()} (`grader --help` lists commands and options)", file=sys.stderr)
        code = 2
    except GraderError as error:
        print(f"grader: {error}", file=sys.stderr)
        code = error.exit_code
    except OSError as error:
        print(f"grader: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        code = 3
    sys.exit(code)
