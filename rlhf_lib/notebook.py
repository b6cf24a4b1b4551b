"""What every notebook of the course does in the same way: start, speak in computed sentences, show tokens."""

import os
import platform
import sys
import time

import torch
import transformers
from IPython.display import Markdown, display

from rlhf_lib.recipes import Recipe, get_recipe
from rlhf_lib.runtime import Paths, mixed_precision, set_seed


def start(recipe_name: str) -> tuple[Recipe, Paths]:
    """The recipe at the scale of RLHF_SCALE ("full" unless set) and its paths; prints what the numbers depend on."""
    recipe = get_recipe(recipe_name, os.environ.get("RLHF_SCALE", "full"), int(os.environ.get("RLHF_SEED", 1)))
    set_seed(recipe.seed)
    device = "GPU" if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    print(f"recipe {recipe.name}, scale {recipe.scale}, seed {recipe.seed}")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"{device}, training in {'bf16' if mixed_precision() == 'bf16' else 'fp32'}")
    return recipe, Paths(recipe.name, recipe.scale)


def say(text: str) -> None:
    """Show Markdown, for sentences whose numbers a cell computes."""
    display(Markdown(text))


def spent(started: float) -> str:
    """Seconds since `started` (of time.time()), and this process's peak memory where the system tells it."""
    seconds = f"{time.time() - started:.0f} s"
    try:
        import resource
    except ImportError:  # Windows
        return seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    return f"{seconds}, peak memory {peak:.1f} GiB"


def token_table(tokenizer, ids, **columns) -> str:
    """One line a token: its position, its text, and one column for each keyword (a list or tensor as long as `ids`)."""
    table = [["", "token", *columns]]
    for position, token in enumerate(ids):
        text = repr(tokenizer.decode([int(token)]))
        table.append([str(position), text, *(_cell(values[position]) for values in columns.values())])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    aligned = [
        [cell.ljust(w) if i == 1 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in table
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def _cell(value) -> str:
    value = value.item() if isinstance(value, torch.Tensor) else value
    if isinstance(value, bool):
        return "yes" if value else "·"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
