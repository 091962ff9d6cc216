"""Commands as a user runs them."""

from __future__ import annotations

from typer.testing import CliRunner

from scalloy.cli import main


def run(*args):
    return CliRunner().invoke(main.app, [str(a) for a in args])


def ok(*args):
    done = run(*args)
    assert done.exit_code == 0, done.output
    return done.output


def error(*args, code=1):
    done = run(*args)
    assert done.exit_code == code, done.output
    if code == 1:  # one line, and no traceback
        assert done.stderr.startswith("error: "), done.stderr
        assert done.stderr.count("\n") == 1
    return done.stderr
