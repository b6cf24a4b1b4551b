"""Two processes give the numbers of one, killed and resumed or not; shares are weighted by what they count."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from torch import nn
from transformers import GPT2ForSequenceClassification

from conftest import random_policy
from rlhf_lib import __main__, doctor, models, ppo, processes, reward, rollout, sft, stages
from rlhf_lib.data import completion_batch, encode_completions, encode_prompts, shuffled
from rlhf_lib.recipes import PPOConfig, get_recipe
from rlhf_lib.runtime import (
    ROOT,
    MetricLog,
    Paths,
    TrainingState,
    UsageError,
    make_accelerator,
    progress,
    write_json,
)

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
        launcher = subprocess.Popen(
            launch([ROOT / "tests" / "without_doctor.py"], "run", paths), stdout=file, stderr=file
        )
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
                close = 1e-3 if key == "check/kl_z" else 1e-5  # z divides one small difference by another
                assert float(row[key]) == pytest.approx(float(other[key]), rel=close, abs=close), (row["step"], key)


def test_only_the_main_process_speaks_and_writes(two):
    paths, said = two
    assert said.count("sft: your own sft checkpoint") == 3  # read by reward, by ppo and by the resumed ppo
    assert said.count("update 2: ") == len(set(line for line in said.splitlines() if line.startswith("update 2: ")))
    assert not [p for p in paths.output_dir.rglob(".*") if p.name.endswith((".new", ".old"))]
    lines = (paths.checkpoints / "sft_metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3, 4, 5]


# -------------------------------------------------------------------------------------------------------- shares


def gradients_of_shares(monkeypatch, learn) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What each of two processes brings to the sum, by `learn()`, which steps a fresh model once; and the sum."""
    parts = []
    monkeypatch.setattr(processes, "sum_gradients", lambda model: parts.append(gradients(model)))
    for process in range(2):
        monkeypatch.setattr(processes, "share", lambda rows, process=process: rows[process::2])
        learn()
    return parts, sum(parts)


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]).clone()


def assert_weighted(parts, total, expected):
    """The sum is the gradient of the whole batch, which the plain mean of two means is not."""
    torch.testing.assert_close(total, expected, atol=1e-6, rtol=1e-4)
    assert min(part.norm() for part in parts) > 1e-3
    assert (total - expected).norm() < 1e-4 * expected.norm()


def texts_of(order: list[int], long: str, short: str) -> list[str]:
    """Texts which `order` deals out in turn: the first process gets all the long ones."""
    return [long if order.index(i) % 2 == 0 else short for i in range(len(order))]


def test_shares_of_very_different_length_add_up_to_the_gradient_of_the_batch_in_sft(tokenizer, tmp_path, monkeypatch):
    recipe = get_recipe("tiny", "smoke", overrides={"sft.batch_size": 4, "sft.micro_batch_size": 1, "precision": "no",
                                                    "sft.max_grad_norm": 1e6, "freeze_embeddings": False})  # fmt: skip
    texts = texts_of(shuffled(4, (recipe.seed, 0)), "one two three four five six seven eight nine ten", "no")
    examples = [{"prompt": f"post {i} TL;DR:", "completion": text} for i, text in enumerate(texts)]
    learn = lambda: sft.train_sft(recipe, random_policy(tokenizer), tokenizer, examples, examples, tmp_path,  # noqa: E731
                                  make_accelerator("no"), {})  # fmt: skip
    parts, total = gradients_of_shares(monkeypatch, learn)
    policy = random_policy(tokenizer)
    prompts, completions = (
        encode_prompts(tokenizer, [e["prompt"] for e in examples], 64),
        encode_completions(tokenizer, texts),
    )
    sft.completion_loss(policy, *completion_batch(prompts, completions, tokenizer.pad_token_id)).backward()
    assert_weighted(parts, total, gradients(policy))


