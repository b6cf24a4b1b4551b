"""Each exercise: its stub is open, its folded solution is right, and likely mistakes are named."""

import ast
import re
from collections.abc import Callable

import pytest
import torch
from test_notebooks import NOTEBOOKS, load

from rlhf_lib import exercises
from rlhf_lib.exercises import grade


def imports(cells: list[dict]) -> dict:
    """The names that a notebook imports, its setup cell aside."""
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code" and "start(RECIPE)" not in cell["source"]:
            nodes = [n for n in ast.parse(cell["source"]).body if isinstance(n, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(nodes, []), "imports", "exec"), names)
    return names


def exercises_of(cells: list[dict]) -> dict[str, dict]:
    """{function: its stub, its solution (source texts), and the notebook's imports}."""
    found = {}
    for cell in cells:
        source = cell["source"]
        checks = re.findall(r"exercises\.check_(\w+)\((\w+)\)", source) if cell["cell_type"] == "code" else []
        for check, name in checks:
            assert check == name, f"check_{check} checks {name}"
            found[check] = {"cells": cells}
    for cell in cells:
        source = cell["source"]
        for name in found:
            if not re.search(rf"^def {name}\(", source, re.M):
                continue
            if cell["cell_type"] == "code":
                found[name]["stub"] = source
            elif match := re.search(
                r"<details><summary>Solution</summary>\n\n```python\n(.+?)```.*</details>", source, re.S
            ):
                found[name]["solution"] = match[1]
    return found


ALL = {name: exercise for path in NOTEBOOKS for name, exercise in exercises_of(load(path)).items()}


def verdict(name: str, source: str) -> str:
    """What the check says to the function that `source` defines."""
    names = imports(ALL[name]["cells"])
    exec(source, names)
    return getattr(exercises, f"check_{name}")(names[name])


