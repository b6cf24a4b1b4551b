"""Figures, each with the CSV it was drawn from, and tables for the notebooks and the README."""

import csv
import json
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator

from rlhf_lib.runtime import Paths, write_atomic, write_csv

# Okabe and Ito's palette: told apart under every common colour blindness.
COLOURS = {"base": "#999999", "sft": "#0072B2", "ppo": "#D55E00", "gold": "#E69F00", "proxy": "#56B4E9", "ink": "#222222",
           "good": "#009E73"}  # fmt: skip
NAMES = {"base": "base", "sft": "SFT", "ppo": "PPO"}
plt.rcParams.update({
    "figure.dpi": 110, "savefig.dpi": 110, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False, "figure.constrained_layout.use": True,
})  # fmt: skip


def save_figure(figure, folder: Path, name: str, rows: list[dict]):
    """Write `name`.png and, beside it, the rows it was drawn from as `name`.csv; returns the figure."""
    folder = Path(folder)
    write_atomic(folder / f"{name}.png", lambda p: figure.savefig(p, format="png"))
    write_csv(folder / f"{name}.csv", rows)
    return figure


def read_csv(path: Path) -> list[dict]:
    """Rows of a metrics file as floats; empty cells are left out."""
    with open(path, newline="") as file:
        return [{key: float(value) for key, value in row.items() if value != ""} for row in csv.DictReader(file)]


def read_samples(path: Path) -> list[dict]:
    """Rows of `samples.csv`: texts as they are, reward-model scores and, of the embedded world, gold as floats."""
    with open(path, newline="") as file:
        return [
            {key: float(value) if key.endswith(("_gold", "_score")) else value for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def series(rows: list[dict], key: str) -> tuple[list, list]:
    """Steps and values of the rows that hold `key`."""
    kept = [row for row in rows if key in row]
    return [row["step"] for row in kept], [row[key] for row in kept]


def plot_sft(rows: list[dict], folder: Path):
    figure, axis = plt.subplots(figsize=(7, 3.6))
    axis.plot(*series(rows, "loss"), color=COLOURS["sft"], alpha=0.35, lw=1, label="training batch")
    axis.plot(*series(rows, "validation_loss"), "o-", color=COLOURS["sft"], ms=4, label="validation")
    axis.set(
        xlabel="optimizer step", ylabel="loss (nats a completion token)", title="SFT: loss on completions and their EOS"
    )
    axis.legend()
    return save_figure(figure, folder, "sft_loss", rows)


def plot_reward(rows: list[dict], report: dict, folder: Path):
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6))
    left.plot(*series(rows, "loss"), color=COLOURS["sft"], alpha=0.35, lw=1, label="training batch")
    left.plot(*series(rows, "validation_loss"), "o-", color=COLOURS["sft"], ms=4, label="validation")
    left.axhline(np.log(2), color=COLOURS["ink"], ls=":", lw=1)
    left.annotate(
        "ln 2: no idea", (0.98, np.log(2)), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9
    )
    left.set(xlabel="optimizer step", ylabel="loss (nats a pair)", title="Bradley–Terry loss")
    left.legend()
    if "label_noise_ceiling" in report:  # the embedded world, where gold is known
        middle.plot(*series(rows, "gold_agreement"), "o-", color=COLOURS["gold"], ms=4, label="agrees with gold")
    middle.plot(*series(rows, "validation_accuracy"), "s-", color=COLOURS["sft"], ms=4, label="agrees with labels")
    if "label_noise_ceiling" in report:
        ceiling = report["label_noise_ceiling"]
        middle.axhline(ceiling, color=COLOURS["sft"], ls="--", lw=1, label="noise ceiling of labels")
    middle.axhline(report["length_only_label_accuracy"], color=COLOURS["base"], ls="--", lw=1, label="longer is better")
    middle.set(xlabel="optimizer step", ylabel="share of held-out pairs", ylim=(0.4, 1), title="Accuracy")
    middle.legend(fontsize=9, loc="lower right")
    bins = np.array(report["calibration_bins"])
    right.plot([0, 1], [0, 1], color=COLOURS["ink"], ls=":", lw=1)
    right.scatter(bins[:, 0], bins[:, 1], s=20 + 200 * bins[:, 2] / bins[:, 2].max(), color=COLOURS["sft"], alpha=0.8)
    right.set(xlabel="predicted P(first is preferred)", ylabel="observed share", xlim=(0, 1), ylim=(0, 1),
              title=f"Calibration (error {report['calibration_error']:.3f})")  # fmt: skip
    return save_figure(figure, folder, "reward_training", rows)


