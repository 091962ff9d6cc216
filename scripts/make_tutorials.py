"""Notebooks of `tutorials/` from the texts in `scripts/tutorials/`, run and stored with their outputs.

    make tutorials                                            all of them
    python scripts/make_tutorials.py quick_start clusters     some

A text is Python with cells in percent format: `# %%` begins a cell of code, `# %% [markdown]` one of prose,
whose lines are comments. What is written to stderr (progress bars, logs) is not stored.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
TEXTS, NOTEBOOKS = ROOT / "scripts" / "tutorials", ROOT / "tutorials"
MARK = re.compile(r"^# %%(.*)$", flags=re.M)
LOGS = r"^\r?(Monitored metric|\x1b\[34mINFO|DE\.\.\.:).*\n?"


def cells(text: str) -> list[tuple[str, str]]:
    """Kind (`"code"` or `"markdown"`) and source of each cell."""
    parts = MARK.split(text)[1:]
    out = []
    for head, body in zip(parts[::2], parts[1::2], strict=True):
        if "[markdown]" in head:
            out.append(("markdown", re.sub(r"^# ?", "", body.strip("\n"), flags=re.M)))
        else:
            out.append(("code", body.strip("\n")))
    return out


def make(name: str) -> None:
    """Write one notebook and run it."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook()
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    for i, (kind, source) in enumerate(cells((TEXTS / f"{name}.py").read_text())):
        new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        notebook.cells.append(new(source, id=f"cell-{i}"))
    begun = time.perf_counter()
    with TemporaryDirectory() as folder:  # for what a notebook saves
        where = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=900, record_timing=False, resources=where).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in map(without_logs, cell.outputs) if kept(o)]
    path = NOTEBOOKS / f"{name}.ipynb"
    nbformat.write(notebook, path)
    size = path.stat().st_size / 1e6
    print(f"{path.relative_to(ROOT)}: {time.perf_counter() - begun:.0f} s, {size:.2f} MB", flush=True)


def without_logs(output: dict) -> dict:
    """Early stopping and scvi-tools write to stdout."""
    if output.get("name") == "stdout":
        output["text"] = re.sub(LOGS, "", output["text"], flags=re.M).strip("\n")
    return output


def kept(output: dict) -> bool:
    """Not logs, widgets of progress bars, and what the last line of a picture returns."""
    data = output.get("data", {})
    if (
        output.get("name") == "stderr"
        or output.get("text") == ""
        or "application/vnd.jupyter.widget-view+json" in data
    ):
        return False
    return not re.match(r"(array\(|\[)?\[?<(Axes|matplotlib)|\[?Text\(", data.get("text/plain", ""))


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(p.stem for p in TEXTS.glob("*.py")):
        make(name)