# (exercise, original text of its solution, patched text, words that the message must hold)
MISTAKES = [
    # 01_supervised_finetuning/01_data_and_baseline
    ("fit_prompt", "body[start:]", "body[-room:]", "body[-0:] is body"),
    ("fit_prompt", "max(0, len(body) - room)", "len(body) - room", "stop at 0"),
    ("fit_prompt", "body[start:]", "body[:room]", "loses its end"),
    ("fit_prompt", " - len(cue)", "", "cue is not counted"),
    (
        "fit_prompt",
        "return header + body[start:] + cue",
        "return (header + body + cue)[-max_tokens:]",
        "header with it",
    ),
    (
        "clean_test_rows",
        "facts for _, facts, _ in train}\n    return [row for row in test if row[1]",
        "prompt for prompt, _, _ in train}\n    return [row for row in test if row[0]",
        "you compare prompts",
    ),
    (
        "clean_test_rows",
        "facts for _, facts, _ in train}\n    return [row for row in test if row[1]",
        "row for row in train}\n    return [row for row in test if row",
        "whole rows",
    ),
    ("clean_test_rows", "not in", "in", "rows that must go"),
    ("worth_stating", "expected > 0", "p_right > 1 / 2", "prices differ"),
    ("worth_stating", "+ (1", "- (1", "negative already"),
    ("worth_stating", "(1 - p_right) * costs", "costs", "full cost every time"),
    # 01_supervised_finetuning/02_full_finetuning
    (
        "completion_labels",
        "return ids.masked_fill(~learnt",
        "return ids.masked_fill(~learnt | (ids == 0)",
        "EOS is lost",
    ),
    ("completion_labels", "column < lengths", "column <= lengths", "one pad is learnt"),
    ("completion_labels", "column >= prompt_lengths", "column > prompt_lengths", "first completion token is lost"),
    ("completion_labels", "(column >= prompt_lengths[:, None]) & ", "", "prompt is learnt too"),
    (
        "completion_labels",
        "return ids.masked_fill(~learnt, -100)",
        "return ids.masked_fill(~learnt, -100).roll(-1, 1)",
        "shifts them once more",
    ),
    ("endings", "1 - going_on[-1]", "p_eos.sum()", "add the chances up"),
    ("endings", "1 + going_on[:-1].sum()", "1 / p_eos.mean()", "without a limit"),
    ("endings", "1 + going_on[:-1].sum()", "going_on.sum()", "first token is missing"),
    ("endings", "going_on[:-1].sum()", "going_on.sum()", "one token too long"),
    ("habit_at_temperature", "(told - left_out).sigmoid()", "told.exp()", "divide by their sum"),
    ("habit_at_temperature", " / temperature", " * temperature", "must sharpen"),
    (
        "habit_at_temperature",
        "share.log() / temperature, (1 - share).log() / temperature",
        "share / temperature, (1 - share) / temperature",
        "Divide the logits",
    ),
    # 01_supervised_finetuning/03_lora_from_scratch
    ("lora_training_bytes", "return 4 * weights, 4 * learnt", "return 4 * weights, 4 * weights", "get no gradient"),
    ("lora_training_bytes", "2 * 4 * learnt", "4 * learnt", "two numbers for each"),
    ("lora_training_bytes", "r * (n_in + n_out)", "r * n_in * n_out", "multiply the whole matrix"),
    ("lora_training_bytes", "r * (n_in + n_out)", "r * n_in", "count A alone"),
    ("lora_training_bytes", " + frozen + learnt", " + frozen", "A and B are weights"),
    ("lora_training_bytes", " + frozen + learnt", " + learnt", "held all the same"),
    ("lora_training_bytes", "4 * weights, 4 * learnt, 2 * 4 * learnt", "weights, learnt, 2 * learnt", "4 bytes"),
    ("factor_gradients", "scale * ", "", "scale is missing"),
    ("factor_gradients", "return of_a, of_b", "return of_b, of_a", "swapped"),
    ("factor_gradients", "return of_a, of_b", "return -of_a, -of_b", "sign is flipped"),
    ("factor_gradients", "= scale * ", "= scale * scale * ", "once for each factor"),
    ("swap_adapter", "alpha / A.shape[0]", "alpha", "alpha / r"),
    ("swap_adapter", "    weight = weight - alpha / A.shape[0] * B @ A\n", "", "still in the weight"),
    ("swap_adapter", "return weight + alpha / A.shape[0] * B @ A", "return weight", "new adapter is missing"),
    (
        "swap_adapter",
        "- alpha / A.shape[0] * B @ A\n    A, B, alpha = new",
        "+ alpha / A.shape[0] * B @ A\n    A, B, alpha = (new[0], -new[1], new[2])",
        "signs are turned round",
    ),
    (
        "swap_adapter",
        "A, B, alpha = new\n    return weight + alpha / A.shape[0]",
        "scale = alpha / A.shape[0]\n    A, B, alpha = new\n    return weight + scale",
        "scale both alike",
    ),
    # 01_supervised_finetuning/04_qlora_and_full_comparison
    ("unpack_nibbles", "[upper, lower]", "[lower, upper]", "are swapped"),
    ("unpack_nibbles", "torch.stack([upper, lower], -1).flatten()", "torch.cat([upper, lower])", "are neighbours"),
    ("unpack_nibbles", "packed >> 4", "packed & 240", "shift them"),
    ("unpack_nibbles", "packed & 15", "packed", "mask it"),
    ("unpack_nibbles", "torch.stack([upper, lower], -1).flatten()", "upper", "a byte holds two"),
    ("bits_per_weight", "32 / (block * group)", "32 / group", "divide by both"),
    ("bits_per_weight", "4 + 8 / block", "4 + 32 / block + 8 / block", "takes the place"),
    ("bits_per_weight", " + 32 / (block * group)", "", "scales of the scales"),
    ("bits_per_weight", "return 4 + ", "return ", "Add the 4 bits"),
    ("bits_per_weight", "if group is None", "if True", "group is ignored"),
    ("largest_model", "bits / 8", "bits", "divide by 8"),
    ("largest_model", "(4 + 4 + 4 + 4)", "(4 + 4 + 4)", "4 bytes of each trained number"),
    ("largest_model", "(4 + 4 + 4 + 4)", "(4 + 4)", "8 bytes of each trained number"),
    ("largest_model", "frozen + adapter", "frozen", "adapter is missing"),
    ("largest_model", "share * (", "(", "only share of them"),
    # 02_reward_modeling/01_preference_data
    ("pairs_of_ranking", "groups[i + 1 :]", "groups[i + 1 : i + 2]", "neighbours only"),
    ("pairs_of_ranking", "groups[i + 1 :]", "groups[i:]", "group with itself"),
    ("pairs_of_ranking", "(a, b) for", "(b, a) for", "turned round"),
    ("majority_right", "n // 2 + 1", "n // 2", "count a minority"),
    ("majority_right", "n // 2 + 1", "n", "all n are right"),
    ("majority_right", "math.comb(n, k) * ", "", "number of ways"),
    ("best_scale", "-signed_gaps / scale", "-abs(signed_gaps) / scale", "Keep the sign"),
    ("best_scale", "-signed_gaps / scale", "signed_gaps / scale", "sign turned"),
    (
        "best_scale",
        "-np.log(1 + np.exp(-signed_gaps / scale))",
        "(1 / (1 + np.exp(-signed_gaps / scale)))",
        "add logarithms",
    ),
    ("best_scale", " / scale", " * scale", "you multiply by the scale"),
    # 02_reward_modeling/02_bradley_terry_reward_model
    ("vote_loss", " + lost * F.logsigmoid(-margins)", "", "votes for b are missing"),
    ("vote_loss", "F.logsigmoid(-margins)", "F.logsigmoid(margins)", "not turned round"),
    ("vote_loss", "total / annotators.sum()", "total / len(margins)", "number of pairs"),
    ("vote_loss", "    lost =", "    votes = annotators * (votes > annotators / 2)\n    lost =", "majority's vote"),
    (
        "model_distance",
        "for p in prompt.unique():\n        difference[prompt == p] -= difference[prompt == p].mean()",
        "difference -= difference.mean()",
        "one constant",
    ),
    ("model_distance", "difference[prompt == p] -= difference[prompt == p].mean()", "pass", "no constant"),
    ("model_distance", ".sqrt()", "", "mean square"),
    (
        "pushes",
        "gradient[winner] -= surprise\n        gradient[loser] += surprise",
        "gradient[winner] += surprise\n        gradient[loser] -= surprise",
        "sign is flipped",
    ),
    ("pushes", "scores[loser] - scores[winner]", "scores[winner] - scores[loser]", "the surprise"),
    ("pushes", "-= surprise\n        gradient[loser] +=", "= -surprise\n        gradient[loser] =", "last pair only"),
    ("pushes", "        gradient[loser] += surprise\n", "", "losers are not pushed"),
    # 03_ppo_alignment/01_rollouts_and_kl
    ("response_logprobs", "prompt_length - 1 : -1", "prompt_length:", "shift is forgotten"),
    ("response_logprobs", "prompt_length - 1 : -1", "prompt_length - 2 : -2", "one column too wide"),
    ("response_logprobs", " / temperature", "", "temperature is forgotten"),
    ("response_logprobs", " / temperature", " * temperature", "Divide them"),
    ("response_logprobs", "log_softmax(-1)", "softmax(-1)", "logarithm is missing"),
    ("response_logprobs", "before.log_softmax(-1)", "before", "log_softmax is missing"),
    (
        "kl_z",
        "torch.where(mask, logprobs - ref_logprobs - exact_kl, 0)",
        "logprobs - ref_logprobs - exact_kl",
        "mask is missing",
    ),
    ("kl_z", "difference.sum(-1)", "difference[mask]", "responses are independent"),
    ("kl_z", "logprobs - ref_logprobs - exact_kl", "exact_kl - logprobs + ref_logprobs", "sign is flipped"),
    ("kl_z", " - exact_kl", "", "compared with 0"),
    ("kl_z", " / len(gap) ** (1 / 2)", "", "standard error"),
    ("kl_z", "difference.sum(-1)", "difference.sum(-1) / mask.sum(-1)", "Sum them"),
    ("k3_loss_gradient", "logp.detach().exp()", "logp.exp()", "detach"),
    ("k3_loss_gradient", "logp.detach().exp() * k3", "logp.exp() * k3.detach()", "k3 in the reward"),
    (
        "k3_loss_gradient",
        "(logq - logp).exp() - 1 - (logq - logp)",
        "(logp - logq).exp() - 1 - (logp - logq)",
        "upside down",
    ),
    ("k3_loss_gradient", "logp.detach().exp() * k3", "logq.exp() * k3", "weights are those of the reference"),
    ("k3_loss_gradient", "return torch", "return -torch", "sign is flipped"),
    # 03_ppo_alignment/02_advantages_and_clipping
    (
        "n_step_advantage",
        "if end < length:\n                advantages[row, t] += values[row, end]",
        "if t + n < values.shape[1]:\n                advantages[row, t] += values[row, t + n]",
        "critic at a pad",
    ),
    ("n_step_advantage", "if end < length", "if end < values.shape[1]", "values[row, length] is a pad's"),
    ("n_step_advantage", "enumerate(response_mask.sum(-1).tolist())", "enumerate([6, 6])", "count the pads"),
    ("n_step_advantage", " - values[row, t]", "", "do not subtract V_t"),
    ("n_step_advantage", "if end < length", "if False", "does not stand in"),
    ("n_step_advantage", "rewards[row, t:end]", "rewards[row, t:length][: n + 1]", "add n + 1 rewards"),
    ("n_step_advantage", "rewards[row, t:end]", "rewards[row, t:length][: n - 1]", "add n - 1 rewards"),
    (
        "n_step_advantage",
        "if end < length:\n                advantages[row, t] += values[row, end]",
        "if t + n - 1 < length:\n                advantages[row, t] += values[row, t + n - 1]",
        "one token too early",
    ),
    (
        "n_step_advantage",
        "if end < length:\n                advantages[row, t] += values[row, end]",
        "if end + 1 < length:\n                advantages[row, t] += values[row, end + 1]",
        "one token too late",
    ),
    (
        "value_is_stopped",
        "(clipped - returns).abs() > (values - returns).abs()",
        "(values - old_values).abs() > cliprange_value",
        "every value that left the clip range",
    ),
    (
        "value_is_stopped",
        "(clipped - returns).abs() > (values - returns).abs()",
        "((values - old_values).abs() > cliprange_value) & ((values > old_values) == (returns > old_values))",
        "shot past",
    ),
    ("value_is_stopped", "abs() >", "abs() <", "plain error is the larger"),
    ("value_is_stopped", "abs() >", "abs() <=", "True must mean"),
    ("value_is_stopped", "abs() >", "abs() >=", "compare strictly"),
    (
        "value_is_stopped",
        "clamp(old_values - cliprange_value, old_values + cliprange_value)",
        "clamp(returns - cliprange_value, returns + cliprange_value)",
        "around old_values",
    ),
    ("minibatch_loss", "share = mask.sum() / total", "share = 1 / len(masks)", "every micro-batch has the same weight"),
    ("minibatch_loss", "share = mask.sum() / total", "share = 1", "weights add up to 1"),
    (
        "minibatch_loss",
        "share = mask.sum() / total",
        "share = len(mask) / sum(len(m) for m in masks)",
        "number of responses",
    ),
    (
        "minibatch_loss",
        "    return loss",
        "    return sum(x[i][m[i]].mean() for x, m in zip(token_losses, masks) for i in range(len(m))) / sum(map(len, masks))",
        "every response has the same weight",
    ),
    ("minibatch_loss", "total = sum(mask.sum()", "total = sum(mask.numel()", "pads among them"),
    (
        "minibatch_loss",
        "    return loss",
        "    return torch.cat([x.flatten() for x in token_losses]).mean()",
        "losses of the pads",
    ),
    ("minibatch_loss", "share = mask.sum() / total", "share = mask.sum()", "do not divide"),
    # 03_ppo_alignment/03_ppo_training
    ("beta_for_kl", "kl > budget", "kl < budget", "upper end"),
    ("beta_for_kl", "(logp.exp() * (logp - ref.log()))", "(ref * (ref.log() - logp))", "wrong way round"),
    ("beta_for_kl", "score / beta", "score * beta", "upper end"),
    ("beta_for_kl", "return beta", "return 1 / beta", "divides the score by beta"),
    ("explained_variance", "values[mask], returns[mask]", "values, returns", "mask is missing"),
    ("explained_variance", "(r - v).var() / r.var()", "(r - v).square().mean() / r.var(correction=0)", "an offset"),
    ("explained_variance", "/ r.var()", "/ v.var()", "variance of the values"),
    (
        "explained_variance",
        "1 - (r - v).var() / r.var()",
        "torch.corrcoef(torch.stack([v, r]))[0, 1] ** 2",
        "squared correlation",
    ),
    ("penalised_scores", "(response_ids == eos_id).any(-1)", "response_ids[:, -1] == eos_id", "last column only"),
    ("penalised_scores", "(response_ids == eos_id)", "(response_ids[:, :-1] == eos_id)", "fills every column"),
    ("penalised_scores", "scores - penalty", "scores + penalty", "subtract the penalty"),
    ("penalised_scores", "~finished", "finished", "fine the responses that ended"),
    # 03_ppo_alignment/04_when_ppo_goes_wrong
    ("wrong_masks", "(ended_before == 0) != response_mask", "response_mask & (ended_before > 0)", "counts too little"),
    (
        "wrong_masks",
        "((ended_before == 0) != response_mask).any(-1)",
        "(response_mask & (ended_before > 0)).any(-1) | (response_mask.int().diff(dim=-1) > 0).any(-1)",
        "leaves the EOS out",
    ),
    ("wrong_masks", "ends.cumsum(-1) - ends", "ends.cumsum(-1)", "To stop is an action"),
    (
        "wrong_masks",
        "((ended_before == 0) != response_mask).any(-1)",
        "(ended_before == 0).sum(-1) != response_mask.sum(-1)",
        "a hole",
    ),
    ("wrong_masks", "return (", "return ~(", "wrong way round"),
    ("wrong_masks", ".any(-1)", ".any()", "each response"),
    ("wrong_masks", ".any(-1)", ".any(-1) | (ends.sum(-1) == 0)", "cut at the limit"),
    (
        "wrong_masks",
        "ends.cumsum(-1) - ends",
        "(ends.sum(-1, keepdim=True) > 0) * (ends.flip(-1).cumsum(-1).flip(-1) == 0)",
        "not at the last",
    ),
    (
        "shared_weights",
        "p.data_ptr() in memory",
        "any(torch.equal(p, q) for q in policy.parameters() if p.shape == q.shape)",
        "you compare values",
    ),
    ("shared_weights", "p.data_ptr() in memory", "policy is ref_policy", "in part"),
    (
        "shared_weights",
        "memory = ",
        "policy, ref_policy = ref_policy, policy\n    memory = ",
        "the policy's names",
    ),
    ("shared_weights", "in memory]", "in memory] != []", "Name what is"),
    ("reads_behind_the_end", "rewards + more_rewards * ~mask", "rewards", "only the values"),
    ("reads_behind_the_end", "values + more_values * ~mask", "values", "only the rewards"),
    (
        "reads_behind_the_end",
        "rewards, values, more_rewards, more_values = torch.randn(4, 3, 4)",
        "rewards = values = torch.ones(3, 4); more_rewards = more_values = 9",
        "the same amount",
    ),
    ("reads_behind_the_end", "before[mask], after[mask]", "before, after", "compare the pads"),
    ("reads_behind_the_end", " * ~mask", "", "mask counts"),
    ("reads_behind_the_end", "[[2], [3], [4]]", "[[4], [4], [4]]", "never notices"),
    ("reads_behind_the_end", "return not", "return", "wrong way round"),
    # 04_evaluation/01_automatic_metrics
    ("longest_copy", "else 0", "else max(c[i, j + 1], c[i + 1, j])", "jumps over words"),
    ("longest_copy", "c.max()", "c[-1, -1]", "last corner"),
    (
        "bootstrap_means",
        "np.mean(drawn)",
        "np.mean([np.mean(values[prompt]) for prompt in draw])",
        "every prompt has the same weight",
    ),
    ("bootstrap_means", "for prompt in draw for", "for prompt in set(draw) for", "counts once"),
    ("bootstrap_means", "np.mean(drawn)", "sum(drawn) / len(draw)", "number of prompts"),
    ("bootstrap_means", "np.mean(drawn)", "sum(drawn) / sum(len(v) for v in values)", "number of all values"),
    ("prompts_needed", " ** 2", "", "square is missing"),
    ("prompts_needed", "np.ceil(", "np.floor(", "round down"),
    ("prompts_needed", "/ half_width", "/ (half_width / 2)", "end to end"),
    # 04_evaluation/03_full_comparison
    ("length_balanced_win_rate", "(longer.mean() + shorter.mean()) / 2", "wins.mean()", "plain win rate"),
    ("length_balanced_win_rate", "len_a < len_b", "len_a <= len_b", "as if a were shorter"),
    (
        "length_balanced_win_rate",
        "(longer.mean() + shorter.mean()) / 2",
        "np.concatenate([longer, shorter]).mean()",
        "pooled",
    ),
    ("sign_test", "2 * tail", "tail", "one-sided"),
    ("sign_test", "min(1, 2 * tail)", "2 * tail", "above 1"),
    ("sign_test", "k - 1", "k", "begins at k - 1"),
    ("sign_test", "n, k = wins + losses", "n, k = len(a)", "leave them out"),
    ("seed_half_width", "(new - old).mean(1)", "(new - old).ravel()", "independent"),
    ("seed_half_width", " / len(gains) ** (1 / 2)", "", "root of S"),
    ("seed_half_width", "ddof=1", "ddof=0", "divide by S - 1"),
    ("seed_half_width", ".mean(1)", ".mean(0)", "spread of posts"),
]