def plot_ppo(rows: list[dict], folder: Path):
    panels = [
        ("objective/scores", "reward-model score", "Score"), ("objective/kl", "nats a sequence", "KL to SFT"),
        ("objective/entropy", "nats a token", "Entropy"), ("policy/clipfrac", "share of tokens", "Clip fraction"),
        ("val/length", "tokens", "Length"), ("val/eos_rate", "share of responses", "Ends with EOS"),
    ]  # fmt: skip
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), sharex=True)
    for axis, (key, unit, title) in zip(axes.flat, panels, strict=True):
        axis.plot(*series(rows, key), color=COLOURS["ppo"], lw=1.6)
        axis.set(title=title, ylabel=unit)
    axes[1, 2].set_ylim(min(0.85, axes[1, 2].get_ylim()[0]), 1.005)
    for axis in axes[1]:
        axis.set_xlabel("PPO update")
    return save_figure(figure, folder, "ppo_curves", rows)


def plot_proxy_and_gold(rows: list[dict], folder: Path):
    """What PPO maximises beside what we want, on validation posts: the figure to remember."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 5.2), sharex=True)
    above.plot(*series(rows, "eval/scores"), "s-", color=COLOURS["proxy"], ms=4)
    above.set(ylabel="reward-model score", title="What PPO sees: the proxy")
    below.plot(*series(rows, "eval/gold"), "o-", color=COLOURS["gold"], ms=4)
    below.axhline(1, color=COLOURS["good"], ls=":", lw=1.2)
    below.set(xlabel="PPO update", ylabel="gold score", title="What we want: the truth (dotted: best honest summary)")
    kept = [
        {k: row[k] for k in ("step", "eval/scores", "eval/gold", "objective/kl")} for row in rows if "eval/gold" in row
    ]
    return save_figure(figure, folder, "proxy_and_gold", kept)


def plot_xray(tokenizer, batch, record: dict, row: int, folder: Path, pads: int = 2, name: str = "xray"):
    """Response `row` of a rollout, one line a token, with everything that PPO computes about it.

    `batch` is the Rollout, `record` what `ppo.collect` made of it. Blue is below 0 and orange above, white is 0; each
    column has its own scale, log-probability and reference share one. The first `pads` tokens behind the end are shown
    in grey: nothing counts them.
    """
    mask = batch.response_mask[row].cpu().numpy()
    end = min(len(mask), int(mask.sum()) + pads)
    tokens = [repr(tokenizer.decode([int(i)])) for i in batch.input_ids[row, batch.prompt_length :][:end]]
    numbers = {key: value[row, :end].cpu().double().numpy() for key, value in record.items()}
    columns = {
        "log-prob\n(nats)": numbers["logprobs"], "reference\n(nats)": numbers["ref_logprobs"],
        "KL (k1)\n(nats)": numbers["logprobs"] - numbers["ref_logprobs"], "reward\n(score)": numbers["rewards"],
        "value\n(score)": numbers["values"], "advantage\n(whitened)": numbers["advantages"],
        "return\n(score)": numbers["returns"],
    }  # fmt: skip
    table, counted = np.stack(list(columns.values()), 1), mask[:end]  # (end, 7), (end,)
    scale = np.abs(table[counted]).max(0).clip(min=0.05)
    scale[:2] = scale[:2].max()
    strength = (np.abs(table) / scale).clip(max=1)[..., None]
    hue = np.where(table[..., None] < 0, to_rgb(COLOURS["sft"]), to_rgb(COLOURS["ppo"]))
    colours = np.where(counted[:, None, None], 1 - strength * (1 - hue), 0.92)  # (end, 7, 3)
    figure, axis = plt.subplots(figsize=(9, 0.26 * end + 0.9))
    axis.imshow(colours, aspect="auto")
    for i, j in np.ndindex(*table.shape):
        ink = "#888888" if not counted[i] else "white" if strength[i, j, 0] > 0.6 else COLOURS["ink"]
        axis.text(j, i, f"{round(table[i, j], 2) + 0.0:.2f}", ha="center", va="center", color=ink, fontsize=9)
    axis.set_xticks(range(len(columns)), columns, fontsize=9)
    axis.set_yticks(range(end), [f"{token}  {'●' if c else '○'}" for token, c in zip(tokens, counted, strict=True)])
    axis.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, length=0, labelsize=9)
    axis.set_ylabel("response token (● counted by the mask, ○ not)")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    names = [key.split("\n")[0] for key in columns]
    rows = [{"token": token, **dict(zip(names, line, strict=True)), "counted": int(c)}
            for token, line, c in zip(tokens, table.tolist(), counted, strict=True)]  # fmt: skip
    return save_figure(figure, folder, name, rows)


def plot_beside(
    runs: dict[str, list[dict]], correct: list[dict], panels: list[tuple[str, str]], folder: Path, name: str
):
    """Small multiples: one line of panels a run (orange), each beside the correct run (grey).

    `runs` are logged rows by title, `panels` are (metric, label with unit). A cross marks a run that was stopped. No panel
    zooms in further than to a tenth of what its metric spans in all of them, so that noise looks like noise.
    """
    shape = (len(runs), len(panels))
    figure, axes = plt.subplots(*shape, figsize=(11, 0.6 + 1.9 * len(runs)), sharex=True, squeeze=False)
    for line, (title, rows) in zip(axes, runs.items(), strict=True):
        for axis, (key, label) in zip(line, panels, strict=True):
            axis.plot(*series(correct, key), "o-", color=COLOURS["base"], ms=3, lw=2.5, label="correct run")
            steps, values = series(rows, key)
            axis.plot(steps, values, "s-", color=COLOURS["ppo"], ms=3, lw=1.4, label="with the fault")
            if steps and rows[-1]["step"] < correct[-1]["step"]:
                axis.plot(steps[-1], values[-1], "X", color=COLOURS["ink"], ms=8)
            axis.set_ylabel(label, fontsize=9)
            axis.tick_params(labelsize=9)
        line[0].set_title(title, loc="left", fontsize=11, fontweight="bold")
    for column, (key, _) in zip(axes.T, panels, strict=True):
        values = [x for rows in (correct, *runs.values()) for x in series(rows, key)[1]]
        least = (max(values) - min(values)) / 10 if values else 0
        for axis in column:
            low, high = axis.get_ylim()
            if high - low < least:
                axis.set_ylim((low + high - least) / 2, (low + high + least) / 2)
        column[-1].set_xlabel("PPO update", fontsize=9)
        column[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=9)
    keys = ("step", *(key for key, _ in panels))
    kept = [{"run": title} | {key: row[key] for key in keys if key in row}
            for title, rows in {"correct": correct, **runs}.items() for row in rows]  # fmt: skip
    return save_figure(figure, folder, name, kept)


def plot_detection(matrix: dict[str, dict], folder: Path, name: str = "detection"):
    """Fault by check: in which share of the seeds did the check see the fault? And did the predicted signature appear?

    `matrix` is that of `clinic.matrix`. Left of the line is the doctor, right of it the alarms during training; blue is the
    signature, which needs the correct run beside it.
    """
    cases, checks = list(matrix), list(next(iter(matrix.values()))["detected"])
    shares = np.array([[np.mean(row["detected"][check]) for check in checks] for row in matrix.values()])
    signature = np.array([[np.mean(row["signature"])] for row in matrix.values()])
    table = np.concatenate([shares, signature], 1)  # (cases, checks + 1)
    hue = np.array([to_rgb(COLOURS["ppo"])] * len(checks) + [to_rgb(COLOURS["sft"])])
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.36 * len(cases)))
    axis.imshow(1 - table[..., None] * (1 - hue), aspect="auto")
    for i, j in np.ndindex(*table.shape):
        if table[i, j] > 0:
            ink = "white" if table[i, j] > 0.6 else COLOURS["ink"]
            axis.text(j, i, f"{table[i, j]:.1f}", ha="center", va="center", color=ink, fontsize=9)
    doctor = sum(len(check) == 1 for check in checks)
    axis.hlines(np.arange(len(cases) + 1) - 0.5, -0.5, len(checks) + 0.5, color="#dddddd", lw=0.8)
    axis.axvline(doctor - 0.5, color=COLOURS["ink"], lw=1.2)
    axis.axvline(len(checks) - 0.5, color=COLOURS["ink"], lw=1.2)
    axis.set_xticks(range(len(checks) + 1), [*checks, "predicted\nsignature"], fontsize=9)
    axis.set_yticks(range(len(cases)), [case.replace("_", " ") for case in cases], fontsize=9)
    axis.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, length=0)
    axis.set(xlabel="check of the doctor (a–f), or alarm during training", ylabel="fault")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    names = [*checks, "signature"]
    rows = [{"fault": case} | dict(zip(names, map(float, line), strict=True))
            for case, line in zip(cases, table, strict=True)]  # fmt: skip
    return save_figure(figure, folder, name, rows)


def plot_comparison(report: dict, folder: Path):
    stages = list(report["models"])
    panels = {"gold": "gold (dotted: best honest)", "scores": "reward-model score", "rougeL": "ROUGE-L F",
              "length": "tokens a summary"}  # fmt: skip
    panels = {key: unit for key, unit in panels.items() if key in report["models"][stages[0]]}  # real data have no gold
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.4))
    rows = []
    for axis, (key, unit) in zip(axes, panels.items(), strict=True):
        for i, stage in enumerate(stages):
            value = report["models"][stage][key]
            mean, error = value, None
            if isinstance(value, dict):
                mean, error = value["mean"], [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
            axis.bar(i, mean, yerr=error, color=COLOURS[stage], capsize=4, width=0.65)
            axis.annotate(
                f"{mean:.{1 if key == 'length' else 2}f}",
                (i, mean),
                xytext=(0, 6 if mean >= 0 else -14),
                textcoords="offset points",
                ha="center",
                bbox={"fc": "white", "ec": "none", "pad": 0.5},
            )
            rows.append({"model": stage, "metric": key, "mean": mean})
        axis.axhline(0, color=COLOURS["ink"], lw=0.8)
        axis.margins(y=0.18)
        if key == "gold":
            axis.axhline(1.0, color=COLOURS["good"], ls=":", lw=1.2)
        axis.set_xticks(range(len(stages)), [NAMES[s] for s in stages])
        axis.set_title(unit, fontsize=11)
        axis.grid(axis="x", visible=False)
    return save_figure(figure, folder, "comparison", rows)


def plot_distributions(samples: list[dict], stages: list[str], folder: Path):
    """Scores of each model's summaries as cumulative shares, so that no bin width hides anything; gold where it is known."""
    keys = {key: unit for key, unit in (("gold", "gold score"), ("score", "reward-model score"))
            if f"{stages[0]}_{key}" in samples[0]}  # fmt: skip
    figure, axes = plt.subplots(1, len(keys), figsize=(5 * len(keys), 3.6), squeeze=False)
    for axis, (key, unit) in zip(axes[0], keys.items(), strict=True):
        for stage, style in zip(stages, (":", "--", "-"), strict=False):
            values = np.sort([row[f"{stage}_{key}"] for row in samples])
            axis.step(values, np.arange(1, len(values) + 1) / len(values), where="post", color=COLOURS[stage], ls=style,
                      lw=2, label=NAMES[stage])  # fmt: skip
        axis.set(xlabel=unit, ylabel="share of summaries at or below")
        axis.legend()
    kept = [{k: row[k] for k in row if k.endswith(("_gold", "_score"))} for row in samples]
    return save_figure(figure, folder, "distributions", kept)


