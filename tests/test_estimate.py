"""The estimate equals what runs need, counts what published models have, and never loads a weight."""

import json
from pathlib import Path

import memory
import pytest
import torch
from transformers import GPT2LMHeadModel

from rlhf_lib import estimate, lora, models
from rlhf_lib.__main__ import main
from rlhf_lib.recipes import get_recipe

SMALL = dict(n_embd=64, n_layer=2, vocab_size=2000)
QUICK = {"max_prompt_tokens": 48, "sft.examples": 16, "ppo.updates": 1, "ppo.batch_size": 8, "ppo.micro_batch_size": 2,
         "ppo.exact_kl_every": 1}  # fmt: skip


@pytest.mark.parametrize("stage, method", [("sft", "full"), ("reward", "lora"), ("ppo", "full")])
def test_the_estimate_is_what_the_allocator_counts(stage, method):
    model = SMALL | {"n_layer": 1} if stage == "ppo" else SMALL
    row = memory.compare((stage, method, "no", model, QUICK))
    assert row["ratio"] == pytest.approx(1, abs=0.15), row


def test_the_committed_comparison_is_within_15_percent():
    file = Path(__file__).parent.parent / "outputs" / "evaluation" / "tiny" / "memory.json"
    rows = json.loads(file.read_text())["rows"]
    assert {(row["stage"], row["method"]) for row in rows} >= {
        (s, m) for s in estimate.STAGES for m in ("full", "lora")
    }
    assert all(abs(row["estimated"] / row["measured"] - 1) <= 0.15 for row in rows)


@pytest.mark.parametrize(
    "name, parameters",  # as their model cards and papers say; the PAD that is added has a row of its own
    [("openai-community/gpt2", 124_439_808 + 768), ("openai-community/gpt2-medium", 354_823_168 + 1024),
     ("EleutherAI/pythia-1b-deduped", 1_011_781_632), ("meta-llama/Llama-3.2-1B", 1_235_814_400 + 2048)],
)  # fmt: skip
def test_known_architectures_have_their_published_size(name, parameters):
    recipe = get_recipe("tiny", overrides={"policy": name})
    with estimate.FakeTensorMode(), estimate.Meter() as meter:
        policy = estimate._Run(recipe, meter, "no", gpu=True).policy()
        assert estimate._count(policy) == parameters
        assert meter.now["weights"] >= 4 * parameters


def test_a_meter_counts_what_lives_once_and_remembers_the_peak():
    with estimate.Meter() as meter:
        a = torch.zeros(1000)
        b = a.view(10, 100)  # the same storage
        assert meter.total == 4000
        c = a + 1
        del c
        assert meter.total == 4000 and sum(meter.peak.values()) == 8000
        del a
        assert meter.total == 4000  # b still holds it
        meter.label(b, "cache")
        assert meter.now["cache"] == 4000 and meter.now["activations"] == 0
        meter.reset()
        del b
        assert meter.total == 0 and sum(meter.peak.values()) == 4000


def test_parts_are_those_of_adamw_and_of_the_trained_weights():
    recipe = get_recipe("tiny")
    e = estimate.estimate(recipe, "sft")
    policy = models.load_policy("tiny:small")
    models.freeze_embeddings(policy)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    row = e["models"]["policy"]
    assert row["parameters"] == sum(p.numel() for p in policy.parameters()) and row["trained"] == trained
    train = e["phases"]["train"]
    assert train["optimizer"] == 8 * trained and train["gradients"] <= 4 * trained
    assert train["weights"] == row["bytes"] and e["peak"] == max(p["total"] for p in e["phases"].values())


@pytest.mark.parametrize("method, models", [("full", {"policy", "ref_policy", "reward_model", "value_model"}),
                                            ("lora", {"policy", "reward_model", "value_model"})])  # fmt: skip
def test_resident_models_are_those_of_the_stage(tmp_path, method, models):
    """Full PPO holds policy, reference, reward model and critic; with an adapter the reference costs nothing."""
    recipe = memory.recipe_for(tmp_path, "ppo", method, "no", dict(n_embd=64, n_layer=1, vocab_size=1000))
    e = estimate.estimate(recipe, "ppo")
    assert set(e["models"]) == models
    assert e["phases"]["train"]["weights"] == sum(m["bytes"] for m in e["models"].values())


def test_a_4_bit_model_weighs_what_bitsandbytes_keeps(tmp_path):
    recipe = memory.recipe_for(tmp_path, "sft", "qlora", "no", dict(n_embd=64, n_layer=2, vocab_size=300))
    row = estimate.estimate(recipe, "sft")["models"]["policy"]
    policy = GPT2LMHeadModel(estimate.config_of(recipe.policy)[0])
    policy.resize_token_embeddings(len(models.load_tokenizer(recipe.policy)))
    lora.adapt(policy, recipe.lora, "qlora")
    real = sum(p.numel() * p.element_size() for p in policy.parameters())
    real += sum(x.numel() * x.element_size() for p in policy.parameters() for x in lora.scale_tensors(p))
    assert row["bytes"] == pytest.approx(real, rel=0.001)


def test_smaller_micro_batches_frozen_weights_and_a_gpu_need_less(tmp_path):
    def peak(method="full", gpu=False, **changes):
        recipe = memory.recipe_for(tmp_path, "sft", method, "no", SMALL | {"n_layer": 1}, changes)
        return estimate.estimate(recipe, "sft", gpu)["phases"]["train"]

    usual, less = peak(), peak("lora", **{"sft.micro_batch_size": 1})
    assert less["activations"] < 0.3 * usual["activations"] and less["optimizer"] < 0.2 * usual["optimizer"]
    assert peak(gpu=True)["activations"] < usual["activations"]  # no (T, T) weights


def test_work_is_counted_as_the_loops_count_it():
    recipe = get_recipe("tiny")
    assert estimate.work(recipe, "sft")["steps"] == 6000 // 32
    assert estimate.work(recipe, "reward")["steps"] == (1200 + 2000 + 500) // 8
    assert estimate.work(recipe, "ppo") == {"steps": 80 * 4, "tokens": 80 * 64 * 240, "generated": 80 * 64 * 48}


def test_a_dry_run_needs_no_weights_no_network_and_names_hours_for_a_measured_speed_only(capsys, monkeypatch):
    monkeypatch.setattr(models, "load_policy", None)
    arguments = ["sft", "--recipe", "tiny", "--set", "policy=openai-community/gpt2", "--dry-run", "--gpu"]
    assert main([*arguments, "--tokens-per-second", "1000"]) == 0
    out, err = capsys.readouterr()
    (found,) = json.loads(out)["estimates"]
    assert json.loads(out)["policy"] == "openai-community/gpt2" and found["stage"] == "sft"
    assert "124,440,576" in err and "peak: " in err
    assert f"at most {6000 // 32 * 32 * 240 / 1000 / 3600:.2f} hours" in err
    assert "hours" not in estimate.report(found)


def test_a_dry_run_of_a_missing_model_is_one_sentence(capsys):
    assert main(["ppo", "--recipe", "tiny", "--set", "policy=/no/such", "--dry-run"]) == 2
    assert "cannot load '/no/such'" in capsys.readouterr().err
    assert main(["ppo", "--recipe", "tiny", "--gpu"]) == 2
    assert "--gpu does nothing without --dry-run" in capsys.readouterr().err
