"""The demo without its page: what it shows is what the models say, whatever people type, and users never meet."""

import ast
import builtins
import re
import socket
import sys
import threading
from html.parser import HTMLParser
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_rollout import brief_policy
from transformers import GPT2ForSequenceClassification

from conftest import random_policy
from rlhf_lib import data, demo, models
from rlhf_lib.__main__ import main
from rlhf_lib.corpora import TLDR
from rlhf_lib.recipes import get_recipe
from rlhf_lib.rollout import generate
from rlhf_lib.runtime import Paths, UsageError
from rlhf_lib.tiny import explain, gold_score, reference_summary

LIBRARY = Path(demo.__file__).parent
SHIPPED = {"base": "tiny:small"} | {stage: str(models.ASSETS / stage) for stage in ("sft", "reward")}
MARKUP = '<b>Nora</b> & "him" \'her\' <img src=x onerror="alert(1)"><script>alert(2)</script> ${alert(3)} {{4*4}}'


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small models gain nothing from a second thread, and on a busy machine they wait for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recipe():
    return get_recipe("tiny", scale="smoke")


@pytest.fixture(scope="module")
def cast(recipe, tokenizer):
    """Small random models, whose answers hold every byte and end at any length; the real posts and judge."""
    config = random_policy(tokenizer, num_labels=1).config
    reward_model = GPT2ForSequenceClassification(config).eval()
    reward_model.config.reward_mean = 0.5
    policies = {
        "base": random_policy(tokenizer, 0),
        "sft": random_policy(tokenizer, 1),
        "ppo": brief_policy(tokenizer, 7.0),
    }
    posts = {post.context: post for post in data.held_out_posts("test", 60)}
    return demo.Cast(recipe, tokenizer, policies, {stage: f"the {stage} model" for stage in policies}, reward_model,
                     models.value_model_from(reward_model), posts)  # fmt: skip


@pytest.fixture(scope="module")
def post(cast):
    return next(iter(cast.posts.values()))


class Page(HTMLParser):
    """Tags, attributes and text of a fragment, which must be well nested."""

    def __init__(self, fragment: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], set(), set(), ""
        self.feed(fragment)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text += text


def last(parts):
    *_, end = parts
    return end


# ------------------------------------------------------------------------------------------------------- prompts


def test_a_drawn_post_is_read_as_every_stage_reads_it(cast):
    for text, post in list(cast.posts.items())[:50]:
        assert demo.as_prompt(cast, text) == post.prompt
        assert demo.as_prompt(cast, f"\r\n{post.prompt}\n ".replace("\n", "\r\n")) == post.prompt


def test_bare_text_becomes_the_body_of_a_post(cast):
    prompt = demo.as_prompt(cast, "My sister Nora moved in.\nShe pays no rent.")
    assert re.fullmatch(
        r"SUBREDDIT: r/\w+\n\nTITLE: .+\n\nPOST: My sister Nora moved in.\nShe pays no rent.\n\nTL;DR:", prompt
    )


@pytest.mark.parametrize("text", ["", "  \n ", None, "TL;DR:", "\n\nTL;DR:\n"])
def test_an_empty_post_is_answered_with_what_to_do(cast, text):
    with pytest.raises(UsageError, match="no post yet.*Draw a test post"):
        demo.as_prompt(cast, text)


@pytest.mark.parametrize("text", ["x" * 10_000, "My sister. " * 909, "é" * 10_000])
def test_ten_thousand_characters_are_refused_with_the_length_that_fits(cast, text):
    with pytest.raises(
        UsageError, match=r"too long.* at most 192\. Please shorten it to about [\d,]+ characters"
    ) as seen:
        demo.as_prompt(cast, text)
    fits = int(re.search(r"about ([\d,]+) characters", str(seen.value))[1].replace(",", ""))
    assert 50 < fits < 1500
    assert len(demo.as_prompt(cast, "POST: " + text[: fits - 6])) > fits - 20  # the advice holds


