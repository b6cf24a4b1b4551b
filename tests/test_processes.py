"""Two processes give the numbers of one, killed and resumed or not; shares are weighted by what they count."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from rlhf_lib import __main__, doctor, models, ppo, processes, reward, sft, stages
from rlhf_lib.recipes import get_recipe
from rlhf_lib.runtime import ROOT, MetricLog, Paths, TrainingState, UsageError, make_accelerator, progress, write_json

CONFIGS = ROOT / "rlhf_lib" / "accelerate"
SETTINGS = {  # five steps a stage, whose batches do not divide by two; one validation prompt, of which a process gets none
    "precision": "no", "max_prompt_tokens": 64, "max_new_tokens": 16,
    "sft.examples": 75, "sft.batch_size": 15, "sft.validation_examples": 9, "sft.lr": 3e-4,
    "reward.prompts": 8, "reward.edited_prompts": 19, "reward.batch_prompts": 7, "reward.validation_prompts": 5, "reward.lr": 1e-4,
    "ppo.updates": 5, "ppo.batch_size": 10, "ppo.minibatches": 2, "ppo.eval_prompts": 1, "ppo.exact_kl_every": 2, "ppo.lr": 1e-4,
    "eval.prompts": 4, "eval.n_boot": 10,
}  # fmt: skip
STAGES = ("sft", "reward", "ppo")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run of one process."""
    paths = Paths("tiny", "smoke", tmp_path_factory.mktemp("one"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "run_doctor", lambda *_: doctor.Report([]))
        for train in (stages.train_sft, stages.train_reward, stages.train_ppo):
            train(get_recipe("tiny", "smoke", overrides=SETTINGS), paths)
    return paths


def launch(program: list, stage: str, paths: Paths, *flags: str) -> list[str]:
    """The command that starts two processes."""
    settings = [f"{key}={value}" for key, value in SETTINGS.items()]
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--config_file", CONFIGS / "two_cpu_processes.yaml",
               *program, stage, "--recipe", "tiny", "--scale", "smoke", "--output-dir", paths.output_dir, *flags,
               "--set", *settings]  # fmt: skip
    return list(map(str, command))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The same of two processes, the second of which is killed in PPO, and what they said; then PPO is resumed."""
    paths = Paths("tiny", "smoke", tmp_path_factory.mktemp("two"))
    metrics, said = paths.checkpoints / "ppo_metrics.jsonl", paths.output_dir / "said"
    with open(said, "w") as file:
        launcher = subprocess.Popen(launch([ROOT / "tests" / "without_doctor.py"], "run", paths), stdout=file, stderr=file)
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        assert launcher.poll() is None, said.read_text()
        time.sleep(0.01)
    workers = {p.environ().get("RANK"): p for p in psutil.Process(launcher.pid).children()}
    workers["1"].kill()
    assert not psutil.wait_procs(workers.values(), timeout=30)[1], "a process went on without the other"
    assert launcher.wait() == 1
    assert (paths.checkpoints / "ppo_state.pt").exists() and not (paths.checkpoints / "ppo").exists()
    resumed = subprocess.run(launch(["-m", "rlhf_lib"], "ppo", paths, "--resume"), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    return paths, said.read_text() + resumed.stdout


def logged(paths: Paths, stage: str) -> list[dict]:
    with open(paths.evaluation / f"{stage}_metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_killed_and_resumed_log_the_numbers_of_one(one, two, stage):
    rows, expected = logged(two[0], stage), logged(one, stage)
    assert [row["step"] for row in expected][-5:] == ["1", "2", "3", "4", "5"]
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - {"eps"}:
            assert (row[key] == "") == (other[key] == "")
            if row[key]:
                assert float(row[key]) == pytest.approx(float(other[key]), rel=1e-5, abs=1e-5), (row["step"], key)


def test_only_the_main_process_speaks_and_writes(two):
    paths, said = two
    assert said.count("sft: your own sft checkpoint") == 3  # read by reward, by ppo and by the resumed ppo
    assert said.count("update 2: ") == len(set(line for line in said.splitlines() if line.startswith("update 2: ")))
    assert not [p for p in paths.output_dir.rglob(".*") if p.name.endswith((".new", ".old"))]
    assert [json.loads(line)["step"] for line in open_lines(paths.checkpoints / "sft_metrics.jsonl")] == [0, 1, 2, 3, 4, 5]


def open_lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