def test_a_notebook_with_exercises_has_three_each_with_stub_and_solution():
    for path in NOTEBOOKS:
        cells = load(path)
        found = exercises_of(cells)
        if any(re.search(r"^## Exercises", c["source"], re.M) for c in cells):
            assert len(found) == 3, path.name
        for name, exercise in found.items():
            assert {"stub", "solution"} <= set(exercise), f"{path.name}: {name}"


def test_every_check_is_used():
    assert {name.removeprefix("check_") for name in vars(exercises) if name.startswith("check_")} == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_the_stub_is_open_and_the_solution_right(name):
    assert verdict(name, ALL[name]["stub"]).startswith("Your turn")
    assert verdict(name, ALL[name]["solution"]) == "Right."


@pytest.mark.parametrize("name", ALL)
def test_two_planted_mistakes_or_more(name):
    assert sum(mistake[0] == name for mistake in MISTAKES) >= 2


@pytest.mark.parametrize(("name", "original", "patched", "words"), MISTAKES)
def test_a_planted_mistake_is_named(name, original, patched, words):
    solution = ALL[name]["solution"]
    assert original in solution, "the solution no longer holds the text to patch"
    message = verdict(name, solution.replace(original, patched))
    assert message.startswith("Not yet: ") and words in message


# ------------------------------------------------------------------------------------------------------- grade


