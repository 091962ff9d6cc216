"""Arguments of the benchmarks, and things of users' own on the command line."""

from __future__ import annotations

import sys

import pandas as pd
import pytest
from typer.testing import CliRunner

import scalloy as sa
from scalloy.cli import main


def run(*args):
    return CliRunner().invoke(main.app, [str(a) for a in args])


def test_one_data_set_for_labels_under_a_shift():
    done = run("benchmark", "labels", "--task", "shift", "--data", "kang", "--data", "kang_subset")
    assert done.exit_code == 1
    assert done.stderr == (
        "error: `--data` was given 2 times (kang, kang_subset), but `--task shift` takes one data set. "
        "Pass one of them, or `--task few`, which takes several.\n"
    )


@pytest.mark.parametrize("given", ["donor_1015", "=donor_1015", ""])
def test_unseen_cells_are_a_column_and_a_value(given):
    done = run("benchmark", "transfer", "kang_subset", "--unseen", given)
    assert done.exit_code == 2
    said = " ".join(done.stderr.replace("│", " ").split())
    assert f"--unseen {given!r} is not of the form NAME=VALUE, such as --unseen batch=donor_1015." in said


def test_unseen_cells_are_of_a_column_that_is_there():
    done = run("benchmark", "transfer", "kang_subset", "--unseen", "donor=donor_1015")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: `unseen='donor'` is not known. Pass one of: ")


def test_every_judge_is_in_the_help_and_can_be_asked(tmp_path):
    from scalloy.benchmark.transfer import JUDGES

    said = " ".join(run("benchmark", "transfer", "--help").stdout.replace("│", " ").split())
    assert not [name for name in JUDGES if name not in said]
    out = tmp_path / "table.csv"
    asked = ("kang_subset", "--types", "B cells", "--genes", 60, "--model", "no change", "--judge", "systema")
    done = run("benchmark", "transfer", *asked, "--out", out)
    assert done.exit_code == 0, done.output
    assert pd.read_csv(out)["method"].tolist() == ["half of the cells", "no change"]


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("kind", ["file", "module"])
def test_a_baseline_and_a_metric_of_a_file(tmp_path, monkeypatch, kind):
    path = tmp_path / f"own_{kind}.py"
    path.write_text(
        "import scalloy as sa\n"
        "sa.baselines.register('half', lambda control, shift, to: 0.5 * shift.mean(0))\n"
        "sa.metrics.register('bias', lambda predicted, truth: (predicted - truth).mean())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    out, given = tmp_path / "table.csv", path if kind == "file" else path.stem
    asked = ("kang_subset", "--types", "B cells", "--genes", 60, "--model", "half", "--out", out)
    done = run("--import", given, "benchmark", "transfer", *asked)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out).set_index("method")
    assert 0 < table.loc["half", "skill"] < 1
    assert abs(table.loc["half", "bias"]) > 0
    assert "half" in sa.baselines.METHODS
    monkeypatch.delitem(sys.modules, path.stem)
    again = run("--import", given, "benchmark", "transfer", *asked)
    assert again.stderr.startswith("error: 'half' is registered already. Use another name")


def test_what_is_not_there_cannot_be_imported(tmp_path):
    done = run("--import", tmp_path / "nothing.py", "demo")
    assert (done.exit_code, done.stderr) == (1, f"error: There is no file `{tmp_path / 'nothing.py'}`.\n")
    done = run("--import", "no_such_module", "demo")
    assert (done.exit_code, done.stderr) == (1, "error: No module named 'no_such_module'\n")