def test_shares_of_many_and_of_few_pairs_add_up_to_the_gradient_of_the_batch_in_reward(
    tokenizer, tmp_path, monkeypatch
):
    recipe = get_recipe("tiny", "smoke", overrides={"reward.batch_prompts": 4, "reward.micro_batch_prompts": 1, "precision": "no",
                                                    "reward.max_grad_norm": 1e6, "freeze_embeddings": False})  # fmt: skip
    many = texts_of(shuffled(4, (recipe.seed, 0)), "6", "1")
    pairs = [{"prompt": f"post {i} TL;DR:", "chosen": f"good {j}", "rejected": f"bad {j} {i}"}
             for i, n in enumerate(many) for j in range(int(n))]  # fmt: skip

    def fresh():
        config = random_policy(tokenizer).config
        config.num_labels = 1
        torch.manual_seed(3)
        return GPT2ForSequenceClassification(config).eval()

    references = [{"prompt": "a", "completion": "b"}]
    learn = lambda: reward.train_reward(recipe, fresh(), tokenizer, pairs, pairs, references, tmp_path,  # noqa: E731
                                        make_accelerator("no"), {})  # fmt: skip
    parts, total = gradients_of_shares(monkeypatch, learn)
    model = fresh()
    reward.bradley_terry_loss(*reward.pair_scores(model, tokenizer, pairs, 64)).backward()
    assert_weighted(parts, total, gradients(model))


def test_shares_of_very_different_length_add_up_to_the_gradient_of_the_minibatch_in_ppo(tokenizer, monkeypatch):
    config = PPOConfig(micro_batch_size=1, max_grad_norm=1e6, vf_coef=0.5)
    policy, ref_policy = random_policy(tokenizer), random_policy(tokenizer, seed=1)
    critic = models.value_model_from(policy)
    nn.init.normal_(critic.head.weight)
    actor_critic = ppo.ActorCritic(policy, critic)
    batch = rollout.generate(policy, tokenizer, [f"post {i} TL;DR:" for i in range(6)], 12, seed=1)
    batch.response_mask[1::2, 1:] = False  # the second process gets one token a response
    batch.attention_mask[:, batch.prompt_length :] = batch.response_mask.long()
    accelerator = make_accelerator("no")
    fixed = ppo.collect(batch, torch.randn(6), actor_critic, ref_policy, config, accelerator)
    fixed["logprobs"] = fixed["logprobs"] + 0.3 * torch.randn_like(fixed["logprobs"])
    saved = {key: value.clone() for key, value in actor_critic.state_dict().items()}

    def learn():
        actor_critic.load_state_dict(saved)
        optimizer = torch.optim.SGD(actor_critic.parameters(), lr=0.1)
        ppo.update_step(list(range(6)), batch, fixed, actor_critic, optimizer, config, accelerator)

    parts, total = gradients_of_shares(monkeypatch, learn)
    actor_critic.load_state_dict(saved)
    logprobs, values = actor_critic(batch.input_ids, batch.attention_mask, batch.prompt_length)
    mask = batch.response_mask
    pg_loss, _ = ppo.policy_loss(logprobs, fixed["logprobs"], fixed["advantages"], mask, config.cliprange)
    vf_loss, _ = ppo.value_loss(values, fixed["values"], fixed["returns"], mask, config.cliprange_value)
    actor_critic.zero_grad()
    (pg_loss + 0.5 * vf_loss).backward()
    assert_weighted(parts, total, gradients(actor_critic))


def test_what_processes_sample_and_score_is_the_same_whoever_does_it(tokenizer, monkeypatch):
    policy = random_policy(tokenizer)
    prompts = [f"post {'long ' * i}TL;DR:" for i in range(5)]
    whole = rollout.generate(policy, tokenizer, prompts, 8, seed=1)
    reward_model = models.load_reward_model(models.ASSETS / "reward")
    scores = models.score_responses(reward_model, tokenizer, prompts, whole.texts)
    monkeypatch.setattr(processes, "summed", lambda x: x)  # each process's part, before it is added up
    for process in range(2):
        monkeypatch.setattr(processes, "share", lambda rows, process=process: rows[process::2])
        mine, others = slice(process, None, 2), slice(1 - process, None, 2)
        part = rollout.generate(policy, tokenizer, prompts, 8, seed=1)
        assert part.texts[mine] == whole.texts[mine] and not part.response_mask[others].any()
        some = models.score_responses(reward_model, tokenizer, prompts, whole.texts)
        torch.testing.assert_close(some[mine], scores[mine])
        assert not some[others].any()


