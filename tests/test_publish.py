"""What is pushed: the request that reaches a Hub, the card's truth, and that nothing of this machine goes along."""

import base64
import http.server
import json
import re
import threading

import pytest
import torch
import yaml
from huggingface_hub import constants

from conftest import random_policy
from rlhf_lib import lora, models, publish
from rlhf_lib.__main__ import main
from rlhf_lib.recipes import get_recipe
from rlhf_lib.runtime import Paths, UsageError, write_json

EVALUATION = {
    "recipe": "tiny", "seed": 1, "scale": "smoke", "split": "test", "prompts": 600, "comparisons": {},
    "models": {"ppo": {"gold": {"mean": 0.878, "low": 0.854, "high": 0.901}, "gold_seen": 0.9, "gold_unseen": 0.8,
                       "scores": 1.0, "rouge1": 0.7, "rouge2": 0.5, "rougeL": 0.6, "bleu": 40.0, "length": 20.0,
                       "eos_rate": 1.0}},
}  # fmt: skip
REWARD = {"pairs": 300, "gold_agreement": 0.915, "gold_agreement_low": 0.9, "gold_agreement_high": 0.93,
          "label_accuracy": 0.808, "label_noise_ceiling": 0.854, "length_only_label_accuracy": 0.58,
          "calibration_error": 0.029}  # fmt: skip


@pytest.fixture
def recipe():
    return get_recipe("tiny", "smoke", overrides={"sft.method": "lora"})


@pytest.fixture
def trained(tmp_path, recipe, tokenizer):
    """Paths with a checkpoint of every stage, of random weights: sft with an adapter, as the stages save them."""
    paths = Paths("tiny", "smoke", tmp_path / "somebody" / "outputs")
    policy = random_policy(tokenizer)
    reward_model = models.new_reward_model(_saved(policy, tmp_path / "body"), tokenizer)
    reward_model.config.reward_mean = 1.25
    for stage, model in (("sft", lora.adapt(policy, recipe.lora, "lora")), ("reward", reward_model),
                         ("ppo", random_policy(tokenizer, seed=1))):  # fmt: skip
        folder = paths.checkpoints / models.folder_of(recipe, stage)
        models.save_checkpoint(folder, model, tokenizer, models.stage_settings(recipe, paths, stage))
    (folder / "training_args.bin").write_bytes(b"x")  # no file of ours
    write_json(paths.evaluation / "evaluation.json", EVALUATION)
    write_json(paths.evaluation / "reward.json", REWARD)
    return paths


def _saved(model, folder):
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine that accepts everything and remembers each request: [(path, body)]."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            requests.append((self.path, body, self.headers["Authorization"]))
            owner, *name = self.path.split("/")[3:5] if "/api/models/" in self.path else ("someone", "x")
            address = f"{constants.ENDPOINT}/{'/'.join([owner, *name])}"
            answer = {
                "url": address,
                "commitUrl": f"{address}/commit/{'1' * 40}",
                "commitOid": "1" * 40,
                "errors": [],
                "warnings": [],
            }
            if "/preupload/" in self.path:
                answer["files"] = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                                   for f in json.loads(body)["files"]]  # fmt: skip
            self._say(answer)

        def do_GET(self):
            self._say({"siblings": [], "id": "someone/x", "sha": "1" * 40})

        def _say(self, answer):
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield requests
    server.shutdown()
    server.server_close()
    thread.join()


def committed(body: str) -> dict[str, bytes]:
    lines = [json.loads(line) for line in body.splitlines()]
    return {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }


