"""Figures show what they are given."""

import csv

import torch

from rlhf_lib import reporting, rollout


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
