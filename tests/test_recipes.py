"""Settings are data: right ones are typed, wrong ones end with one sentence that says what was expected."""

import dataclasses
import json

import pytest

from rlhf_lib.recipes import RECIPES, SMOKE, Recipe, get_recipe
from rlhf_lib.runtime import UsageError


def refused(match, *args, **kwargs):
    with pytest.raises(UsageError, match=match) as error:
        get_recipe(*args, **kwargs)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_an_unknown_recipe_names_the_known_ones():
    refused("unknown recipe 'tinny': choose one of tiny", "tinny")


def test_an_unknown_scale_names_the_known_ones():
    refused("unknown scale 'big': choose full or smoke", "tiny", scale="big")


@pytest.mark.parametrize("key", ["ppo.kl", "pp.kl_coef", "kl_coef", "", "ppo.", "sft.kl_coef"])
def test_an_unknown_key_lists_what_is_expected_there(key):
    refused("unknown setting .* expected one of", "tiny", overrides={key: "1"})


@pytest.mark.parametrize("key", ["ppo", "ppo.lr.x", "seed.x"])
def test_a_key_that_names_no_single_value_is_refused(key):
    refused("does not name a single value", "tiny", overrides={key: "1"})


@pytest.mark.parametrize(
    "key, value",
    [("ppo.updates", "1.5"), ("ppo.updates", "many"), ("ppo.updates", "true"), ("ppo.updates", None),
     ("ppo.lr", "fast"), ("ppo.lr", "true"), ("ppo.lr", "[1]"), ("ppo.lr", ""), ("ppo.whiten_rewards", "1"),
     ("ppo.whiten_rewards", "yes"), ("ppo.kl_estimator", 3), ("ppo.updates", 2.5), ("ppo.lr", "nan")],
)  # fmt: skip
def test_a_value_of_the_wrong_type_says_how_to_write_it(key, value):
    refused(f"setting {key}=.* is not a (int|float|bool|str): write it like {key}=", "tiny", overrides={key: value})


@pytest.mark.parametrize(
    "key, value, expected",
    [("ppo.updates", "12", 12), ("ppo.updates", "1e2", 100), ("ppo.lr", "1", 1.0), ("ppo.lr", "3e-4", 3e-4),
     ("ppo.lr", 2, 2.0), ("ppo.whiten_rewards", "true", True), ("ppo.whiten_rewards", "False", False),
     ("ppo.kl_estimator", "k3", "k3"), ("max_new_tokens", "16", 16), ("seed", "5", 5), ("policy", "tiny:medium", "tiny:medium"),
     ("eval.split", "validation", "validation"), ("reward.method", "qlora", "qlora"), ("lora.alpha", "8", 8.0), ("precision", "no", "no")],
)  # fmt: skip
def test_an_override_arrives_with_the_type_of_its_setting(key, value, expected):
    found = get_recipe("tiny", overrides={key: value}).resolved()
    for part in key.split("."):
        found = found[part]
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("key, value", [("scale", "banana"), ("scale", "smoke"), ("name", "other")])
def test_an_override_cannot_rename_a_recipe_or_its_scale(key, value):
    """They decide where results are written and what may be reused."""
    refused(key, "tiny", overrides={key: value})


@pytest.mark.parametrize(
    "key, value",
    [("seed", -1), ("sft.method", "dora"), ("ppo.method", "LoRA"), ("lora.r", 0), ("lora.dropout", 1.0), ("lora.lr_factor", 0),
     ("ppo.kl_estimator", "k9"), ("precision", "fp8"), ("ppo.batch_size", 0), ("ppo.minibatches", 0),
     ("ppo.micro_batch_size", 0), ("sft.micro_batch_size", 0), ("reward.micro_batch_prompts", 0), ("ppo.temperature", 0.0), ("sft.batch_size", 0), ("reward.batch_prompts", -4),
     ("ppo.batch_size", 1), ("ppo.gamma", 1.5), ("ppo.lam", 2), ("sft.warmup", 3), ("reward.samples_per_prompt", 11),
     ("eval.split", "dev"), ("ppo.minibatches", 3), ("max_prompt_tokens", 0), ("ppo.exact_kl_every", 0), ("ppo.lr", "1e999")],
)  # fmt: skip
def test_a_value_that_cannot_work_is_refused_before_anything_runs(key, value):
    refused(key.split(".")[-1], "tiny", overrides={key: value})


@pytest.mark.parametrize(
    "key", ["reward.edited_prompts", "reward.demonstration_prompts", "eval.temperature", "lora.dropout"]
)
def test_what_an_ablation_sets_to_zero_may_be_zero(key):
    get_recipe("tiny", overrides={key: "0"})


def test_an_override_changes_one_setting_and_leaves_the_named_recipe_alone():
    before = RECIPES["tiny"].resolved()
    changed = get_recipe("tiny", overrides={"ppo.kl_coef": "0.5"}).resolved()
    assert changed["ppo"].pop("kl_coef") == 0.5
    assert RECIPES["tiny"].resolved() == before
    before["ppo"].pop("kl_coef")
    assert changed == before


def test_smoke_changes_sizes_and_overrides_win_over_it():
    smoke = get_recipe("tiny", "smoke", overrides={"ppo.updates": 3})
    assert smoke.scale == "smoke" and smoke.ppo.updates == 3
    for key, value in SMOKE.items():
        section, name = key.split(".")
        if key != "ppo.updates":
            assert getattr(getattr(smoke, section), name) == value
    assert smoke.ppo.kl_coef == RECIPES["tiny"].ppo.kl_coef
    assert smoke.ppo.batch_size % smoke.ppo.minibatches == 0


def test_the_seed_argument_sets_the_seed():
    assert get_recipe("tiny", seed=7).seed == 7 and get_recipe("tiny", seed=0).seed == 0
    assert get_recipe("tiny").seed == RECIPES["tiny"].seed


def test_a_recipe_is_frozen_and_survives_json():
    recipe = get_recipe("tiny")
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.ppo.lr = 1.0
    assert json.loads(json.dumps(recipe.resolved())) == recipe.resolved()
    assert isinstance(recipe, Recipe)


def test_defaults_are_those_of_the_design():
    ppo = get_recipe("tiny").ppo
    assert (ppo.gamma, ppo.lam, ppo.cliprange, ppo.cliprange_value, ppo.vf_coef) == (1.0, 0.95, 0.2, 0.2, 0.1)
    assert (ppo.kl_estimator, ppo.temperature, ppo.kl_coef > 0) == ("k1", 1.0, True)