def test_the_longest_post_that_is_allowed_is_answered(cast):
    tokens = cast.recipe.max_prompt_tokens - len(cast.tokenizer(TLDR.cue)["input_ids"])
    body = cast.tokenizer.decode(cast.tokenizer("POST:" + " Nora" * 400)["input_ids"][:tokens])
    assert len(cast.tokenizer(demo.as_prompt(cast, body))["input_ids"]) == cast.recipe.max_prompt_tokens
    assert 'id="card-ppo"' in last(demo.respond(cast, body, 1.0, demo.most_new_tokens(cast), 1))[0]
    with pytest.raises(UsageError, match="too long"):
        demo.as_prompt(cast, body + " Nora")


def test_millions_of_characters_are_not_even_tokenized(cast, monkeypatch):
    monkeypatch.setattr(demo, "MAX_CHARACTERS", 1000)
    with pytest.raises(UsageError, match="1,001 characters"):
        demo.as_prompt(cast, "POST:" + "x" * 996)


@pytest.mark.parametrize(
    "temperature, tokens, seed, words",
    [(None, 8, 1, "temperature"), (-0.1, 8, 1, "temperature"), (9, 8, 1, "temperature"), (1, None, 1, "new tokens"),
     (1, 0, 1, "new tokens"), (1, 65, 1, "new tokens"), (1, 8, None, "seed"), (1, 8, -1, "seed"), (1, 8, 2**32, "seed"),
     (1, 8, "7", "seed"), (float("nan"), 8, 1, "temperature")],
)  # fmt: skip
def test_controls_that_are_empty_or_out_of_bounds_are_named(cast, post, temperature, tokens, seed, words):
    answer, view = last(demo.respond(cast, post.context, temperature, tokens, seed))
    assert 'role="alert"' in answer and words in answer and "from" in answer and not view


# ------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_answer_is_what_generate_says_with_the_same_seed(cast, post, temperature):
    written = last(demo.answers(cast, post.prompt, temperature, 30, 5))
    for stage, policy in cast.policies.items():
        assert written[stage].texts == generate(policy, cast.tokenizer, [post.prompt], 30, temperature, seed=5).texts


def test_answers_grow_side_by_side(cast, post):
    lengths = [
        [rollout.response_mask.shape[1] for rollout in written.values()]
        for written in demo.answers(cast, post.prompt, 1.0, 12, 5)
    ]
    assert lengths[:3] == [[n] * 3 for n in range(1, 4)] and max(lengths[-1]) == 12


def test_all_models_get_the_same_noise(cast, post):
    same = demo.Cast(**(vars(cast) | {"policies": dict.fromkeys(demo.STAGES, cast.policies["ppo"])}))
    texts = {rollout.texts[0] for rollout in last(demo.answers(same, post.prompt, 1.0, 30, 3)).values()}
    assert len(texts) == 1


def test_a_request_shows_the_texts_their_scores_and_the_judges_items(cast, post):
    parts = list(demo.respond(cast, post.context, 1.0, 48, 2))
    answer, view = parts[-1]
    assert len(parts) > 1 and "cursor" in parts[0][0] and "cursor" not in answer and not parts[0][1]
    page, ends = Page(answer), set()
    for policy in cast.policies.values():
        rollout = generate(policy, cast.tokenizer, [post.prompt], 48, 1.0, seed=2)
        text = rollout.texts[0]
        score = models.score_responses(
            cast.reward_model, cast.tokenizer, [post.prompt], [text], rollout.finished.tolist()
        )
        ends.add(bool(rollout.finished[0]))
        assert text in page.text and f"reward model {demo.number(score.item())}" in page.text
        assert f"gold judge {demo.number(gold_score(post, text))} of" in page.text
        assert all(item in page.text for item, _ in explain(post, text))
        count = int(rollout.response_mask.sum()) - bool(rollout.finished[0])
        assert f"{count} tokens {'and EOS' if rollout.finished[0] else 'and no EOS'}" in page.text
    assert "PPO answer" in Page(view).text and ends == {True, False}


def test_the_judge_is_silent_about_a_post_that_was_changed(cast, post):
    answer = last(demo.respond(cast, post.context.replace(post.name, "Zoe"), 1.0, 8, 2))[0]
    assert "gold judge" not in answer and answer.count("No gold score") == 3
    assert reference_summary(post) not in answer


