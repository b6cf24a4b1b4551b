"""Figures show what they are given."""

import csv
import json
from pathlib import Path

import torch

from rlhf_lib import reporting, rollout

ROOT = Path(__file__).resolve().parent.parent


def test_the_xray_tells_counted_tokens_from_those_behind_the_end(policy, tokenizer, tmp_path):
    batch = rollout.generate(policy, tokenizer, ["one post TL;DR:", "another, longer post TL;DR:"], 6, seed=3)
    batch.response_mask[0, 3:] = False
    keys = ("logprobs", "ref_logprobs", "values", "entropy", "rewards", "advantages", "returns")
    record = {key: torch.randn(batch.response_mask.shape) for key in keys}
    reporting.plot_xray(tokenizer, batch, record, 0, tmp_path, pads=2)
    assert (tmp_path / "xray.png").stat().st_size > 0
    with open(tmp_path / "xray.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["counted"] for row in rows] == ["1", "1", "1", "0", "0"]
    k1 = record["logprobs"][0] - record["ref_logprobs"][0]
    torch.testing.assert_close(torch.tensor([float(row["KL (k1)"]) for row in rows]), k1[:5])
    for name, key in (("reward", "rewards"), ("value", "values"), ("advantage", "advantages"), ("return", "returns")):
        torch.testing.assert_close(torch.tensor([float(row[name]) for row in rows]), record[key][0, :5])


def test_the_readme_shows_what_the_committed_files_hold():
    evaluation, readme = ROOT / "outputs" / "evaluation" / "tiny", (ROOT / "README.md").read_text()
    summary = json.loads((evaluation / "results.json").read_text())
    with open(evaluation / f"seed_{summary['seeds'][0]}" / "samples.csv", newline="") as file:
        samples = list(csv.DictReader(file))
    assert reporting.readme_with(readme, "results", reporting.results_table(summary)) == readme
    assert reporting.readme_with(readme, "samples", reporting.samples_table(samples)) == readme


def test_text_of_a_model_cannot_break_the_table_of_samples():
    row = {"prompt": "a <b>\nTL;DR:"} | {stage: "x | y\nz <i>" for stage in reporting.NAMES}
    row |= {f"{stage}_gold": "-0.5" for stage in reporting.NAMES}
    table = reporting.samples_table([row, row], posts=1)
    assert table.split("\n") == ["> a &lt;b&gt;", "> TL;DR:", "", "| | gold | summary |", "|---|---|---|"] + [
        f"| {name} | -0.50 | x &#124; y z &lt;i&gt; |" for name in reporting.NAMES.values()
    ]
