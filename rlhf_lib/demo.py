"""The demo: one post, the answers of base, SFT and PPO beside each other, their scores, and every token under a lens.

`python -m rlhf_lib demo --recipe tiny`. Only `build_page` and `serve` need gradio (`pip install -e .[demo]`). A request
reads the models and its own arguments and nothing else, so users cannot meet each other.
"""

import html
import math
import os
import random
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from rlhf_lib import corpora, data, models
from rlhf_lib.recipes import Recipe
from rlhf_lib.rollout import Rollout, generate_stream, token_logprobs
from rlhf_lib.runtime import Paths, TrainingFailure, UsageError, atomic_folder
from rlhf_lib.tiny import Post, explain

STAGES = {"base": "Base", "sft": "SFT", "ppo": "PPO"}
MAX_CHARACTERS = 100_000  # nothing longer is even tokenized
GRADIO = "6.31.0"  # the version that constraints.txt has, and a Space gets


@dataclass(frozen=True)
class Cast:
    """What a page shows: policies by stage ("ppo" may be missing), each with a sentence on where it comes from."""

    recipe: Recipe
    tokenizer: object
    policies: dict
    sources: dict[str, str]
    reward_model: torch.nn.Module
    value_model: models.ValueModel
    posts: dict[str, Post]  # the held-out posts of the embedded world, by the text that people see
    reward_tokenizer: object = None  # of a ready-made reward model; others read with the policy's

    @property
    def template(self) -> corpora.Template:
        return corpora.ADAPTERS[self.recipe.data.sft].template if self.recipe.data else corpora.TLDR


def run(recipe: Recipe, paths: Paths, host: str, port: int) -> None:
    """Show the page at http://HOST:PORT until it is stopped. Raises UsageError at once if that cannot be."""
    _gradio()
    if not 0 < port < 2**16:
        raise UsageError(f"--port {port} cannot be: choose one from 1 to {2**16 - 1}, such as 7860")
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}, port {port} ({error.strerror}): choose another --host or --port"
        ) from error
    if host not in ("127.0.0.1", "localhost"):
        print(f"whoever reaches {host} can use this demo: leave --host out to keep it to this machine")
    try:
        serve(build_page(open_checkpoints(recipe, paths)), host, port)
    except KeyboardInterrupt:
        pass  # Ctrl-C is how it is stopped


def open_checkpoints(recipe: Recipe, paths: Paths) -> Cast:
    """The learner's own checkpoints or the shipped snapshots. Without a PPO policy its source says how to train one."""
    found = {stage: models.find_checkpoint(recipe, paths, stage) for stage in ("base", "sft", "reward")}
    try:
        found["ppo"] = models.find_checkpoint(recipe, paths, "ppo")
    except UsageError as error:
        missing = str(error)
    folders, sources = ({stage: pair[i] for stage, pair in found.items()} for i in (0, 1))
    return open_models(recipe, folders, sources if "ppo" in found else sources | {"ppo": missing})