def test_an_empty_share_brings_no_gradient_but_takes_part(monkeypatch):
    theirs = torch.arange(6.0)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda x: x.add_(theirs))
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[1].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    model[0].bias.grad = torch.tensor([10.0, 20.0])
    processes.sum_gradients(model)
    assert model[0].weight.grad.tolist() == [[0, 1], [2, 3]] and model[0].bias.grad.tolist() == [14, 25]
    assert model[1].weight.grad is None
    monkeypatch.setattr(processes, "gathered", lambda stats: [stats, {}])
    assert processes.summed_stats({"loss": 0.5}) == {"loss": 0.5}


def test_every_process_restores_its_own_random_state(tmp_path, monkeypatch):
    state = TrainingState(tmp_path / "state.pt", {})
    states = [torch.Generator().manual_seed(seed).get_state() for seed in (1, 2)]
    monkeypatch.setattr(processes, "gathered", lambda _: [(rng, None) for rng in states])
    state.save(3, [])
    before = torch.get_rng_state()
    for process, expected in enumerate([*states, before]):  # a third process was not there: it keeps what it has
        torch.set_rng_state(before)
        monkeypatch.setattr(processes, "index", lambda process=process: process)
        assert state.load() == (3, [])
        assert torch.equal(torch.get_rng_state(), expected)


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path, tokenizer, policy, monkeypatch):
    state = TrainingState(tmp_path / "sft_state.pt", {})
    state.save(1, [])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert state.set_aside() == (0, [])
    log = MetricLog(tmp_path, "sft", trackers=("tensorboard", "wandb"))
    assert log.add(1, {"loss": 2.0}) == {"step": 1, "loss": 2.0}
    assert log.close() == log.rows == [{"step": 1, "loss": 2.0}]
    write_json(tmp_path / "report.json", {})
    models.save_checkpoint(tmp_path / "sft", policy, tokenizer, {})
    assert progress(range(3)).disable
    assert [p.name for p in tmp_path.iterdir()] == ["sft_state.pt"]


# -------------------------------------------------------------------------------------------------------- trouble


@pytest.mark.parametrize(
    "rank, error, said, waits",
    [
        ("0", UsageError("no such thing"), "error: no such thing\n", False),
        ("1", UsageError("no such thing"), "error: process 1: no such thing\n", True),
        ("0", OSError("disk full"), "error: process 0: OSError: disk full\n", True),
    ],
)
def test_the_main_process_speaks_first_where_all_fail_alike(rank, error, said, waits, monkeypatch, capsys):
    """The launcher ends the processes that wait."""
    waited = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(__main__.time, "sleep", waited.append)

    def fail(_):
        raise error

    monkeypatch.setattr(__main__, "_run", fail)
    code = __main__.main(["sft", "--recipe", "tiny"])
    assert code == (2 if isinstance(error, UsageError) else 1)
    assert capsys.readouterr().err == said and bool(waited) == waits


