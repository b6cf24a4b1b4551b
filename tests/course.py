"""Execute notebooks top to bottom, each on a fresh kernel, and print the comparison they end in.

`python tests/course.py NOTEBOOK ...`; with --save the outputs are stored in the notebooks (for committing them).
"""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import rlhf_lib  # noqa: F401
from rlhf_lib.reporting import comparison_table
from rlhf_lib.runtime import Paths, progress, write_json

ROOT = Path(__file__).resolve().parent.parent


def execute(path: Path, save: bool) -> float:
    """Run one notebook in its own folder; returns seconds."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    start = time.time()
    client = NotebookClient(
        notebook, timeout=3600, kernel_name="python3", extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    client.execute()
    if save:
        tidy(notebook)
        nbformat.write(notebook, path)
    return time.time() - start


def tidy(notebook) -> None:
    """Drop what differs from run to run without meaning anything."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
        for output in cell.get("outputs", []):
            if "text" in output:
                output.text = re.sub(re.escape(str(ROOT)) + "/?", "", output.text)
        cell["outputs"] = merged(cell.outputs) if cell.cell_type == "code" else None
        if cell["outputs"] is None:
            del cell["outputs"]


def merged(outputs: list) -> list:
    """Neighbouring blocks of the same stream as one."""
    kept = []
    for output in outputs:
        if (
            kept
            and output.output_type == "stream"
            and kept[-1].output_type == "stream"
            and kept[-1].name == output.name
        ):
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def note_seconds(seconds: dict, evaluation: Path) -> None:
    """Keep the measured durations and write them into the README's table."""
    file = evaluation / "notebook_seconds.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    write_json(file, dict(sorted((known | seconds).items())))
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, value in seconds.items():
        text = re.sub(rf"(\({re.escape(name)}\) \| )[^|]*(\|)", rf"\g<1>{value / 60:.1f} \2", text)
    readme.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    bar = progress(args.notebooks, desc="Course", unit="notebook")
    os.environ["RLHF_QUIET"] = "1"  # for the kernels: no bars in stored outputs
    total = 0.0
    for path in bar:
        bar.set_postfix_str(path.name)
        seconds = execute(path, args.save)
        total += seconds
        if args.save and os.environ.get("RLHF_SCALE", "full") == "full":
            name = path.resolve().relative_to(ROOT).as_posix()
            note_seconds({name: round(seconds)}, Paths("tiny").evaluation)
        print(f"{seconds:6.0f} s  {path}", flush=True)
    print(f"{total:6.0f} s  in all\n")
    paths = Paths(os.environ.get("RLHF_RECIPE", "tiny"), os.environ.get("RLHF_SCALE", "full"))
    if (paths.evaluation / "evaluation.json").exists():
        print(comparison_table(json.loads((paths.evaluation / "evaluation.json").read_text())))
    print(f"\nPlots: {paths.plots}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