def open_models(recipe: Recipe, names: dict[str, str], sources: dict[str, str] | None = None) -> Cast:
    """The models called `names`, folders or hub names of "base", "sft", "reward" and, if there is one, "ppo"."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = models.load_tokenizer(recipe.policy)
    policies = {stage: models.load_policy(names[stage], tokenizer).to(device) for stage in STAGES if stage in names}
    load = models.load_ready_made if recipe.reward_model else lambda name: (models.load_reward_model(name), None)
    reward_model, reward_tokenizer = load(names["reward"])
    value_model = models.value_model_from(policies["sft"] if recipe.reward_model else reward_model).to(device)
    posts = [] if recipe.data else data.held_out_posts(recipe.eval.split, recipe.eval.prompts)
    return Cast(recipe, tokenizer, policies, names | (sources or {"ppo": names.get("ppo", "there is no PPO policy here")}),
                reward_model.to(device), value_model, {post.context: post for post in posts}, reward_tokenizer)  # fmt: skip


# -------------------------------------------------------------------------------------------------- one request


def as_prompt(cast: Cast, text: str) -> str:
    """What the models read for what a person wrote: the template and its cue. Bare text is a post's body, or what is asked.

    Raises UsageError for an empty or a too long text.
    """
    text = (text or "").replace("\r\n", "\n").strip().removesuffix(cast.template.cue.strip()).rstrip()
    if not text:
        raise UsageError("There is no post yet: write one, or press “Draw a test post”.")
    if cast.template is not corpora.TLDR:
        prompt = cast.template.render({"instruction": text})
    elif "POST:" in text:
        prompt = text + cast.template.cue
    else:
        prompt = cast.template.render({"subreddit": "advice", "title": "Need advice", "post": text})
    limit = cast.recipe.max_prompt_tokens
    if len(text) > MAX_CHARACTERS:
        raise UsageError(
            f"Your post has {len(text):,} characters and the models read {limit} tokens: please shorten it."
        )
    tokens = len(data.encode_prompts(cast.tokenizer, [prompt], 10**9)[0])
    if tokens > limit:
        raise UsageError(
            f"Your post is too long: it has {tokens:,} tokens ({len(text):,} characters) and the models read at most {limit}. "
            f"Please shorten it to about {int(len(text) * limit / tokens * 0.95):,} characters."
        )
    return prompt


def check_settings(cast: Cast, temperature, max_new_tokens, seed) -> tuple[float, int, int]:
    """The sampling controls as numbers. Raises UsageError where one is empty or out of bounds."""
    bounds = {"temperature": (temperature, 0, 2), "number of new tokens": (max_new_tokens, 1, most_new_tokens(cast)),
              "seed": (seed, 0, 2**32 - 1)}  # fmt: skip
    for name, (value, low, high) in bounds.items():
        if not isinstance(value, int | float) or not low <= value <= high:
            raise UsageError(f"The {name} must be a number from {low} to {high}.")
    return float(temperature), int(max_new_tokens), int(seed)


def most_new_tokens(cast: Cast) -> int:
    return data.context_length(cast.policies["sft"]) - cast.recipe.max_prompt_tokens


def answers(
    cast: Cast, prompt: str, temperature: float, max_new_tokens: int, seed: int
) -> Iterator[dict[str, Rollout]]:
    """The answer of each stage so far, all drawn with the same noise: yields {stage: Rollout} after each round of tokens."""
    streams = {
        stage: generate_stream(policy, cast.tokenizer, [prompt], max_new_tokens, temperature, seed)
        for stage, policy in cast.policies.items()
    }
    written = {}
    while streams:
        for stage in list(streams):
            try:
                written[stage] = next(streams[stage])
            except StopIteration:
                del streams[stage]
        if streams:
            yield dict(written)


def token_lens(cast: Cast, rollout: Rollout) -> tuple[list[dict], str, str]:
    """One row a token of an answer, and the names of the policy that wrote it and of its reference.

    Rows are {"token", "logprob", "kl", "value"}: log p, log p - log p_ref (nats, what PPO's reward counts, at PPO's
    temperature) and the critic's value of the state in which the token was chosen (units of reward-model score).
    The answer is PPO's against SFT; without a PPO policy, SFT's against base.
    """
    stage, ref = ("ppo", "sft") if "ppo" in cast.policies else ("sft", "base")
    ids, mask, temperature = rollout.input_ids, rollout.attention_mask, cast.recipe.ppo.temperature
    last = rollout.response_mask.shape[1]
    with torch.no_grad():
        logprobs, ref_logprobs = (
            token_logprobs(cast.policies[name], ids, mask, temperature, last)[0] for name in (stage, ref)
        )
        values = cast.value_model(ids, mask)[0, rollout.prompt_length - 1 : -1]
    rows = [
        {"token": _spell(cast.tokenizer, token), "logprob": logprob, "kl": logprob - ref_logprob, "value": value}
        for token, logprob, ref_logprob, value in zip(
            ids[0, rollout.prompt_length :].tolist(),
            logprobs.tolist(),
            ref_logprobs.tolist(),
            values.tolist(),
            strict=True,
        )
    ]
    return rows, stage, ref


def _spell(tokenizer, token: int) -> str:
    return " EOS" if token == tokenizer.eos_token_id else tokenizer.decode([token])


def respond(cast: Cast, text: str, temperature, max_new_tokens, seed) -> Iterator[tuple[str, str]]:
    """One request: yields (answers, token view) as HTML, while the answers grow and at last with all scores.

    Bad input and broken weights become a notice in place of the answers.
    """
    try:
        prompt = as_prompt(cast, text)
        settings = check_settings(cast, temperature, max_new_tokens, seed)
        shown = 0.0
        for written in answers(cast, prompt, *settings):
            if time.monotonic() - shown > 0.05:
                yield cards(cast, {stage: _text(rollout) for stage, rollout in written.items()}), ""
                shown = time.monotonic()
        texts = {stage: rollout.texts[0] for stage, rollout in written.items()}
        finished = {stage: bool(rollout.finished[0]) for stage, rollout in written.items()}
        scores = score(cast, prompt, list(texts.values()), list(finished.values()))
        post = cast.posts.get(prompt.removesuffix(cast.template.cue))
        verdicts = {
            stage: Verdict(score, finished[stage], written[stage].response_mask.shape[1],
                           explain(post, texts[stage]) if post else None)
            for stage, score in zip(texts, scores.tolist(), strict=True)
        }  # fmt: skip
        rows, stage, ref = token_lens(cast, written["ppo" if "ppo" in written else "sft"])
        yield cards(cast, texts, verdicts), lens(rows, stage, ref, verdicts[stage].score, cast.recipe)
    except (UsageError, TrainingFailure) as error:
        yield f'<p class="notice" role="alert">{html.escape(str(error))}</p>', ""


def score(cast: Cast, prompt: str, texts: list[str], finished: list[bool]) -> torch.Tensor:
    """Reward-model scores: (B,). Text that was cut off may encode to more tokens than it was written with; if there are too
    many for the context, the prompt loses its beginning."""
    tokenizer = cast.reward_tokenizer or cast.tokenizer
    longest = max(map(len, data.encode_completions(tokenizer, texts, finished)))
    room = max(1, data.context_length(cast.reward_model) - longest)
    return models.score_responses(cast.reward_model, tokenizer, [prompt] * len(texts), texts, finished, room)


def _text(rollout: Rollout) -> str:
    return rollout.texts[0].rstrip("\ufffd")  # a character whose last bytes are still to come


def draw_post(cast: Cast, other_than: str = "") -> str:
    """A held-out post of the embedded world, not the one that is shown."""
    return random.SystemRandom().choice([text for text in cast.posts if text != other_than])


# --------------------------------------------------------------------------------------------------------- HTML


@dataclass(frozen=True)
class Verdict:
    score: float  # of the reward model
    finished: bool
    tokens: int
    gold: list[tuple[str, float]] | None  # the judge's items, where it knows the post


def cards(cast: Cast, texts: dict[str, str], verdicts: dict[str, Verdict] | None = None) -> str:
    """The answers side by side; without `verdicts` they are still being written."""
    return f'<div class="cards">{"".join(_card(cast, stage, texts, verdicts) for stage in STAGES)}</div>'


def _card(cast: Cast, stage: str, texts: dict, verdicts: dict | None) -> str:
    source = html.escape(cast.sources[stage])
    head = f'<article class="card" id="card-{stage}"><h3>{STAGES[stage]}</h3>'
    if stage not in cast.policies:
        return f'{head}<p class="notice">No PPO policy to show: {source}.</p></article>'
    head += f'<p class="source">{source}</p>'
    text = html.escape(texts.get(stage, ""))
    if verdicts is None:
        return f'{head}<p class="answer">{text}<span class="cursor">▍</span></p></article>'
    verdict = verdicts[stage]
    end = "and EOS" if verdict.finished else "and no EOS: cut off"
    count = verdict.tokens - verdict.finished
    body = f'<p class="answer">{text or "<em>(nothing)</em>"}</p><p class="source">{count} tokens {end}</p>'
    body += f'<p class="score">reward model <b>{number(verdict.score)}</b></p>'
    if verdict.gold is None and cast.posts:
        body += '<p class="source">No gold score: the judge knows only the drawn posts, unchanged.</p>'
    elif verdict.gold is not None:
        items = "".join(
            f'<tr class="{_sign(points)}"><td>{html.escape(item)}</td><td>{number(points)}</td></tr>'
            for item, points in verdict.gold
        )
        total = round(sum(points for _, points in verdict.gold), 6)
        body += f'<p class="score">gold judge <b>{number(total)}</b> of 1.00</p><table class="gold">{items}</table>'
    return f"{head}{body}</article>"


def number(x: float) -> str:
    """Two decimals, with a sign unless they are zero."""
    return "0.00" if round(x, 2) == 0 else f"{x:+.2f}".replace("-", "−")


def _sign(points: float) -> str:
    return "earned" if points > 0 else "lost" if points < 0 else "missing"


def lens(rows: list[dict], stage: str, ref: str, score: float, recipe: Recipe) -> str:
    """The token view: every token of the answer coloured by its KL term, and again by the critic's value."""
    policy, reference = STAGES[stage], STAGES[ref]
    total = sum(row["kl"] for row in rows)
    if stage == "ppo":
        reading = f"PPO's reward pays β = {recipe.ppo.kl_coef:g} for each of them"
    else:
        reading = "there is no PPO policy yet, so this is SFT seen from the base model"
    kl = _strip(
        "kl", rows, f"Where {policy} leaves {reference}: log p<sub>{policy}</sub> − log p<sub>{reference}</sub>, nats",
        f"likelier under {reference}", f"likelier under {policy}",
        f"Together {number(total)} nats, one sample of KL({policy} ‖ {reference}); {reading}. A single sample may be negative; "
        "the mean over many is not.",
    )  # fmt: skip
    start = "a copy of the reward model, read at every token, though it has never judged half a summary"
    if recipe.reward_model:
        start = "the SFT model under a head of zeros, since the reward model reads other tokens"
    value = _strip(
        "value", rows, "What the critic expects when it chooses the token: value, in units of reward-model score",
        "below SFT references", "above SFT references",
        f"The critic that PPO starts from: {start}. The critic that PPO trained is not kept, so this is not it. The reward model's score of the whole answer is {number(score)}; 0 is "
        "its mean on SFT references.",
    )  # fmt: skip
    return f'<section class="lens"><h3>The {policy} answer, token by token</h3>{kl}{value}</section>'