def grade_double(answer: Callable) -> str:
    """Grade an answer to "twice x", on numbers and on a list."""
    wrong = {"you add two.": lambda x: x + 2}
    return grade(answer, lambda x: 2 * x, [(torch.tensor([1.0, 3.0]),), (torch.tensor(4.0),)], wrong)


def test_grade_tells_right_open_known_unknown_and_broken_answers_apart():
    def unfinished(x):
        raise NotImplementedError

    assert grade_double(lambda x: x + x) == "Right."
    assert grade_double(lambda x: x + x + 1e-7) == "Right."  # rounding
    assert grade_double(unfinished).startswith("Your turn")
    assert grade_double(lambda x: 2 + x) == "Not yet: you add two."
    assert "gives tensor([1., 3.])" in grade_double(lambda x: x) and "[2., 6.]" in grade_double(lambda x: x)
    assert "ZeroDivisionError" in grade_double(lambda x: 1 / 0)


@pytest.mark.parametrize("nonsense", [None, "six", {}, (), [1, "two"], torch.zeros(5)])
def test_grade_never_raises_on_nonsense(nonsense):
    assert grade_double(lambda x: nonsense).startswith("Not yet: for ")


def test_grade_keeps_an_answer_from_changing_the_cases_of_the_others():
    def greedy(x):
        return x.mul_(2)

    cases = [(torch.tensor([1.0]),)]
    assert grade(greedy, lambda x: 2 * x, cases, {}) == "Right."
    assert cases[0][0].item() == 1
    assert grade(lambda x: [1, 2], lambda x: [1, 2, 3], cases, {}).startswith("Not yet")
    assert grade(lambda x: "a", lambda x: "a", cases, {}) == "Right."