def draw_all(paths: Paths) -> Path:
    """Every figure whose metrics are there, drawn and closed; returns the folder."""
    evaluation, plots = paths.evaluation, paths.plots
    if (evaluation / "sft_metrics.csv").exists():
        plot_sft(read_csv(evaluation / "sft_metrics.csv"), plots)
    if (evaluation / "reward_metrics.csv").exists():
        report = json.loads((evaluation / "reward.json").read_text())
        if "ready_made" not in report:
            plot_reward(read_csv(evaluation / "reward_metrics.csv"), report, plots)
    if (evaluation / "ppo_metrics.csv").exists():
        rows = read_csv(evaluation / "ppo_metrics.csv")
        plot_ppo(rows, plots)
        if any("eval/gold" in row for row in rows):
            plot_proxy_and_gold(rows, plots)
    if (evaluation / "evaluation.json").exists():
        report = json.loads((evaluation / "evaluation.json").read_text())
        plot_comparison(report, plots)
        plot_distributions(read_samples(evaluation / "samples.csv"), list(report["models"]), plots)
    plt.close("all")
    return plots


# ------------------------------------------------------------------------------------------------------ tables


def comparison_table(report: dict) -> str:
    """Markdown: one row a model, one line a comparison. Gold and its columns are the embedded world's."""
    gold = "judge" not in report
    lines = [
        f"{report['prompts']} {report['split']} posts, recipe {report['recipe']}, scale {report['scale']}, seed {report['seed']}",
        "",
        f"| model |{' gold [95 %] | seen / unseen |' if gold else ''} RM score | ROUGE-1/2/L | BLEU | tokens | EOS |",
        f"|---|{'---|---|' if gold else ''}---|---|---|---|---|",
    ]
    for stage, m in report["models"].items():
        columns = ""
        if gold:
            g = m["gold"]
            split = " / ".join("–" if m[k] is None else f"{m[k]:.2f}" for k in ("gold_seen", "gold_unseen"))
            columns = f" {g['mean']:.3f} [{g['low']:.3f}, {g['high']:.3f}] | {split} |"
        lines.append(
            f"| {NAMES[stage]} |{columns} {m['scores']:.2f} "
            f"| {m['rouge1']:.3f} / {m['rouge2']:.3f} / {m['rougeL']:.3f} | {m['bleu']:.1f} | {m['length']:.1f} | {m['eos_rate']:.1%} |"
        )
    lines.append("")
    for name, c in report["comparisons"].items():
        a, b = (NAMES[s] for s in name.split("_over_"))
        d = c["rougeL_difference"]
        lines.append(
            f"{a} beats {b} by {'gold' if gold else 'reward-model score'} on {c['rate']:.3f} [{c['low']:.3f}, {c['high']:.3f}] "
            f"of posts (ties one half: {c['wins']} wins, {c['ties']} ties, {c['losses']} losses); ROUGE-L difference "
            f"{d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]."
            + ("" if gold else f" At equal length the model would say {c['length_controlled']:.3f}.")
        )
    if not gold:
        lines.append(
            "The reward model is what PPO was trained on: its verdict is a proxy for what people prefer, no proof."
        )
    if "ppo_kl" in report:
        kl = report["ppo_kl"]
        lines.append(
            f"KL(PPO || SFT): {kl['check/kl_exact']:.2f} nats a sequence, sampled {kl['check/kl_sampled']:.2f}."
        )
    return "\n".join(lines)


