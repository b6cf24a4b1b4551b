"""Every recipe for real data runs all its stages, offline, on its own architecture at reduced width."""

import csv
import json
import math
import re

import pytest
import torch
from huggingface_hub import constants
from real_data import posts_of, write_data_sets, write_model, write_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_lib import data, demo, estimate, models, reward
from rlhf_lib.__main__ import main
from rlhf_lib.recipes import RECIPES, get_recipe
from rlhf_lib.runtime import ROOT, Paths, UsageError

FAMILY = {"tldr-pythia-1b": "gpt_neox", "tldr-llama-1b": "llama"}
REAL = [name for name in RECIPES if name != "tiny"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small models gain nothing from a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder with the data sets and a model of each family."""
    folder = tmp_path_factory.mktemp("hub")
    write_data_sets(folder / "data")
    for family in ("gpt2", "gpt_neox", "llama", "deberta"):
        write_model(family, folder / family)
    return folder


@pytest.mark.parametrize("name", REAL)
def test_a_recipe_runs_all_its_stages(name, hub, tmp_path, capsys):
    recipe = RECIPES[name]
    settings = [f"policy={hub / FAMILY.get(name, 'gpt2')}"]
    settings += [f"reward_model={hub / 'deberta'}"] if recipe.reward_model else []
    code = main(["run", "--recipe", name, "--scale", "smoke", "--data-dir", str(hub / "data"), "--output-dir",
                 str(tmp_path), "--set", *settings])  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0, err
    root = tmp_path / "smoke"
    checkpoints, evaluation = root / "checkpoints" / name, root / "evaluation" / name
    sft = "sft" if recipe.sft.method == "full" else f"sft_{recipe.sft.method}"
    for stage in (sft, "ppo"):
        model = AutoModelForCausalLM.from_pretrained(checkpoints / stage)
        assert model.config.model_type == FAMILY.get(name, "gpt2")
    reward_model = AutoModelForSequenceClassification.from_pretrained(checkpoints / "reward")
    assert reward_model.config.num_labels == 1 and math.isfinite(reward_model.config.reward_mean)
    assert reward_model.config.model_type == ("deberta-v2" if recipe.reward_model else model.config.model_type)
    report = json.loads((evaluation / "evaluation.json").read_text())
    assert report["judge"] == "reward model" and set(report["models"]) == {"base", "sft", "ppo"}
    assert "gold" not in report["models"]["ppo"] and 0 <= report["models"]["ppo"]["rougeL"] <= 1
    with open(evaluation / f"{sft}_metrics.csv", newline="") as file:
        losses = [float(row["validation_loss"]) for row in csv.DictReader(file) if row["validation_loss"]]
    assert len(losses) > 1 and losses[-1] < losses[0] == pytest.approx(math.log(1024), abs=0.3)
    assert "shortened" in out and "left out" in out  # the report of the lengths
    if name in ("tldr-gpt2", "alpaca-gpt2-lora"):  # the demo shows what was trained
        overrides = dict(pair.split("=") for pair in settings) | {"data.dir": str(hub / "data")}
        cast = demo.open_checkpoints(get_recipe(name, "smoke", None, overrides), Paths(name, "smoke", tmp_path))
        answers, lens = list(demo.respond(cast, "My boss <b>sings</b>.", 1.0, 4, 1))[-1]
        assert answers.count('class="answer"') == 3 and answers.count("reward model <b>") == 3
        assert "gold" not in answers and "token by token" in lens
        assert ("head of zeros" in lens) == bool(recipe.reward_model)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_packed_responses_score_as_rows_of_their_own(family, hub):
    tokenizer = models.load_tokenizer(hub / family)
    torch.manual_seed(1)
    reward_model = models.new_reward_model(hub / family, tokenizer)
    texts = ["No.", "You should talk to her, and soon.", "Go. " * 9]
    pairs = [{"prompt": prompt, "chosen": a, "rejected": b}
             for prompt in ("My boss left.\n\nTL;DR:", "A longer post about nothing at all.\n\nTL;DR:")
             for a, b in ((texts[0], texts[1]), (texts[2], texts[0]))]  # fmt: skip
    packed = torch.stack(reward.pair_scores(reward_model, tokenizer, pairs, 64))  # (2, N)
    alone = [[models.score_responses(reward_model, tokenizer, [p["prompt"]], [p[key]], max_prompt_tokens=64)[0]
              for p in pairs] for key in ("chosen", "rejected")]  # fmt: skip
    torch.testing.assert_close(packed.detach(), torch.tensor(alone), atol=1e-5, rtol=0)
    assert packed.std() > 1e-3


def test_an_architecture_that_cannot_be_packed_gets_one_row_a_response(hub, monkeypatch):
    tokenizer = models.load_tokenizer(hub / "llama")
    reward_model = models.new_reward_model(hub / "llama", tokenizer)
    pairs = [{"prompt": "Hm.\n\nTL;DR:", "chosen": "Yes, I would.", "rejected": "No."}]
    packed = reward.pair_scores(reward_model, tokenizer, pairs, 64)
    monkeypatch.setattr(reward, "PACKED", ())
    monkeypatch.setattr(reward, "pack", None)
    torch.testing.assert_close(reward.pair_scores(reward_model, tokenizer, pairs, 64), packed, atol=1e-5, rtol=0)


def test_a_reward_model_that_is_not_causal_scores_texts_alone_as_in_batches(hub):
    reward_model, tokenizer = models.load_ready_made(str(hub / "deberta"))
    prompts = [
        "My neighbor sings all night.\n\nTL;DR:",
        "Hm.\n\nTL;DR:",
        "My boss Ann left me alone. " * 12 + "\n\nTL;DR:",
    ]
    answers = ["Move out.", "I do not know what you should do about it, sorry.", "Quit."]
    batched = models.score_responses(reward_model, tokenizer, prompts, answers)
    alone = torch.cat([models.score_responses(reward_model, tokenizer, [p], [a])
                       for p, a in zip(prompts, answers, strict=True)])  # fmt: skip
    torch.testing.assert_close(batched, alone, atol=1e-5, rtol=0)
    assert batched.std() > 1e-3
    inputs = tokenizer(prompts[0], answers[0], return_tensors="pt")
    torch.testing.assert_close(batched[0], reward_model(**inputs).logits[0, 0].detach(), atol=1e-5, rtol=0)
    reward_model.config.reward_mean = 0.25
    shifted = models.score_responses(reward_model, tokenizer, prompts, answers)
    torch.testing.assert_close(shifted, batched - 0.25)


def test_a_long_prompt_of_a_ready_made_model_loses_its_beginning_and_never_the_answer(hub):
    reward_model, tokenizer = models.load_ready_made(str(hub / "deberta"))
    end = " She sings all night.\n\nTL;DR:"
    scores = [models.score_responses(reward_model, tokenizer, [start * 600 + end], [answer])[0].item()
              for start in ("abc ", "abc abc ") for answer in ("Move.", "Stay.")]  # fmt: skip
    assert scores[0] == pytest.approx(scores[2], abs=1e-5) and abs(scores[0] - scores[1]) > 1e-4


def test_a_model_that_is_not_causal_is_never_trained(hub):
    reward_model, tokenizer = models.load_ready_made(str(hub / "deberta"))
    pairs = [{"prompt": "Hm.\n\nTL;DR:", "chosen": "Yes.", "rejected": "No."}]
    with pytest.raises(UsageError, match="only scored, never trained"):
        reward.pair_scores(reward_model, tokenizer, pairs, 64)


@pytest.mark.parametrize(
    "family, pad", [("gpt2", "<|pad|>"), ("gpt_neox", "<|padding|>"), ("llama", "<|finetune_right_pad_id|>")]
)
def test_pad_is_never_eos_and_is_a_token_that_the_family_left_unused(family, pad, hub):
    tokenizer = models.load_tokenizer(hub / family)
    assert tokenizer.pad_token == pad and tokenizer.pad_token_id != tokenizer.eos_token_id
    policies = [models.load_policy(hub / family, tokenizer) for _ in range(2)]
    for a, b in zip(*(p.parameters() for p in policies), strict=True):  # a new row is no random one
        torch.testing.assert_close(a, b, atol=0, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_pad_that_the_vocabulary_lacks_is_the_mean_of_the_other_rows(tied, hub, tmp_path):
    """GPT-2's embeddings end with EOS: the new row must not be a random one, or no two loads would agree."""
    tokenizer = models.load_tokenizer(hub / "gpt2")
    small = AutoModelForCausalLM.from_pretrained(hub / "gpt2", tie_word_embeddings=tied)
    small.resize_token_embeddings(len(tokenizer) - 1)
    small.save_pretrained(tmp_path)
    policy = models.load_policy(tmp_path, tokenizer)
    for module in (policy.get_input_embeddings(), policy.get_output_embeddings()):
        assert len(module.weight) == len(tokenizer)
        torch.testing.assert_close(module.weight[-1], module.weight[:-1].mean(0))


def test_llama_prompts_begin_with_bos_and_keep_it_and_the_cue_when_they_are_cut(hub):
    tokenizer = models.load_tokenizer(hub / "llama")
    whole, cut = (data.encode_prompts(tokenizer, ["My boss Ann left.\n\nTL;DR:"], n)[0] for n in (100, 6))
    assert whole[0] == cut[0] == tokenizer.bos_token_id and len(cut) == 6 and whole[-5:] == cut[1:]
    assert tokenizer.decode(whole[1:]) == "My boss Ann left.\n\nTL;DR:" and tokenizer.bos_token_id not in whole[1:]
    assert tokenizer.bos_token_id not in data.encode_completions(tokenizer, ["Quit."])[0]
    assert data.first_tokens(models.load_tokenizer(hub / "gpt2")) == []


@pytest.mark.parametrize("name", ["tldr-gpt2", "shp-gpt2"])
def test_a_dry_run_estimates_every_stage(name, hub):
    recipe = RECIPES[name]
    ready = {"reward_model": str(hub / "deberta")} if recipe.reward_model else {}
    recipe = get_recipe(name, "smoke", None, {"policy": str(hub / "gpt2")} | ready)
    sft, rm, ppo = (estimate.estimate(recipe, stage) for stage in estimate.STAGES)
    assert min(e["peak"] for e in (sft, rm, ppo)) > 0 and ppo["models"]["value_model"]["trained"] > 0
    count = sum(p.numel() for p in AutoModelForSequenceClassification.from_pretrained(
        hub / ("deberta" if ready else "gpt2"), num_labels=1).parameters())  # fmt: skip
    assert ppo["models"]["reward_model"]["parameters"] == count
    assert (rm["steps"] == 0) == bool(ready) and rm["generated"] == 0
    if not ready:  # up to five pairs a post, each with two answers
        config = recipe.reward
        assert rm["tokens"] == rm["steps"] * config.batch_prompts * (
            recipe.max_prompt_tokens + 10 * recipe.max_new_tokens
        )


def test_without_a_network_a_model_of_the_hub_is_one_sentence(capsys, monkeypatch, tmp_path, hub):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code = main(["sft", "--recipe", "instruct-gpt2", "--scale", "smoke", "--data-dir", str(hub / "data"),
                 "--output-dir", str(tmp_path), "--set", "policy=nobody/nothing"])  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 2 and "cannot load 'nobody/nothing'" in err and "network" in err and err.count("\n") == 1


def test_a_tokenizer_without_eos_is_one_sentence(hub, tmp_path):
    write_tokenizer("gpt2", tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None}))
    with pytest.raises(UsageError, match="no EOS token"):
        models.load_tokenizer(tmp_path)