def _strip(key: str, rows: list[dict], title: str, low: str, high: str, reading: str) -> str:
    scale = max(1.0, *(abs(row[key]) for row in rows)) if rows else 1.0
    tokens = "".join(_token(row, key, scale) for row in rows)
    ends = (f"<span><b>{sign}{scale:.1f}</b><br>{words}</span>" for sign, words in (("−", low), ("+", high)))
    bar = f'<span class="bar" style="background:linear-gradient(90deg,{colour(-1)},{colour(0)},{colour(1)})"></span>'
    legend = f'<div class="legend">{bar.join(ends)}</div>'
    return f'<div class="strip" id="lens-{key}"><h4>{title}</h4>{legend}<div class="tokens">{tokens}</div><p>{reading}</p></div>'


def _token(row: dict, key: str, scale: float) -> str:
    text = row["token"]
    detail = f"log p {number(row['logprob'])}, KL {number(row['kl'])}, value {number(row['value'])}"
    return (
        f'<span class="token{"" if text.startswith(" ") else " joined"}" style="background:{colour(row[key] / scale)}" '
        f'title="{detail}"><span>{html.escape(text.strip() or repr(text))}</span><small>{number(row[key])}</small></span>'
    )


BLUE, WHITE, ORANGE = (100, 170, 238), (247, 247, 247), (240, 150, 40)  # told apart with every kind of colour blindness