def clinic_table(summary: dict) -> str:
    """Markdown of the clinic: a line a fault, and for each check in how many seeds it saw the fault."""
    matrix, seeds = summary["matrix"], summary["seeds"]
    checks = list(next(iter(matrix.values()))["detected"])
    lines = [
        f"Seeds {', '.join(map(str, seeds))}: in how many of {len(seeds)} each check saw the fault",
        "",
        f"| fault | {' | '.join(checks)} | predicted signature |",
        "|---|" + "---|" * (len(checks) + 1),
    ]
    for case, row in matrix.items():
        counts = " | ".join(str(sum(row["detected"][check]) or "·") for check in checks)
        lines.append(f"| `{case}` | {counts} | {sum(row['signature'])} of {len(row['seeds'])} |")
    own = [f"`{case}` {', '.join(map(str, row['seeds']))}" for case, row in matrix.items() if row["seeds"] != seeds]
    if own:
        lines += ["", f"Seeds of their own: {'; '.join(own)}"]
    return "\n".join(lines)


def scaling_table(rows: list[dict]) -> str:
    """Markdown of `scaling.summary`: means over the seeds where both models have the same size, and their difference."""
    lines = ["| stage | quantity | small | medium | medium − small | told apart |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row["contrast"] == "same size":
            small, medium = (f"{sum(row[size]) / len(row['seeds']):.4g}" for size in ("small", "medium"))
            interval = f" [{row['low']:.3g}, {row['high']:.3g}]" if row["low"] is not None else ""
            apart = {True: "yes", False: "no", None: "one seed"}[row["distinguishable"]]
            lines.append(
                f"| {row['stage']} | {row['quantity']} | {small} | {medium} | {row['mean']:.3g}{interval} | {apart} |"
            )
    return "\n".join(lines)


def results_table(summary: dict) -> str:
    """Markdown of `make results`: one row a quantity, its value on each seed, mean and 95 % interval over the seeds."""
    names = {
        "base gold": "gold score, base", "sft gold": "gold score, SFT", "ppo gold": "**gold score, PPO**",
        "ppo gold_seen": "gold, PPO, posts like training", "ppo gold_unseen": "gold, PPO, unseen names, problems, phrasings",
        "sft gold_unseen": "gold, SFT, unseen names, problems, phrasings",
        "ppo_over_sft rate": "PPO beats SFT by gold (ties one half)",
        "ppo_over_sft low": "the same, lower end of its 95 % interval over posts",
        "ppo kl": "KL(PPO ‖ SFT), nats a summary", "ppo eos_rate": "PPO ends with EOS",
        "sft rougeL": "ROUGE-L, SFT", "ppo rougeL": "ROUGE-L, PPO",
        "ppo_over_sft rougeL difference low": "ROUGE-L difference PPO − SFT, lower end",
        "reward gold_agreement": "reward model agrees with gold on held-out SFT pairs",
        "reward length_only_gold_agreement": "“longer is better” agrees with gold on the same pairs",
        "reward label_accuracy": "reward model agrees with noisy labels",
        "reward label_noise_ceiling": "the best that any model can reach on those labels",
        "reward calibration_error": "calibration error of the reward model",
    }  # fmt: skip
    rows = {row["quantity"]: row for row in summary["table"]}
    seeds = " | ".join(f"seed {s}" for s in summary["seeds"])
    lines = [f"| | {seeds} | mean [95 % over seeds] |", "|---|" + "---|" * (len(summary["seeds"]) + 1)]
    for key, name in names.items():
        if key in rows:
            row = rows[key]
            values = " | ".join(f"{v:.3f}" for v in row["values"])
            lines.append(f"| {name} | {values} | {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}] |")
    return "\n".join(lines)


def samples_table(samples: list[dict], posts: int = 2) -> str:
    """Markdown of the first `posts` rows of `samples.csv`, none of them picked: the post, and what each model made of it."""
    blocks = []
    for row in samples[:posts]:
        quoted = "\n".join(f"> {line}".rstrip() for line in escape(row["prompt"], quote=False).split("\n"))
        lines = [quoted, "", "| | gold | summary |", "|---|---|---|"]
        for stage, name in NAMES.items():
            text = " ".join(escape(row[stage], quote=False).replace("|", "&#124;").split())
            lines.append(f"| {name} | {float(row[f'{stage}_gold']):.2f} | {text} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def memory_table(rows: list[dict]) -> str:
    """Markdown: for each recipe its estimates at the peak of every stage, from `estimate.estimate` on a GPU under bf16."""
    lines = [
        "| recipe | policy | parameters | SFT | reward model | PPO | optimizer steps | tokens, at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        stages = row["estimates"]
        peaks = " | ".join(f"{e['peak'] / 2**30:.2f} GiB ({e['method']})" for e in stages)
        steps, tokens = (" / ".join(f"{e[key]:,}" for e in stages) for key in ("steps", "tokens"))
        parameters = stages[0]["models"]["policy"]["parameters"]
        lines.append(
            f"| `{row['name']}` | {row['policy']} | {parameters / 1e6:,.1f} M | {peaks} | {steps} | {tokens} |"
        )
    return "\n".join(lines)


README_MARKS = {
    "results": ("<!-- results: made by `make results`, do not edit -->", "<!-- end of results -->"),
    "memory": ("<!-- memory: made by `python tests/memory.py readme`, do not edit -->", "<!-- end of memory -->"),
    "samples": ("<!-- samples: made by `make results`, do not edit -->", "<!-- end of samples -->"),
}


def readme_with(readme: str, block: str, text: str) -> str:
    """The README with `text` between the marks of one block."""
    start, end = README_MARKS[block]
    before, rest = readme.split(start)
    return f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}"