def test_text_that_encodes_to_more_tokens_than_the_context_has_room_for_is_scored(cast):
    long, short = "POST:" + " Nora" * 180 + TLDR.cue, "POST: Nora" + TLDR.cue
    texts = ["\ufffd" * 40, "She left."]
    both = demo.score(cast, long, texts, [False, True])
    assert both.isfinite().all()
    assert torch.equal(demo.score(cast, short, texts, [False, True]), models.score_responses(
        cast.reward_model, cast.tokenizer, [short] * 2, texts, [False, True]))  # fmt: skip


def test_broken_weights_become_a_notice(cast, post):
    broken = random_policy(cast.tokenizer)
    with torch.no_grad():
        broken.transformer.ln_f.weight.fill_(torch.nan)
    sick = demo.Cast(**(vars(cast) | {"policies": cast.policies | {"ppo": broken}}))
    answer, _ = last(demo.respond(sick, post.context, 1.0, 8, 2))
    assert 'role="alert"' in answer and "not finite" in answer


def test_two_users_at_once_get_what_each_would_get_alone(cast):
    texts = list(cast.posts)[:4]
    alone = [last(demo.respond(cast, text, 1.0, 24, seed)) for seed, text in enumerate(texts)]
    together = [None] * 4
    start = threading.Barrier(4)

    def user(i):
        start.wait()
        together[i] = last(demo.respond(cast, texts[i], 1.0, 24, i))

    threads = [threading.Thread(target=user, args=(i,)) for i in range(4)]
    for step in ("start", "join"):
        for thread in threads:
            getattr(thread, step)()
    assert together == alone and len(set(alone)) == 4


def test_a_drawn_post_is_another_one(cast):
    texts = list(cast.posts)
    assert all(demo.draw_post(cast, texts[0]) in texts[1:] for _ in range(100))
    assert len({demo.draw_post(cast) for _ in range(50)}) > 5


# ---------------------------------------------------------------------------------------------------- token view


def test_the_lens_equals_unpadded_forwards_and_the_reward_model_on_each_beginning(cast, post):
    rollout = generate(cast.policies["ppo"], cast.tokenizer, [post.prompt], 20, 1.0, seed=4)
    rows, stage, ref = demo.token_lens(cast, rollout)
    ids = rollout.input_ids
    assert (stage, ref) == ("ppo", "sft") and len(rows) == rollout.response_mask.shape[1]
    with torch.no_grad():
        logp, logq = (cast.policies[name](input_ids=ids).logits[0].log_softmax(-1) for name in ("ppo", "sft"))
        for t, row in enumerate(rows):
            end = rollout.prompt_length + t
            token = ids[0, end]
            value = models.reward_scores(cast.reward_model, ids[:, :end], torch.ones_like(ids[:, :end])).item()
            assert row["logprob"] == pytest.approx(logp[end - 1, token].item(), abs=1e-4)
            assert row["kl"] == pytest.approx((logp - logq)[end - 1, token].item(), abs=1e-4)
            assert row["value"] == pytest.approx(value, abs=1e-3)
    assert max(abs(row["kl"]) for row in rows) > 0.1
    text = "".join(row["token"] for row in rows)
    assert text.removesuffix(" EOS").strip() == rollout.texts[0]


def test_the_lens_uses_the_temperature_of_training(cast, post):
    recipe = get_recipe("tiny", "smoke", overrides={"ppo.temperature": "0.5"})
    other = demo.Cast(**(vars(cast) | {"recipe": recipe}))
    rollout = generate(cast.policies["ppo"], cast.tokenizer, [post.prompt], 6, 1.0, seed=4)
    with torch.no_grad():
        logp = (cast.policies["ppo"](input_ids=rollout.input_ids).logits[0] / 0.5).log_softmax(-1)
    end = rollout.prompt_length
    wanted = logp[end - 1, rollout.input_ids[0, end]].item()
    assert demo.token_lens(other, rollout)[0][0]["logprob"] == pytest.approx(wanted, abs=1e-4)