def colour(x: float) -> str:
    """Blue at -1, white at 0, orange at 1; black text on it has a contrast of at least 7."""
    x = min(1.0, max(-1.0, x if math.isfinite(x) else 0.0))
    end = ORANGE if x > 0 else BLUE
    return "#" + "".join(f"{round(w + (e - w) * abs(x)):02x}" for w, e in zip(WHITE, end, strict=True))


STYLE = """
.gradio-container {max-width: 1240px !important; margin: 0 auto !important}
#answers, #lens, #answers .html-container, #lens .html-container {padding: 0 !important}
.cards {display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 12px}
.card, .lens {border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 12px 16px; overflow-wrap: anywhere}
.card h3, .lens h3 {margin: 0 0 4px; font-size: 1.1rem}
.source {font-size: .82rem; opacity: .8; margin: 0 0 8px}
.answer {font-size: 1.05rem; line-height: 1.45; margin: 0 0 8px; white-space: pre-wrap; min-height: 3em}
.score {margin: 8px 0 4px} .score b {font-variant-numeric: tabular-nums}
.gold {width: 100%; border: 0 !important; border-collapse: collapse; font-size: .85rem}
.gold td {padding: 3px 4px !important; border: 0 !important; vertical-align: top}
.gold tr {border: 0 !important; border-top: 1px solid var(--border-color-primary) !important}
.gold td:last-child {text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums}
.gold .earned td:first-child::before {content: "✓ "} .gold .lost td:first-child::before {content: "✗ "}
.gold .missing td:first-child::before {content: "– "} .gold .lost td {font-weight: 600} .gold .missing td {opacity: .8}
.notice {border-left: 4px solid #e69f00; padding: 8px 12px; margin: 4px 0; overflow-wrap: anywhere}
.strip {margin-top: 16px} .strip h4 {margin: 0 0 6px; font-size: .95rem} .strip p {font-size: .85rem; margin: 8px 0 0}
.legend {display: flex; align-items: center; gap: 8px; font-size: .8rem; line-height: 1.2; margin-bottom: 8px}
.legend span:first-child {text-align: right} .legend .bar {flex: 0 0 90px; height: 14px; border-radius: 3px}
.tokens {display: flex; flex-wrap: wrap; gap: 4px}
.token {display: inline-flex; flex-direction: column; align-items: center; padding: 2px 5px; border-radius: 4px; color: #111}
.token.joined {margin-left: -4px; border-radius: 0 4px 4px 0; padding-left: 3px}
.token span {white-space: pre; font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .95rem; color: #111}
.token small {font-size: .72rem; color: #111; font-variant-numeric: tabular-nums}
"""


