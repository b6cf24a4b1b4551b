"""Bad usage ends in one sentence on stderr and exit code 2, a failure in exit code 1, and nothing saved is lost."""

import json

import pytest

from rlhf_lib.__main__ import main
from rlhf_lib.runtime import TrainingFailure


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["sft", "--recipe", "nope"], ["unknown recipe 'nope'", "tiny"]),
        (["fly", "--recipe", "tiny"], ["unknown stage 'fly'", "sft"]),
        (["sft", "--recipe", "tiny", "--scale", "huge"], ["unknown scale 'huge'", "smoke"]),
        (["ppo", "--recipe", "tiny", "--set", "ppo.klcoef=1"], ["unknown setting 'ppo.klcoef'", "kl_coef"]),
        (["ppo", "--recipe", "tiny", "--set", "ppo.kl_coef=lots"], ["ppo.kl_coef=lots", "float"]),
        (["ppo", "--recipe", "tiny", "--set", "ppo.updates=1.5"], ["ppo.updates", "int"]),
        (["ppo", "--recipe", "tiny", "--set", "ppo.kl_coef"], ["has no value"]),
        (["ppo", "--recipe", "tiny", "--set", "ppo=1"], ["does not name a single value"]),
        (["sft", "--recipe", "tiny", "--set", "policy=tiny:huge"], ["tiny:huge", "tiny:small"]),
        (["sft", "--recipe", "tiny", "--scale", "smoke", "--set", "sft.examples=0"], ["sft.examples=0", "above 0"]),
        (["evaluate", "--recipe", "tiny", "--scale", "smoke", "--set", "eval.split=dev"], ["split=dev", "test"]),
        (
            ["evaluate", "--recipe", "tiny", "--scale", "smoke"],
            ["ppo checkpoint is missing", "python -m rlhf_lib ppo --recipe tiny --scale smoke --seed 1 --output-dir"],
        ),
        (["ppo", "--recipe", "tiny", "--scale", "smoke", "--set", "ppo.minibatches=3"], ["does not split", "multiple"]),
        (
            ["sft", "--recipe", "tiny", "--scale", "smoke", "--set", "policy=/no/such"],
            ["cannot load '/no/such'", "check"],
        ),
        (["run", "--recipe", "tiny", "--set", "reward.samples_per_prompt=1"], ["samples_per_prompt=1", "at least 2"]),
        (["run", "--recipe", "tiny", "--set", "ppo.kl_coef=-1"], ["ppo.kl_coef=-1", "0 or more"]),
        (["sft", "--recipe", "tiny", "--set", "sft.method=dora"], ["sft.method=dora", "full or lora or qlora"]),
        (
            ["sft", "--recipe", "tiny", "--scale", "smoke", "--set", "sft.method=lora", "lora.target_modules=q_proj"],
            ["no linear layer of the model's body is called 'q_proj'", "c_attn"],
        ),
        (["sft", "--recipe", "tiny", "--seed", "9" * 30], ["seed", "at most"]),
        (["results", "--recipe", "tiny", "--scale", "smoke", "--seeds", "11"], ["at least two"]),
        (["results", "--recipe", "tiny", "--scale", "smoke", "--seeds", "-1", "2"], ["seed=-1"]),
        (["results", "--recipe", "tiny", "--scale", "smoke", "--seed", "3"], ["--seeds"]),
        (["reward", "--recipe", "tiny", "--scale", "smoke", "--set", "max_new_tokens=250"], ["do not fit", "context"]),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(capsys, tmp_path, arguments, words):
    code, _, err = run(capsys, *arguments, "--output-dir", str(tmp_path))
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["sft"], ["required", "--recipe"]),
        (["sft", "--recipe", "tiny", "--sed", "3", "--speed"], ["--speed"]),
        (["sft", "--recipe", "tiny", "--seed", "three"], ["--seed", "three"]),
        (["ppo", "--recipe", "tiny", "--seeds", "1", "2"], ["--seeds does nothing for ppo", "results"]),
        (["evaluate", "--recipe", "tiny", "--resume"], ["--resume does nothing for evaluate", "ppo"]),
        (["results", "--recipe", "tiny", "--wandb"], ["--wandb does nothing for results"]),
        (["results", "--recipe", "tiny", "--tensorboard"], ["--tensorboard does nothing for results"]),
    ],
)
def test_wrong_flags_are_wrong_usage(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and not out
    for word in words:
        assert word in err


def test_dry_run_prints_the_resolved_recipe(capsys):
    code, out, _ = run(
        capsys, "ppo", "--recipe", "tiny", "--set", "ppo.kl_coef=0.2", "sft.epochs=3", "--seed", "5", "--dry-run"
    )
    resolved = json.loads(out)
    assert code == 0 and resolved["ppo"]["kl_coef"] == 0.2 and resolved["sft"]["epochs"] == 3 and resolved["seed"] == 5


def test_wandb_that_is_not_installed_stops_before_anything_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, err = run(
        capsys, "sft", "--recipe", "tiny", "--scale", "smoke", "--wandb", "--output-dir", str(tmp_path)
    )
    assert code == 2 and not out and err.startswith("error: --wandb needs the package wandb") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_training_that_diverges_names_step_metric_and_causes_and_loses_nothing(capsys, tmp_path):
    arguments = ["sft", "--recipe", "tiny", "--scale", "smoke", "--output-dir", str(tmp_path)]
    assert run(capsys, *arguments)[0] == 0
    folder = tmp_path / "smoke" / "checkpoints" / "tiny" / "sft"
    before = (folder / "model.safetensors").read_bytes()
    code, _, err = run(capsys, *arguments, "--set", "sft.lr=1e30", "precision=no")
    assert code == 1 and err.count("\n") == 1
    assert "diverged at step" in err and "loss is nan" in err and "learning rate" in err
    assert (folder / "model.safetensors").read_bytes() == before


def test_resume_says_what_there_is_to_resume(capsys, tmp_path):
    arguments = ["sft", "--recipe", "tiny", "--scale", "smoke", "--output-dir", str(tmp_path), "--resume"]
    assert "nothing to resume" in run(capsys, *arguments)[1]
    assert "already finished" in run(capsys, *arguments)[1]
    assert "nothing to resume" in run(capsys, *arguments, "--set", "sft.lr=1e-4")[1]


def test_the_doctor_stage_passes_on_the_default_recipe_and_fails_loudly(capsys, tmp_path, monkeypatch):
    arguments = ["doctor", "--recipe", "tiny", "--scale", "smoke", "--output-dir", str(tmp_path)]
    code, out, _ = run(capsys, *arguments, "--set", "policy=tiny:small")
    assert code == 0 and "FAIL" not in out
    code, out, _ = run(capsys, *arguments, "--set", "ppo.kl_coef=0.0")
    assert code == 1 and "FAIL" in out


def test_an_unforeseen_error_is_one_line_and_exit_code_1(capsys, tmp_path, monkeypatch):
    from rlhf_lib import stages

    def fail(*_):
        raise OSError("No space left\non device")

    monkeypatch.setattr(stages, "train_sft", fail)
    code, _, err = run(capsys, "sft", "--recipe", "tiny", "--scale", "smoke", "--output-dir", str(tmp_path))
    assert code == 1 and err == "error: OSError: No space left on device\n"

    def diverge(*_):
        raise TrainingFailure("PPO stopped at update 3: objective/kl = 900")

    monkeypatch.setattr(stages, "train_sft", diverge)
    assert run(capsys, "sft", "--recipe", "tiny", "--scale", "smoke", "--output-dir", str(tmp_path))[0] == 1
