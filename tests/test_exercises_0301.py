"""The checks of 03/01's exercises name the mistake: its solutions are right, and each planted mistake is told by name."""

import json
import re
from pathlib import Path

import pytest
import torch

from rlhf_lib import exercises

NOTEBOOK = Path(__file__).resolve().parent.parent / "03_ppo_alignment" / "01_rollouts_and_kl.ipynb"
CELLS = [(c["cell_type"], "".join(c["source"])) for c in json.loads(NOTEBOOK.read_text())["cells"]]
NAMES = ("response_logprobs", "kl_z", "k3_loss_gradient")


def function(name: str, source: str):
    namespace = {"torch": torch}
    exec(source, namespace)
    return namespace[name]


def solution(name: str) -> str:
    """The text of the folded solution."""
    folded = (text for kind, text in CELLS if kind == "markdown" and "<summary>Solution</summary>" in text)
    return next(
        code for text in folded for code in re.findall(r"```python\n(.*?)```", text, re.S) if f"def {name}(" in code
    )


def check(name: str, source: str) -> str:
    return getattr(exercises, f"check_{name}")(function(name, source))


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_is_right_and_the_stub_waits(name):
    assert check(name, solution(name)) == "Right."
    stub = next(text for kind, text in CELLS if kind == "code" and text.startswith(f"def {name}("))
    assert check(name, stub).startswith("Your turn")
    assert ("code", f"print(exercises.check_{name}({name}))") in CELLS


MISTAKES = [
    ("response_logprobs", "prompt_length - 1 : -1", "prompt_length:", "shift is forgotten"),
    ("response_logprobs", "prompt_length - 1 : -1", "prompt_length - 2 : -2", "one column too wide"),
    ("response_logprobs", " / temperature", "", "temperature is forgotten"),
    ("response_logprobs", " / temperature", " * temperature", "Divide them"),
    ("response_logprobs", "log_softmax(-1)", "softmax(-1)", "logarithm is missing"),
    ("response_logprobs", "before.log_softmax(-1)", "before", "log_softmax is missing"),
    ("kl_z", "torch.where(mask, logprobs - ref_logprobs - exact_kl, 0)", "logprobs - ref_logprobs - exact_kl", "mask is missing"),
    ("kl_z", "difference.sum(-1)", "difference[mask]", "responses are independent"),
    ("kl_z", "logprobs - ref_logprobs - exact_kl", "exact_kl - logprobs + ref_logprobs", "sign is flipped"),
    ("kl_z", " - exact_kl", "", "compared with 0"),
    ("kl_z", " / len(gap) ** (1 / 2)", "", "standard error"),
    ("kl_z", "difference.sum(-1)", "difference.sum(-1) / mask.sum(-1)", "Sum them"),
    ("k3_loss_gradient", "logp.detach().exp()", "logp.exp()", "detach"),
    ("k3_loss_gradient", "logp.detach().exp() * k3", "logp.exp() * k3.detach()", "k3 in the reward"),
    ("k3_loss_gradient", "(logq - logp).exp() - 1 - (logq - logp)", "(logp - logq).exp() - 1 - (logp - logq)", "upside down"),
    ("k3_loss_gradient", "logp.detach().exp() * k3", "logq.exp() * k3", "weights are those of the reference"),
    ("k3_loss_gradient", "return torch", "return -torch", "sign is flipped"),
]  # fmt: skip


@pytest.mark.parametrize("name, original, patched, words", MISTAKES, ids=[f"{m[0]}: {m[3]}" for m in MISTAKES])
def test_a_planted_mistake_is_named(name, original, patched, words):
    source = solution(name)
    assert original in source
    message = check(name, source.replace(original, patched))
    assert message.startswith("Not yet") and words in message, message