# --------------------------------------------------------------------------------------------------------- page


def _gradio():
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("GRADIO_RUN_HISTORY", "False")
    try:
        import gradio
    except ImportError as error:
        raise UsageError(
            "the demo needs gradio, which is not installed: run `pip install -e '.[demo]'` in the course's folder"
        ) from error
    return gradio


def build_page(cast: Cast):
    """The page, a `gradio.Blocks`."""
    gr = _gradio()
    with gr.Blocks(title="RLHF: base, SFT and PPO side by side") as page:
        gr.Markdown(
            "# Talk to the models\nThree models summarise the same post with the same random numbers: the **base** model, the one "
            "fine-tuned on demonstrations (**SFT**), and the one trained against the reward model (**PPO**)."
        )
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                post = gr.Textbox(
                    next(iter(cast.posts), ""), label="Post", lines=9, max_lines=14, elem_id="post",
                    placeholder="Write a post, or draw one. Text without SUBREDDIT, TITLE and POST is read as a post's body.",
                )  # fmt: skip
            with gr.Column(scale=2, min_width=300):
                temperature = gr.Slider(
                    0, 2, cast.recipe.eval.temperature, step=0.05, label="Temperature", elem_id="temperature",
                    info="0 takes the most probable token; 1 is what PPO trains",
                )  # fmt: skip
                most = most_new_tokens(cast)
                new = min(cast.recipe.max_new_tokens, most)
                tokens = gr.Slider(1, most, new, step=1, label="Most new tokens", elem_id="max-new-tokens")
                seed = gr.Number(1, label="Seed", precision=0, elem_id="seed", info="the same seed, the same answers")
        with gr.Row():
            draw = gr.Button("Draw a test post", elem_id="draw", min_width=150, visible=bool(cast.posts))
            go = gr.Button("Summarise", variant="primary", elem_id="go", min_width=150)
        shown, seen = gr.HTML(elem_id="answers"), gr.HTML(elem_id="lens")

        def request(*values):
            yield from respond(cast, *values)

        asked = go.click(
            request, [post, temperature, tokens, seed], [shown, seen], show_progress="hidden", concurrency_limit=4
        )
        draw.click(
            lambda text: (draw_post(cast, text), "", ""),
            post,
            [post, shown, seen],
            show_progress="hidden",
            cancels=asked,
        )
    return page


