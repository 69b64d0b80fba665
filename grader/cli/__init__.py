"""The command line: each command reads its arguments, calls one layer below and turns errors into one sentence."""


def main() -> None:
    """The command `grader`. Worker processes import this module once more, hence nothing but what they need."""
    from grader.cli.streams import make_safe

    make_safe()
    from grader.cli.root import run

    run()