def test_push_creates_the_repositories_and_commits_their_files(recipe, trained, hub):
    lines = publish.push(recipe, trained, "someone/summaries", private=True)
    assert len(lines) == 3 and all(line.startswith("pushed ") for line in lines)
    created = [json.loads(body) for path, body, _ in hub if path == "/api/repos/create"]
    assert [c["name"] for c in created] == ["summaries-sft", "summaries-reward", "summaries-ppo"]
    assert all(c.get("private") or c.get("visibility") == "private" for c in created)
    assert {token for _, _, token in hub} == {"Bearer hf_test"}
    commits = {path: committed(body) for path, body, _ in hub if "/commit/" in path}
    plain = {
        "README.md",
        "config.json",
        "model.safetensors",
        "settings.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    policy = plain | {"generation_config.json"}
    adapter = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert {path.split("/")[4]: set(files) for path, files in commits.items()} == {
        "summaries-sft": policy | adapter, "summaries-reward": plain, "summaries-ppo": policy
    }  # fmt: skip
    weights = (trained.checkpoints / "ppo" / "model.safetensors").read_bytes()
    assert commits["/api/models/someone/summaries-ppo/commit/main"]["model.safetensors"] == weights


def test_nothing_of_this_machine_is_pushed(trained, tmp_path, tokenizer):
    """A policy in a folder of one's own leaves its path in settings, config and adapter."""
    home = tmp_path / "somebody" / "base"
    random_policy(tokenizer).save_pretrained(home)
    tokenizer.save_pretrained(home)
    recipe = get_recipe("tiny", "smoke", overrides={"policy": str(home), "sft.method": "lora"})
    policy = lora.adapt(models.load_policy(str(home), tokenizer), recipe.lora, "lora")
    policy.config._name_or_path = policy.peft_config["default"].base_model_name_or_path = str(home)
    settings = models.stage_settings(recipe, trained, "sft")
    models.save_checkpoint(trained.checkpoints / "sft_lora", policy, tokenizer, settings)
    assert str(tmp_path) in (trained.checkpoints / "sft_lora" / "settings.json").read_text()
    publish.push(recipe, trained, "someone/x", ["sft"], dry_run=True)
    files = [f for f in (trained.root / "publish" / "tiny" / "sft").rglob("*") if f.is_file()]
    assert len(files) == 9
    for file in files:
        assert str(tmp_path).encode() not in file.read_bytes() and b"somebody" not in file.read_bytes(), file.name


def test_a_pushed_folder_opens_and_is_the_checkpoint(recipe, trained):
    publish.push(recipe, trained, "someone/x", dry_run=True)
    folder = trained.root / "publish" / "tiny"
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        for stage, name in (("sft", "sft_lora"), ("ppo", "ppo")):
            pushed, own = (models.load_policy(f)(ids).logits for f in (folder / stage, trained.checkpoints / name))
            assert torch.equal(pushed, own)
    assert models.load_reward_model(folder / "reward").config.reward_mean == 1.25
    assert models.load_tokenizer(folder / "reward").pad_token_id == 1


def test_a_card_says_what_the_evaluation_files_say(recipe, trained):
    publish.push(recipe, trained, "someone/x", dry_run=True)
    cards = {s: (trained.root / "publish" / "tiny" / s / "README.md").read_text() for s in publish.STAGES}
    headers = {stage: yaml.safe_load(text.split("---")[1]) for stage, text in cards.items()}
    assert headers["reward"]["pipeline_tag"] == "text-classification" and "reward-model" in headers["reward"]["tags"]
    assert headers["ppo"] == {"license": "mit", "library_name": "transformers", "pipeline_tag": "text-generation",
                              "tags": ["rlhf", "ppo"]}  # fmt: skip
    assert "0.878 [0.854, 0.901]" in cards["ppo"] and "seed 1" in cards["ppo"] and "95 % interval" in cards["ppo"]
    assert "0.915 [0.900, 0.930]" in cards["reward"] and "reward_model.config.reward_mean" in cards["reward"]
    assert 'subfolder="adapter"' in cards["sft"] and "adapter" not in cards["ppo"].split("## Results")[0]
    for text in cards.values():
        assert text.count("## ") == 4 and "world" in text.split("## Limits")[1]


def test_results_of_another_seed_are_not_this_model_s(trained):
    recipe = get_recipe("tiny", "smoke", seed=2)
    assert "Not evaluated" in publish.results(recipe, trained, "ppo")
    assert "Not evaluated" in publish.results(recipe, Paths("none", "smoke", trained.output_dir), "reward")


def test_another_base_is_named_and_no_license_is_invented(paths):
    recipe = get_recipe("tiny", overrides={"policy": "openai-community/gpt2"})
    header = yaml.safe_load(publish.card(recipe, paths, "ppo", "someone/x").split("---")[1])
    assert header["base_model"] == "openai-community/gpt2" and "license" not in header


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("stage, adapter", [("sft", True), ("reward", False), ("ppo", False)])
def test_the_snippets_run(recipe, trained, stage, adapter):
    publish.push(recipe, trained, "someone/x", [stage], dry_run=True)
    folder = trained.root / "publish" / "tiny" / stage
    code = re.search("```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    code = code.replace(f'"someone/x-{stage}"', repr(str(folder)))
    from transformers import AutoModelForCausalLM

    names = {"prompt": "A post.\n\nTL;DR:", "response": "x", "print": lambda *_: None}
    if adapter:
        body = random_policy(models.load_tokenizer("tiny:small"))  # the base of the fixture
        names["base_model"] = body
    exec(code, names)
    if stage == "reward":
        expected = models.score_responses(models.load_reward_model(folder), models.load_tokenizer(folder),
                                          [names["prompt"]], [names["response"]])  # fmt: skip
        assert names["score"].item() == pytest.approx(expected.item(), abs=1e-5)
    if adapter:
        ids = torch.arange(5, 15)[None]
        with torch.no_grad():
            merged = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
            assert (names["model"](ids).logits - merged).abs().max() < 1e-4


# ---------------------------------------------------------------------------------------------------------- trouble


def test_without_a_token_there_is_one_sentence_and_no_request(recipe, trained, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils.get_token", lambda: None)
    with pytest.raises(UsageError, match="needs a token .*hf auth login"):
        publish.push(recipe, trained, "someone/x")
    assert not hub


def test_a_hub_that_cannot_be_reached_is_one_sentence(recipe, trained, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with pytest.raises(UsageError, match="cannot push to someone/x-ppo .*network") as error:
        publish.push(recipe, trained, "someone/x", ["ppo"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "--repo USER/NAME"),
        (["--repo", "summaries"], "'summaries' is no repository"),
        (["--repo", "a/b", "--stages", "dpo"], "--stages dpo cannot be pushed"),
        (["--repo", "a/b", "--stages", "ppo"], "ppo checkpoint is missing"),
        (["--repo", "a/b", "--stages", "sft"], "no sft checkpoint of your own"),
    ],
)
def test_what_cannot_be_pushed_is_one_sentence(capsys, tmp_path, arguments, words):
    assert main(["push", "--recipe", "tiny", "--scale", "smoke", "--output-dir", str(tmp_path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and not out


def test_a_dry_run_writes_the_folders_says_so_and_asks_nobody(capsys, trained, hub):
    code = main(["push", "--recipe", "tiny", "--scale", "smoke", "--set", "sft.method=lora", "--output-dir",
                 str(trained.output_dir), "--repo", "someone/x", "--dry-run"])  # fmt: skip
    out, _ = capsys.readouterr()
    assert code == 0 and out.count("would push") == 3 and "adapter/adapter_config.json" in out and not hub
    assert main(["sft", "--recipe", "tiny", "--repo", "a/b"]) == 2
    assert "--repo does nothing for sft" in capsys.readouterr().err


def test_a_space_shows_what_is_pushed_and_holds_copies_of_the_rest(recipe, trained, hub):
    publish.push(recipe, trained, "someone/x", ["ppo"], space="someone/demo")
    created = json.loads([body for path, body, _ in hub if path == "/api/repos/create"][-1])
    assert created["type"] == "space" and created["sdk"] == "gradio"
    files = committed(hub[-1][1])
    assert b"someone/x-ppo" in files["app.py"] and b"models/sft" in files["app.py"]
    assert not any(name.startswith("models/ppo") for name in files)
    assert {"README.md", "requirements.txt", "models/sft/config.json", "models/reward/config.json"} <= set(files)