def test_settings_that_a_recipe_does_not_have_leave_its_results_their_own():
    tiny = get_recipe("tiny").resolved()
    assert not {"data", "reward_model", "gradient_checkpointing"} & set(tiny)
    assert get_recipe("tldr-gpt2").resolved()["reward_model"].startswith("OpenAssistant/")


def test_your_own_data_run_as_the_readme_says(tmp_path, capsys, monkeypatch):
    text = (ROOT / "README.md").read_text().split("<!-- own data")[1].split("<!-- end of own data")[0]
    code, command = re.search(r"```python\n(.*?)```.*?```\npython -m rlhf_lib (.*?)\n```", text, re.S).groups()
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Sum this up. {row['title']}", "input": row["post"] * (number % 2), "output": "",
             "chosen": row["good"], "rejected": row["worse"]} for number, row in enumerate(posts_of("train", 200))]  # fmt: skip
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exec(code, {})
    assert main([*command.split(), "--output-dir", str(tmp_path / "outputs")]) == 0
    assert "PPO beats SFT by reward-model score" in capsys.readouterr().out
    checkpoints = tmp_path / "outputs" / "smoke" / "checkpoints" / "instruct-gpt2"
    assert all((checkpoints / stage / "model.safetensors").exists() for stage in ("sft", "reward", "ppo"))