def serve(page, host: str | None = "127.0.0.1", port: int | None = 7860, **options):
    """Open the page to browsers until it is stopped; `options` go to gradio's `launch`.

    `host` and `port` None leave both to gradio, as a Space needs it.
    """
    gr = _gradio()
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(button_primary_background_fill="*primary_700", block_info_text_color="*neutral_600")
    return page.launch(server_name=host, server_port=port, theme=theme, css=STYLE, footer_links=[], ssr_mode=False,
                       **options)  # fmt: skip


# -------------------------------------------------------------------------------------------------------- Space


CARD = """---
title: {title}
emoji: 💬
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
license: mit
short_description: Base, SFT and PPO side by side, token by token
{models}---

# {title}

Three stages of RLHF answer the same post: the base model, the supervised model, and the one that PPO trained against a
reward model. Each answer comes with its reward-model score and, for posts of the embedded world, the items of the gold
judge. The token view shows where the PPO policy leaves its reference, and what the critic expects.

Recipe `{recipe}`. The models:

{rows}

`app.py` runs the demo of the library in `rlhf_lib/`.
"""

APP = '''"""The demo of rlhf_lib as a Space."""

from rlhf_lib import demo
from rlhf_lib.recipes import get_recipe

MODELS = {models}
RECIPE = get_recipe({recipe}, overrides={overrides})

page = demo.build_page(demo.open_models(RECIPE, MODELS))

if __name__ == "__main__":
    demo.serve(page, host=None, port=None)
'''

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy", "ipython", "tqdm")  # what the demo imports


def write_space(folder, recipe: Recipe, names: dict[str, str], title: str = "RLHF side by side") -> Path:
    """A folder ready to be a Hugging Face Space: app.py, requirements.txt, README.md, the library and the models.

    `names` are hub names or folders of "base", "sft", "reward" and, if there is one, "ppo"; folders are copied to
    `models/STAGE`. Raises UsageError if `folder` holds something already or a name is missing.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: give a new folder for the Space")
    if missing := {"base", "sft", "reward"} - set(names):
        raise UsageError(f"a Space needs the {' and '.join(sorted(missing))} model: give its folder or hub name")
    with atomic_folder(folder) as fresh:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(Path(__file__).parent, fresh / "rlhf_lib", ignore=ignored)
        placed = {}
        for stage, name in names.items():
            local = not str(name).startswith("tiny:") and Path(name).is_dir()
            placed[stage] = f"models/{stage}" if local else str(name)
            if local:
                shutil.copytree(
                    name, fresh / "models" / stage, ignore=shutil.ignore_patterns("adapter", "settings.json")
                )
        overrides = {"policy": placed["base"]} | {
            key: getattr(recipe, key) for key in ("max_prompt_tokens", "max_new_tokens")
        }
        (fresh / "app.py").write_text(
            APP.format(models=repr(placed), recipe=repr(recipe.name), overrides=repr(overrides))
        )
        pins = [f"{name}=={version(name).split('+')[0]}" for name in PACKAGES]
        (fresh / "requirements.txt").write_text("\n".join(pins) + "\n")
        hub = [name for name in placed.values() if not name.startswith(("tiny:", "models/"))]
        card = CARD.format(
            title=title, gradio=GRADIO, recipe=recipe.name,
            models="models:\n" + "".join(f"  - {name}\n" for name in dict.fromkeys(hub)) if hub else "",
            rows="\n".join(f"- {stage}: `{name}`" for stage, name in placed.items()),
        )  # fmt: skip
        (fresh / "README.md").write_text(card)
    return folder