def test_without_a_ppo_policy_the_page_says_how_to_train_one_and_shows_sft(recipe, tmp_path):
    found = demo.open_checkpoints(recipe, Paths("tiny", "smoke", tmp_path))
    text = next(iter(found.posts))
    answer, view = last(demo.respond(found, text, 1.0, 48, 1))
    assert "python -m rlhf_lib ppo --recipe tiny" in Page(answer).text and "shipped sft snapshot" in answer
    assert 'id="card-ppo"' in answer and "SFT answer" in view and "log p<sub>Base</sub>" in view
    assert "no PPO policy yet" in view


def test_own_checkpoints_are_used_and_named(recipe, cast, tmp_path):
    paths = Paths("tiny", "smoke", tmp_path)
    settings = models.stage_settings(recipe, paths, "ppo")
    models.save_checkpoint(paths.checkpoints / "ppo", cast.policies["ppo"], cast.tokenizer, settings)
    found = demo.open_checkpoints(recipe, paths)
    assert found.sources["ppo"] == "your own ppo checkpoint"
    for mine, saved in zip(found.policies["ppo"].parameters(), cast.policies["ppo"].parameters(), strict=True):
        assert torch.equal(mine, saved)


def test_strips_hold_every_token_with_its_number_and_a_legend(cast):
    rows = [{"token": t, "logprob": -1.0, "kl": k, "value": -k}
            for t, k in ((" My", 0.5), ("thing", -2.25), (" <b>", 0.001))]  # fmt: skip
    view = demo.lens(rows, "ppo", "sft", 1.5, cast.recipe)
    page = Page(view)
    assert view.count('class="token"') + view.count('class="token joined"') == 6 and view.count("token joined") == 2
    assert "−2.25" in page.text and "+0.50" in page.text and "<b>" in page.text and page.text.count("0.00") == 2
    assert page.text.count("−2.2") >= 2 and "likelier under PPO" in page.text and "below SFT references" in page.text
    assert "Together −1.75 nats" in page.text and "+1.50" in page.text
    assert "copy of the reward model" in page.text and "not kept" in page.text
    strongest = re.search(r'background:(#\w+)" title="[^"]*"><span>thing', view)[1]
    assert strongest == demo.colour(-1)  # the largest number gets the full colour


def test_an_answer_of_nothing_has_a_view(cast):
    assert "Together 0.00 nats" in demo.lens([], "ppo", "sft", 0.0, cast.recipe)