def test_what_one_process_must_do_is_refused_to_several(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert __main__.main(["results", "--recipe", "tiny"]) == 2
    assert "results runs in one process" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_launchers_that_divide_the_weights_are_refused(kind, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(UsageError, match=f"{kind} divides the weights .*several_gpus.yaml"):
        make_accelerator("no")


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        make_accelerator("fp16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(UsageError, match="does not compute in bf16"):
        make_accelerator("bf16")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_the_shipped_configs_and_each_says_whether_it_was_tested(file):
    config = load_config_from_file(str(file))
    assert config.num_processes == (1 if file.stem == "one_gpu" else 2)
    head = " ".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    assert "ested" in head and f"--config_file rlhf_lib/accelerate/{file.name}" in head


# ----------------------------------------------------------------------------- fp16 and gradient checkpointing


@pytest.fixture
def scaled(monkeypatch):
    """An accelerator that scales the loss as under fp16, while it computes in fp32; called with the first scale."""
    prepare = sft.prepare

    def make(scale: float):
        accelerator = make_accelerator("no")
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

        def prepare_in_fp32(*args):
            prepared = prepare(*args)
            accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
            return prepared

        monkeypatch.setattr(sft, "prepare", prepare_in_fp32)
        return accelerator

    yield make
    AcceleratorState._reset_state()


def few_steps(tokenizer, folder, accelerator):
    recipe = get_recipe("tiny", "smoke", overrides={"sft.batch_size": 4, "sft.epochs": 6, "sft.max_grad_norm": 0.1,
                                                    "freeze_embeddings": False})  # fmt: skip
    examples = [{"prompt": f"post {i} TL;DR:", "completion": f"it is {i}"} for i in range(4)]
    return sft.train_sft(recipe, random_policy(tokenizer), tokenizer, examples, examples, folder, accelerator, {})


def test_gradients_are_unscaled_before_they_are_clipped(tokenizer, tmp_path, scaled):
    expected = few_steps(tokenizer, tmp_path, make_accelerator("no"))
    rows = few_steps(tokenizer, tmp_path, scaled(2.0**16))
    assert rows == [pytest.approx(row, rel=1e-6) for row in expected]  # a power of two scales without error


def test_a_step_whose_scaled_gradient_overflows_is_skipped_and_scaled_less(tokenizer, tmp_path, scaled):
    rows = few_steps(tokenizer, tmp_path, scaled(2.0**127))
    skipped = [row["grad_norm"] == 0.0 for row in rows[1:]]
    assert skipped[0] and not skipped[-1]
    assert rows[2]["loss"] == rows[1]["loss"] and rows[-1]["loss"] < rows[1]["loss"]


@pytest.mark.parametrize("training", [False, True])
def test_checkpointed_gradients_are_the_same_and_generation_is_not_touched(tokenizer, training):
    """Also in evaluation mode, in which PPO learns; with dropout on, the second pass drops the same."""
    ids = torch.randint(3, 200, (3, 20), generator=torch.Generator().manual_seed(0))
    found = {}
    for checkpointed in (False, True):
        policy = random_policy(tokenizer, resid_pdrop=0.2, attn_pdrop=0.2).train(training)
        if checkpointed:
            models.checkpoint_gradients(policy.base_model)
        passes = []
        for block in policy.transformer.h:
            block.attn.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        torch.manual_seed(5)
        texts = rollout.generate(policy, tokenizer, ["post TL;DR:"] * 2, 6, seed=1).texts
        passes.clear()
        rollout.token_logprobs(policy, ids, torch.ones_like(ids)).mean().backward()
        found[checkpointed] = gradients(policy), texts, len(passes)
    torch.testing.assert_close(found[True][0], found[False][0], atol=0, rtol=0)
    assert found[True][1] == found[False][1]
    assert (found[False][2], found[True][2]) == (2, 4)


@pytest.mark.parametrize("stage", STAGES)
def test_every_loop_checkpoints_where_the_recipe_says_so(stage, paths, monkeypatch):
    class Asked(Exception):
        pass

    def ask(_):
        raise Asked

    monkeypatch.setattr({"sft": sft, "reward": reward, "ppo": ppo}[stage], "checkpoint_gradients", ask)
    monkeypatch.setattr(stages, "run_doctor", lambda *_: doctor.Report([]))
    monkeypatch.setattr(stages, "preference_pairs", lambda *_: ([{"prompt": "a", "chosen": "b", "rejected": "c"}],) * 2)
    recipe = get_recipe("tiny", "smoke", overrides={"gradient_checkpointing": True})
    with pytest.raises(Asked):
        {"sft": stages.train_sft, "reward": stages.train_reward, "ppo": stages.train_ppo}[stage](recipe, paths)


def test_a_body_that_cannot_checkpoint_is_refused():
    with pytest.raises(UsageError, match="Linear cannot checkpoint gradients"):
        models.checkpoint_gradients(nn.Linear(1, 1))


def test_a_setting_that_came_later_shows_only_where_it_changes_something():
    assert "gradient_checkpointing" not in get_recipe("tiny").resolved()
    assert get_recipe("tiny", overrides={"gradient_checkpointing": "true"}).resolved()["gradient_checkpointing"] is True