def luminance(rgb) -> float:
    """WCAG 2 relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def test_dark_text_is_readable_on_every_colour():
    for x in np.linspace(-1, 1, 41):
        assert (luminance(rgb(demo.colour(x))) + 0.05) / (luminance(rgb("#111111")) + 0.05) >= 7
    assert demo.colour(0) == demo.colour(float("nan")) and demo.colour(7) == demo.colour(1)


# Full protanopia, deuteranopia and tritanopia: Machado, Oliveira and Fernandes 2009, table 1, severity 1.0, on linear RGB.
SEEN = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(linear: np.ndarray) -> np.ndarray:
    """CIE L*a*b* under D65 of linear sRGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(np.clip(xyz / (0.9505, 1.0, 1.089), 0, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", SEEN)
def test_colours_are_told_apart_with_every_colour_blindness(kind):
    def seen(x):
        c = rgb(demo.colour(x))
        return lab(np.array(SEEN[kind]) @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4))

    for a, b, distance in ((-1, 1, 40), (-1, 0, 20), (1, 0, 20), (-0.5, 0.5, 20)):
        assert np.linalg.norm(seen(a) - seen(b)) > distance, (kind, a, b)


# -------------------------------------------------------------------------------------------------------- markup


def test_markup_is_shown_as_text_wherever_it_comes_from(cast, post):
    expected = {
        "div",
        "article",
        "h3",
        "p",
        "table",
        "tr",
        "td",
        "b",
        "em",
        "span",
        "section",
        "h4",
        "sub",
        "br",
        "small",
    }
    evil = demo.Cast(**(vars(cast) | {"sources": dict.fromkeys(demo.STAGES, MARKUP)}))
    verdict = demo.Verdict(1.0, True, 3, [(f"copied from the post: {MARKUP!r}", -0.15)])
    texts = dict.fromkeys(demo.STAGES, MARKUP)
    rows = [{"token": MARKUP, "logprob": -1.0, "kl": 1.0, "value": 1.0}]
    for fragment, times in (
        (demo.cards(evil, texts, dict.fromkeys(demo.STAGES, verdict)), 6),
        (demo.cards(evil, texts), 6),
        (demo.lens(rows, "ppo", "sft", 1.0, cast.recipe), 2),
    ):
        page = Page(fragment)
        assert page.text.count(MARKUP) == times
        assert page.tags <= expected and page.attributes <= {"class", "id", "style", "title"}
    missing = demo.Cast(**(vars(evil) | {"policies": {"base": 1, "sft": 2}}))
    assert MARKUP in Page(demo.cards(missing, {})).text


def test_markup_in_a_post_is_answered(cast):
    answer, view = last(demo.respond(cast, MARKUP, 1.0, 12, 1))
    assert {"script", "img"}.isdisjoint(Page(answer).tags | Page(view).tags) and 'id="card-ppo"' in answer


@pytest.mark.parametrize("x, shown", [(0.001, "0.00"), (-0.004, "0.00"), (1.0, "+1.00"), (-0.15, "−0.15")])
def test_numbers_have_a_sign_unless_they_are_zero(x, shown):
    assert demo.number(x) == shown


# ------------------------------------------------------------------------------------------- command line, gradio


def test_without_gradio_the_command_says_what_to_install(capsys, monkeypatch, tmp_path):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.split(".")[0] == "gradio":
            raise ImportError("No module named 'gradio'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    code = main(["demo", "--recipe", "tiny", "--scale", "smoke", "--output-dir", str(tmp_path)])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and "gradio" in err and "pip install -e '.[demo]'" in err


def test_the_command_is_loopback_unless_told_otherwise(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        demo, "run", lambda recipe, paths, *where: seen.append((recipe.ppo.updates, paths.output_dir, *where))
    )
    arguments = ["demo", "--recipe", "tiny", "--set", "ppo.updates=20", "--output-dir", str(tmp_path)]
    assert main(arguments) == 0
    assert main([*arguments, "--host", "0.0.0.0", "--port", "8000"]) == 0
    assert seen == [(20, tmp_path, "127.0.0.1", 7860), (20, tmp_path, "0.0.0.0", 8000)]


def test_a_port_that_cannot_be_had_is_wrong_usage_before_any_model_is_read(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_gradio", lambda: None)
    monkeypatch.setattr(demo, "open_checkpoints", lambda *_: pytest.fail("too late"))
    paths = Paths("tiny", "smoke", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(UsageError, match="cannot listen.*choose another --host or --port"):
            demo.run(recipe, paths, "127.0.0.1", taken.getsockname()[1])
    for host, port, words in (("127.0.0.1", 70000, "65535"), ("127.0.0.1", 0, "65535"), ("256.1.1.1", 7860, "--host")):
        with pytest.raises(UsageError, match=words):
            demo.run(recipe, paths, host, port)


def test_ctrl_c_ends_the_demo_as_it_should_end(monkeypatch, tmp_path, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    for name in ("_gradio", "open_checkpoints", "build_page"):
        monkeypatch.setattr(demo, name, lambda *_: None)
    monkeypatch.setattr(demo, "serve", stop)
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    assert main(["demo", "--recipe", "tiny", "--port", str(port), "--output-dir", str(tmp_path)]) == 0
    assert not capsys.readouterr().err


def test_an_open_door_is_announced(recipe, tmp_path, monkeypatch, capsys):
    for name in ("_gradio", "open_checkpoints", "build_page", "serve"):
        monkeypatch.setattr(demo, name, lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    demo.run(recipe, Paths("tiny", "smoke", tmp_path), "127.0.0.1", port)
    assert not capsys.readouterr().out
    demo.run(recipe, Paths("tiny", "smoke", tmp_path), "0.0.0.0", port)
    assert "whoever reaches 0.0.0.0" in capsys.readouterr().out


def test_host_and_port_belong_to_the_demo(capsys):
    assert main(["sft", "--recipe", "tiny", "--port", "8000"]) == 2
    assert "--port does nothing for sft" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- Space


@pytest.fixture(scope="module")
def space(recipe, cast, tmp_path_factory):
    own = tmp_path_factory.mktemp("own") / "ppo"
    models.save_checkpoint(own, cast.policies["ppo"], cast.tokenizer, {"secret": "/tmp/me"})
    (own / "adapter").mkdir()
    return demo.write_space(tmp_path_factory.mktemp("spaces") / "space", recipe, SHIPPED | {"ppo": str(own)})


def test_a_space_has_what_the_hub_asks_for(space):
    _, header, text = (space / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(header)
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and (space / "app.py").exists()
    assert card["sdk_version"] == demo.GRADIO and card["python_version"] == "3.11"
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {card["colorFrom"], card["colorTo"]} <= colours and len(card["short_description"]) <= 60
    assert card["title"] in text and "models" not in card and "tiny" in text
    pins = (space / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", pin) for pin in pins) and not any("gradio" in pin for pin in pins)
    assert {p.name for p in space.iterdir()} == {"README.md", "app.py", "requirements.txt", "rlhf_lib", "models"}


def test_a_space_tells_nothing_of_the_machine_that_wrote_it(space):
    for file in space.rglob("*"):
        assert file.name not in ("settings.json", "adapter", "__pycache__")
        if file.suffix in (".py", ".md", ".txt", ".json") and "rlhf_lib" not in file.parts:
            assert str(LIBRARY.parent) not in file.read_text() and "/tmp" not in file.read_text()


def test_a_space_names_hub_models_and_the_settings_that_differ(tmp_path):
    recipe = get_recipe("tiny", overrides={"max_new_tokens": "40"})
    names = {"base": "me/base", "sft": "me/sft", "reward": "me/reward", "ppo": "me/ppo"}
    folder = demo.write_space(tmp_path / "space", recipe, names, title="My models")
    card = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    app = (folder / "app.py").read_text()
    assert card["models"] == list(names.values()) and card["title"] == "My models" and not (folder / "models").exists()
    assert str(names) in app and "'max_new_tokens': 40" in app and "'policy': 'me/base'" in app
    ast.parse(app)


def test_a_space_never_replaces_a_folder_and_needs_its_models(recipe, tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="not empty"):
        demo.write_space(tmp_path, recipe, SHIPPED)
    with pytest.raises(UsageError, match="reward"):
        demo.write_space(tmp_path / "new", recipe, {"base": "tiny:small", "sft": "me/sft"})
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_space_requires_every_package_that_its_app_imports():
    found, todo = set(), ["demo"]
    for name in todo:
        file = LIBRARY / f"{name}.py" if (LIBRARY / f"{name}.py").exists() else LIBRARY / name / "__init__.py"
        for node in ast.parse(file.read_text()).body:
            base = node.module if isinstance(node, ast.ImportFrom) else None
            for alias in getattr(node, "names", ()) if isinstance(node, ast.Import | ast.ImportFrom) else ():
                module = base or alias.name
                if module.split(".")[0] != "rlhf_lib":
                    found.add(module.split(".")[0])
                    continue
                inner = module.removeprefix("rlhf_lib").strip(".").replace(".", "/") or alias.name
                if inner not in todo and ((LIBRARY / f"{inner}.py").exists() or (LIBRARY / inner).is_dir()):
                    todo.append(inner)
    third = {name for name in found if name not in sys.stdlib_module_names}
    owners = packages_distributions()
    assert {owners[name][0].lower() for name in third} == set(demo.PACKAGES)
    assert {"models", "tiny", "lora"} <= set(todo)


def test_the_version_of_gradio_is_the_tested_one():
    constraints = LIBRARY.parent / "constraints.txt"
    if not constraints.exists():
        pytest.skip("not a checkout of the repository")
    assert f"gradio=={demo.GRADIO}" in constraints.read_text().split()
