"""Break the library one line at a time and see that a test notices: `python tests/mutants.py [WORD]`.

Each mutant is one small wrong patch for one line of the design's list of what a faithful RLHF-PPO gets right. It is
killed when the named tests fail on the patched copy. WORD runs only the mutants whose description holds it.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch  # noqa: F401  (heavy imports once: every mutant runs in a fork)
import transformers.models.gpt2.modeling_gpt2  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent

# (what is broken, file, original, patched, tests that must notice)
MUTANTS = [
    # micro-batches
    (
        "micro-batches are cut to their shortest response",
        "rollout.py",
        "int(response_mask.sum(-1).max())",
        "int(response_mask.sum(-1).min())",
        "test_ppo.py::test_collect_equals_a_loop_over_unpadded_rows",
    ),
    (
        "values of a micro-batch are read at the prompt length of the whole batch",
        "ppo.py",
        "value_model(ids, attention)[:, part.prompt_length - 1 : -1]",
        "value_model(ids, attention)[:, rollout.prompt_length - 1 : -1]",
        "test_ppo.py::test_collect_equals_a_loop_over_unpadded_rows",
    ),
    # the clinic
    (
        "the clinic leaves its faults in the library",
        "clinic.py",
        "stack.enter_context(mock.patch.object(target, attribute, replacement))",
        "setattr(target, attribute, replacement)",
        "test_clinic.py::test_a_fault_replaces_something_and_puts_it_back",
    ),
    (
        "the clinic's temperature fault changes nothing",
        "clinic.py",
        "lambda logits: logits / value",
        "lambda logits: logits",
        "test_clinic.py::test_temperature_sharpens_what_is_sampled",
    ),
    (
        "the clinic's min_new_tokens does not start anew in each rollout",
        "clinic.py",
        "            step = 0\n",
        "",
        "test_clinic.py::test_min_new_tokens_forbids_eos_at_first_in_every_rollout",
    ),
    (
        "the clinic's GAE reads nothing behind the end",
        "clinic.py",
        "gamma * behind * last",
        "0 * behind * last",
        "test_clinic.py::test_gae_behind_bootstraps_from_the_pad",
    ),
    (
        "the clinic counts the critic's alarms",
        "clinic.py",
        '"exact KL": ("check/kl_z",)',
        '"exact KL": ("check/kl_z", "val/explained_variance")',
        "test_clinic.py::test_a_sound_run_has_the_signature_of_health_whatever_its_critic_does",
    ),
    (
        "the clinic repeats what is finished",
        "clinic.py",
        "if cell not in runs or cell[0] in named",
        "if True",
        "test_clinic.py::test_the_stage_runs_every_case_with_every_seed_and_keeps_what_is_finished",
    ),
    (
        "any diagnosis of a blind case is right",
        "clinic.py",
        "if name == blind_fault(blind):",
        "if name in FAULTS:",
        "test_clinic.py::test_only_the_right_diagnosis_is_accepted_and_wrong_ones_hear_which_sign_is_missing",
    ),
    # embeddings
    (
        "SFT trains the embeddings of words that it never sees",
        "sft.py",
        "freeze_embeddings(policy)",
        "pass",
        "test_stages.py::test_embeddings_stay_the_base_models_and_all_other_weights_learn",
    ),
    (
        "reward model trains the embeddings",
        "reward.py",
        "freeze_embeddings(reward_model)",
        "pass",
        "test_stages.py::test_embeddings_stay_the_base_models_and_all_other_weights_learn",
    ),
    (
        "PPO trains the embeddings",
        "ppo.py",
        "freeze_embeddings(policy)",
        "pass",
        "test_stages.py::test_embeddings_stay_the_base_models_and_all_other_weights_learn",
    ),
    (
        "PPO trains the critic's embeddings",
        "ppo.py",
        "freeze_embeddings(value_model.body)",
        "pass",
        "test_ppo.py::test_embeddings_of_policy_and_critic_stay_where_the_recipe_freezes_them",
    ),
    (
        "output weights of their own are not frozen",
        "models.py",
        "for module in (model.get_input_embeddings(), model.get_output_embeddings()):",
        "for module in (model.get_input_embeddings(),):",
        "test_ppo.py::test_frozen_embeddings_are_those_that_read_and_those_that_write",
    ),
    # tokens
    (
        "PAD is EOS",
        "models.py",
        "tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id",
        "tokenizer.pad_token_id is None",
        "test_sft.py::test_a_tokenizer_without_a_pad_of_its_own_gets_one_and_the_model_room_for_it",
    ),
    (
        "truncation loses the cue",
        "data.py",
        "return [ids[-max_tokens:] for ids in encoded]",
        "return [ids[:max_tokens] for ids in encoded]",
        "test_sft.py::test_truncation_takes_from_the_beginning_so_that_the_cue_survives",
    ),
    (
        "prompts padded on the right in generation",
        "rollout.py",
        'tokenizer.pad_token_id, "left")',
        'tokenizer.pad_token_id, "right")',
        "test_rollout.py::test_attention_covers_the_prompt_and_the_counted_response",
    ),
    (
        "positions count padding",
        "data.py",
        "return (attention_mask.cumsum(-1) - 1).clamp(min=0)",
        "return torch.arange(attention_mask.shape[1]).expand_as(attention_mask)",
        "test_rollout.py::test_token_logprobs_equal_a_loop_over_unpadded_rows",
    ),
    (
        "positions of the scoring forward missing",
        "rollout.py",
        "position_ids=position_ids(attention_mask), use_cache=False,\n        logits_to_keep=keep",
        "use_cache=False,\n        logits_to_keep=keep",
        "test_rollout.py::test_token_logprobs_equal_a_loop_over_unpadded_rows",
    ),
    (
        "positions of the prompt's forward missing in generation",
        "rollout.py",
        "attention_mask=mask[first], position_ids=position_ids(mask[first]),",
        "attention_mask=mask[first],",
        "test_rollout.py::test_cached_generation_samples_from_what_token_logprobs_scores",
    ),
    (
        "reward model without positions",
        "models.py",
        "position_ids=position_ids(attention_mask), use_cache=False\n    ).logits",
        "use_cache=False\n    ).logits",
        "test_reward.py::test_score_ignores_padding_on_either_side",
    ),
    (
        "critic without positions",
        "models.py",
        "            position_ids=position_ids(attention_mask),\n            use_cache=False,\n",
        "            use_cache=False,\n",
        "test_reward.py::test_the_critic_on_a_policy_starts_at_0_and_ignores_padding_after_training",
    ),
    (
        "EOS is no training target",
        "data.py",
        "return [ids + [tokenizer.eos_token_id] * bool(end) for",
        "return [ids + [tokenizer.eos_token_id] * (not end) for",
        "test_sft.py::test_completions_are_a_space_the_text_and_one_eos",
    ),
    (
        "EOS added to a response that never ended",
        "data.py",
        "[tokenizer.eos_token_id] * bool(end) for",
        "[tokenizer.eos_token_id] for",
        "test_reward.py::test_a_response_that_never_ended_is_scored_without_eos",
    ),
    # SFT
    (
        "loss on prompt tokens, too",
        "sft.py",
        "return -torch.where(completion_mask, logprobs, 0.0).sum() / completion_mask.sum()",
        "return -logprobs.mean()",
        "test_sft.py::test_prompt_and_padding_are_never_targets",
    ),
    (
        "loss averaged by rows, not by tokens",
        "sft.py",
        "return -torch.where(completion_mask, logprobs, 0.0).sum() / completion_mask.sum()",
        "return -(torch.where(completion_mask, logprobs, 0.0).sum(-1) / completion_mask.sum(-1)).mean()",
        "test_sft.py::test_loss_of_a_batch_is_the_mean_over_its_tokens_whatever_the_padding",
    ),
    (
        "completions aligned to the wrong side",
        "data.py",
        '_, completion_mask = pad(completions, pad_id, "left")',
        "_, completion_mask = pad(completions, pad_id)",
        "test_sft.py::test_completion_batch_counts_completion_and_eos",
    ),
    (
        "micro-batches of SFT count alike, however many tokens they hold",
        "sft.py",
        "* int(tensors[2].sum()) / total",
        "* len(rows) / len(chosen)",
        "test_sft.py::test_micro_batches_change_neither_loss_nor_gradient",
    ),
    # reward model
    (
        "micro-batches of the reward model count alike, however many pairs they hold",
        "reward.py",
        "share = len(batch) / total",
        "share = len(micro) / len(rows)",
        "test_reward.py::test_micro_batches_change_neither_loss_nor_gradient",
    ),
    (
        "head std 1",
        "models.py",
        "std=1 / (width + 1) ** 0.5",
        "std=1.0",
        "test_reward.py::test_head_has_std_1_over_sqrt_of_width_plus_1_and_no_bias",
    ),
    (
        "head std of the body's initialisation",
        "models.py",
        "    nn.init.normal_(model.score.weight, std=1 / (width + 1) ** 0.5)\n",
        "",
        "test_reward.py::test_head_has_std_1_over_sqrt_of_width_plus_1_and_no_bias",
    ),
    (
        "loss prefers the rejected",
        "reward.py",
        "return -F.logsigmoid(chosen_scores - rejected_scores - margin).mean()",
        "return -F.logsigmoid(rejected_scores - chosen_scores - margin).mean()",
        "test_reward.py::test_loss_is_the_cross_entropy_of_a_softmax_over_the_two_scores",
    ),
    (
        "margin with the wrong sign",
        "reward.py",
        "rejected_scores - margin).mean()",
        "rejected_scores + margin).mean()",
        "test_reward.py::test_loss_is_ln_2_at_ties_and_ln_1_plus_exp_of_the_margin_with_one",
    ),
    (
        "packed responses see their neighbours",
        "reward.py",
        "allowed = (same | (segment[:, None, :] == 0)) & torch.ones_like(same).tril()",
        "allowed = torch.ones_like(same).tril()",
        "test_reward.py::test_a_response_does_not_see_its_neighbours",
    ),
    (
        "packed responses go on from their neighbour's positions",
        "reward.py",
        "positions[row, start:stop] = torch.arange(len(prompt), len(prompt) + len(response))",
        "positions[row, start:stop] = torch.arange(start, stop)",
        "test_reward.py::test_packed_scores_equal_single_rows",
    ),
    (
        "packed score read before EOS",
        "reward.py",
        "ends.append((row, stop - 1))",
        "ends.append((row, stop - 2))",
        "test_reward.py::test_packed_scores_equal_single_rows",
    ),
    (
        "reward_mean not subtracted",
        "models.py",
        'return logits[:, 0].float() - getattr(reward_model.config, "reward_mean", 0.0)',
        "return logits[:, 0].float()",
        "test_reward.py::test_saved_score_is_the_hugging_face_logit_less_reward_mean",
    ),
    (
        "references not centred",
        "reward.py",
        "model.config.reward_mean = score_responses(",
        "_ = score_responses(",
        "test_reward.py::test_training_learns_a_handful_of_pairs_and_centres_the_references",
    ),
    (
        "ties count as right",
        "reward.py",
        "((margin > 0).float() + 0.5 * (margin == 0).float())",
        "(margin >= 0).float()",
        "test_reward.py::test_evaluation_counts_pairs_one_by_one_however_many_prompts_there_are",
    ),
    (
        "scores come back sorted by length",
        "models.py",
        "            scores[rows] = reward_scores(",
        "            scores[sorted(rows)] = reward_scores(",
        "test_reward.py::test_score_is_read_at_eos_less_the_mean_and_ignores_padding",
    ),
    # rollout
    (
        "top_k 50 in sampling",
        "rollout.py",
        "cdf = (logits / temperature).softmax(-1)",
        "cdf = (logits / temperature).masked_fill(logits < logits.topk(min(50, logits.shape[-1])).values[:, -1:], -torch.inf).softmax(-1)",
        "test_rollout.py::test_any_token_of_the_vocabulary_can_be_drawn",
    ),
    (
        "temperature ignored in sampling",
        "rollout.py",
        "cdf = (logits / temperature).softmax(-1)",
        "cdf = logits.softmax(-1)",
        "test_rollout.py::test_frequencies_of_the_first_token_follow_the_model",
    ),
    (
        "temperature ignored in scoring",
        "rollout.py",
        "logits = _logits(model, input_ids, attention_mask, last + 1)[:, :-1] / temperature",
        "logits = _logits(model, input_ids, attention_mask, last + 1)[:, :-1]",
        "test_rollout.py::test_token_logprobs_equal_a_loop_over_unpadded_rows",
    ),
    (
        "scores shifted by one token",
        "rollout.py",
        "targets = input_ids[:, -last:]",
        "targets = input_ids[:, -last - 1 : -1]",
        "test_rollout.py::test_token_logprobs_equal_a_loop_over_unpadded_rows",
    ),
    (
        "EOS itself not counted",
        "rollout.py",
        "responses[rows, step], response_mask[rows, step] = token, alive",
        "responses[rows, step], response_mask[rows, step] = token, alive & (token != tokenizer.eos_token_id)",
        "test_rollout.py::test_responses_end_at_their_first_eos_and_nothing_after_it_counts",
    ),
    (
        "responses not cut at EOS",
        "rollout.py",
        "alive = alive & (token != tokenizer.eos_token_id)",
        "alive = alive & (token >= 0)",
        "test_rollout.py::test_responses_end_at_their_first_eos_and_nothing_after_it_counts",
    ),
    (
        "pads count as actions",
        "rollout.py",
        "responses[rows, step], response_mask[rows, step] = token, alive",
        "responses[rows, step], response_mask[rows, step] = token, True",
        "test_rollout.py::test_responses_end_at_their_first_eos_and_nothing_after_it_counts",
    ),
    (
        "noise depends on the place in the batch",
        "rollout.py",
        "_noise(seed, indices if indices is not None else range(len(prompts)), max_new_tokens)",
        "_noise(seed, range(len(prompts)), max_new_tokens)",
        "test_rollout.py::test_noise_depends_on_the_index_and_not_on_the_split",
    ),
    (
        "noise moves up when finished rows leave",
        "rollout.py",
        "_sample(logits.float(), temperature, uniforms[rows, step])",
        "_sample(logits.float(), temperature, uniforms[: len(rows), step])",
        "test_rollout.py::test_noise_depends_on_the_index_and_not_on_the_split",
    ),
    (
        "cache rows keep their place when finished rows leave",
        "rollout.py",
        "self.buffers = [x[rows] for x in self.buffers]",
        "self.buffers = [x[: int(rows.sum())] for x in self.buffers]",
        "test_rollout.py::test_cached_generation_samples_from_what_token_logprobs_scores",
    ),
    (
        "equal prompts get the first one's noise",
        "rollout.py",
        "uniforms[rows, step])",
        "uniforms[owner[rows], step])",
        "test_rollout.py::test_equal_prompts_share_the_prefix_and_still_get_noise_of_their_own",
    ),
    (
        "finished when the last column is EOS",
        "rollout.py",
        "return responses.gather(1, last[:, None])[:, 0] == self.eos_token_id",
        "return responses[:, -1] == self.eos_token_id",
        "test_rollout.py::test_responses_end_at_their_first_eos_and_nothing_after_it_counts",
    ),
    (
        "dropout left on in PPO",
        "ppo.py",
        "model.eval().to(accelerator.device)",
        "model.to(accelerator.device)",
        "test_ppo.py::test_each_update_starts_at_ratio_1_even_for_a_policy_handed_over_with_dropout_on",
    ),
    (
        "noise does not depend on the update",
        "ppo.py",
        "seed=(recipe.seed, update),",
        "seed=recipe.seed,",
        "test_ppo.py::test_every_update_and_every_seed_has_noise_of_its_own",
    ),
    (
        "no penalty for a missing EOS",
        "ppo.py",
        " - config.missing_eos_penalty * ~rollout.finished",
        "",
        "test_ppo.py::test_a_response_without_eos_pays_the_penalty",
    ),
    (
        "penalty for a response that ends",
        "ppo.py",
        "config.missing_eos_penalty * ~rollout.finished",
        "config.missing_eos_penalty * rollout.finished",
        "test_ppo.py::test_a_response_without_eos_pays_the_penalty",
    ),
    (
        "reference scored at temperature 1",
        "ppo.py",
        "ref_logprobs = token_logprobs(ref_policy, ids, attention, config.temperature, last)",
        "ref_logprobs = token_logprobs(ref_policy, ids, attention, 1.0, last)",
        "test_ppo.py::test_one_temperature_for_sampling_reference_update_and_check",
    ),
    (
        "sampling at temperature 1",
        "ppo.py",
        "recipe.max_new_tokens, config.temperature,",
        "recipe.max_new_tokens, 1.0,",
        "test_ppo.py::test_one_temperature_for_sampling_reference_update_and_check",
    ),
    (
        "update scored at temperature 1",
        "ppo.py",
        "logprobs = token_logprobs(self.policy, input_ids, attention_mask, temperature, last)",
        "logprobs = token_logprobs(self.policy, input_ids, attention_mask, 1.0, last)",
        "test_ppo.py::test_one_temperature_for_sampling_reference_update_and_check",
    ),
    (
        "exact KL checked at temperature 1",
        "ppo.py",
        "exact_kl_check(rollout, policy, ref_policy, config.temperature, config.micro_batch_size)",
        "exact_kl_check(rollout, policy, ref_policy, 1.0, config.micro_batch_size)",
        "test_ppo.py::test_one_temperature_for_sampling_reference_update_and_check",
    ),
    # reward and advantage
    (
        "k3 with the ratio inverted",
        "ppo.py",
        "return torch.expm1(-log_ratio) + log_ratio",
        "return torch.expm1(log_ratio) - log_ratio",
        "test_ppo.py::test_k1_and_k3_have_the_exact_kl_as_their_mean",
    ),
    (
        "k1 estimates the other KL",
        "ppo.py",
        "log_ratio = logprobs - ref_logprobs",
        "log_ratio = ref_logprobs - logprobs",
        "test_ppo.py::test_k1_and_k3_have_the_exact_kl_as_their_mean",
    ),
    (
        "KL rewarded",
        "ppo.py",
        "torch.where(response_mask, -kl_coef * kl_estimate(",
        "torch.where(response_mask, kl_coef * kl_estimate(",
        "test_ppo.py::test_at_the_optimum_of_score_minus_beta_kl_every_response_earns_the_same",
    ),
    (
        "k3 in the reward by default",
        "ppo.py",
        'kl_coef: float, kl_estimator: str = "k1"',
        'kl_coef: float, kl_estimator: str = "k3"',
        "test_ppo.py::test_tokens_likelier_than_under_the_reference_cost",
    ),
    (
        "score paid at the last column",
        "ppo.py",
        "rewards[rows, last[rows]] += scores",
        "rewards[rows, -1] += scores",
        "test_ppo.py::test_the_score_is_paid_at_the_last_response_token_only",
    ),
    (
        "score paid before EOS",
        "ppo.py",
        "rewards[rows, last[rows]] += scores",
        "rewards[rows, (last[rows] - 1).clamp(min=0)] += scores",
        "test_ppo.py::test_the_score_is_paid_at_the_last_response_token_only",
    ),
    (
        "an empty response is paid at the last column",
        "ppo.py",
        "rows = torch.nonzero(last >= 0)[:, 0]",
        "rows = torch.arange(len(last))",
        "test_ppo.py::test_an_empty_response_earns_nothing",
    ),
    (
        "GAE decays by gamma only",
        "ppo.py",
        "delta + gamma * lam * next_advantage",
        "delta + gamma * next_advantage",
        "test_ppo.py::test_gae_equals_the_double_sum",
    ),
    (
        "GAE does not discount the next value",
        "ppo.py",
        "rewards[:, t] + gamma * next_value - values[:, t]",
        "rewards[:, t] + next_value - values[:, t]",
        "test_ppo.py::test_gae_equals_the_double_sum",
    ),
    (
        "bootstrapping reads past the end",
        "ppo.py",
        "    values = torch.where(response_mask, values, 0.0)\n",
        "",
        "test_ppo.py::test_bootstrapping_never_reads_past_the_end",
    ),
    (
        "returns without values",
        "ppo.py",
        "return advantages, torch.where(response_mask, advantages + values, 0.0)",
        "return advantages, torch.where(response_mask, advantages, 0.0)",
        "test_ppo.py::test_at_gamma_1_lambda_1_the_return_is_the_sum_of_the_rewards_to_come",
    ),
    (
        "lambda 1 by default",
        "ppo.py",
        "gamma: float = 1.0, lam: float = 0.95):",
        "gamma: float = 1.0, lam: float = 1.0):",
        "test_ppo.py::test_by_default_gamma_is_1_and_lambda_095",
    ),
    (
        "whitening counts masked entries",
        "ppo.py",
        "variance = masked_mean((x - mean).square(), mask)",
        "variance = (x - mean).square().mean()",
        "test_ppo.py::test_whitened_entries_have_mean_0_and_variance_1",
    ),
    (
        "whitening always shifts",
        "ppo.py",
        "        whitened = whitened + mean\n",
        "        whitened = whitened + 0 * mean\n",
        "test_ppo.py::test_without_shift_the_mean_stays_and_the_variance_becomes_1",
    ),
    (
        "rewards shifted when whitened",
        "ppo.py",
        "rewards = masked_whiten(rewards, mask, shift_mean=False)",
        "rewards = masked_whiten(rewards, mask)",
        "test_ppo.py::test_collect_whitens_rewards_by_scale_only_and_only_if_asked",
    ),
    (
        "advantages not whitened",
        "ppo.py",
        '"advantages": masked_whiten(advantages, mask)',
        '"advantages": advantages',
        "test_ppo.py::test_collect_equals_a_loop_over_unpadded_rows",
    ),
    (
        "values read after the token is known",
        "ppo.py",
        "values = actor_critic.value_model(ids, attention)[:, part.prompt_length - 1 : -1]",
        "values = actor_critic.value_model(ids, attention)[:, part.prompt_length :]",
        "test_ppo.py::test_collect_equals_a_loop_over_unpadded_rows",
    ),
    (
        "update reads values after the token is known",
        "ppo.py",
        "values = self.value_model(input_ids, attention_mask)[:, prompt_length - 1 : -1]",
        "values = self.value_model(input_ids, attention_mask)[:, prompt_length:]",
        "test_ppo.py::test_collect_and_the_update_score_alike",
    ),
    (
        "critic starts without the reward model's shift",
        "models.py",
        'return ValueModel(body, copy.deepcopy(model.score), getattr(model.config, "reward_mean", 0.0)).eval()',
        "return ValueModel(body, copy.deepcopy(model.score)).eval()",
        "test_reward.py::test_the_critic_starts_as_the_reward_model",
    ),
    (
        "critic shares the reward model's head",
        "models.py",
        'return ValueModel(body, copy.deepcopy(model.score), getattr(model.config, "reward_mean", 0.0)).eval()',
        'return ValueModel(body, model.score, getattr(model.config, "reward_mean", 0.0)).eval()',
        "test_reward.py::test_the_critic_starts_as_the_reward_model",
    ),
    (
        "critic shares the reward model's body",
        "models.py",
        "body = copy.deepcopy(model.base_model)",
        "body = model.base_model",
        "test_ppo.py::test_training_changes_policy_and_values_and_neither_reference_nor_reward_model",
    ),
    (
        "critic on a policy starts with a random head",
        "models.py",
        "    nn.init.zeros_(head.weight)\n",
        "",
        "test_reward.py::test_the_critic_on_a_policy_starts_at_0_and_ignores_padding_after_training",
    ),
    # update
    (
        "policy loss takes the better side",
        "ppo.py",
        "loss = masked_mean(torch.maximum(unclipped, clipped), response_mask)",
        "loss = masked_mean(torch.minimum(unclipped, clipped), response_mask)",
        "test_ppo.py::test_the_clip_stops_gains_and_never_losses",
    ),
    (
        "policy loss climbs down",
        "ppo.py",
        "unclipped = -advantages * ratio",
        "unclipped = advantages * ratio",
        "test_ppo.py::test_at_ratio_1_the_loss_is_minus_the_mean_advantage",
    ),
    (
        "ratio inverted",
        "ppo.py",
        "torch.where(response_mask.bool(), logprobs - old_logprobs, 0.0)",
        "torch.where(response_mask.bool(), old_logprobs - logprobs, 0.0)",
        "test_ppo.py::test_at_ratio_1_the_gradient_is_the_policy_gradient",
    ),
    (
        "policy loss averaged over padding, too",
        "ppo.py",
        "loss = masked_mean(torch.maximum(unclipped, clipped), response_mask)",
        "loss = torch.where(response_mask, torch.maximum(unclipped, clipped), 0.0).mean()",
        "test_ppo.py::test_at_ratio_1_the_loss_is_minus_the_mean_advantage",
    ),
    (
        "clip fraction over padding, too",
        "ppo.py",
        '"policy/clipfrac": masked_mean((clipped > unclipped).float(), response_mask).item()',
        '"policy/clipfrac": (clipped > unclipped).float().mean().item()',
        "test_ppo.py::test_policy_stats_average_over_what_is_counted",
    ),
    (
        "approxkl over padding, too",
        "ppo.py",
        '"policy/approxkl": masked_mean(0.5 * log_ratio.square(), response_mask).item()',
        '"policy/approxkl": (0.5 * log_ratio.square()).mean().item()',
        "test_ppo.py::test_policy_stats_average_over_what_is_counted",
    ),
    (
        "value clip fraction over padding, too",
        "ppo.py",
        '"val/clipfrac": masked_mean((clipped_error > error).float(), response_mask).item()',
        '"val/clipfrac": (clipped_error > error).float().mean().item()',
        "test_ppo.py::test_value_stats_average_over_what_is_counted",
    ),
    (
        "value loss takes the smaller error",
        "ppo.py",
        "loss = 0.5 * masked_mean(torch.maximum(error, clipped_error), response_mask)",
        "loss = 0.5 * masked_mean(torch.minimum(error, clipped_error), response_mask)",
        "test_ppo.py::test_value_loss_is_half_the_larger_of_two_squared_errors",
    ),
    (
        "value loss without its half",
        "ppo.py",
        "loss = 0.5 * masked_mean(torch.maximum(error, clipped_error), response_mask)",
        "loss = masked_mean(torch.maximum(error, clipped_error), response_mask)",
        "test_ppo.py::test_value_loss_is_half_the_larger_of_two_squared_errors",
    ),
    (
        "value loss not clipped",
        "ppo.py",
        "loss = 0.5 * masked_mean(torch.maximum(error, clipped_error), response_mask)",
        "loss = 0.5 * masked_mean(error, response_mask)",
        "test_ppo.py::test_value_loss_is_half_the_larger_of_two_squared_errors",
    ),
    (
        "vf_coef ignored",
        "ppo.py",
        "(pg_loss + config.vf_coef * vf_loss) * share",
        "(pg_loss + vf_loss) * share",
        "test_ppo.py::test_a_step_descends_an_objective_written_anew",
    ),
    (
        "micro-batches count alike",
        "ppo.py",
        "share = int(mask.sum()) / total",
        "share = len(micro) / len(rows)",
        "test_ppo.py::test_micro_batches_of_2_make_the_step_of_the_full_batch",
    ),
    (
        "AdamW with its default eps",
        "ppo.py",
        "lr=config.lr, eps=1e-5, weight_decay=0.0",
        "lr=config.lr, weight_decay=0.0",
        "test_ppo.py::test_optimizer_steps_are_updates_times_epochs_times_minibatches_and_lr_falls_to_0",
    ),
    (
        "lr stays",
        "ppo.py",
        "min((step + 1) / ramp, 1 - step / steps)",
        "min((step + 1) / ramp, 1.0)",
        "test_ppo.py::test_optimizer_steps_are_updates_times_epochs_times_minibatches_and_lr_falls_to_0",
    ),
    (
        "the policy learns while the critic should learn alone",
        "ppo.py",
        "if critic_only:",
        "if False:",
        "test_ppo.py::test_in_the_first_updates_only_the_critic_learns",
    ),
    (
        "Adam counts the critic's updates as steps of the policy",
        "ppo.py",
        "policy.zero_grad(set_to_none=True)",
        "policy.zero_grad(set_to_none=False)",
        "test_ppo.py::test_the_policys_first_step_after_the_critics_is_a_whole_one",
    ),
    (
        "the critic is alone one update too few",
        "ppo.py",
        "critic_only=update <= config.critic_updates",
        "critic_only=update < config.critic_updates",
        "test_ppo.py::test_in_the_first_updates_only_the_critic_learns",
    ),
    (
        "no warmup",
        "ppo.py",
        "min((step + 1) / ramp, 1 - step / steps)",
        "1 - step / steps",
        "test_ppo.py::test_optimizer_steps_are_updates_times_epochs_times_minibatches_and_lr_falls_to_0",
    ),
    (
        "one optimizer step an epoch",
        "ppo.py",
        "size = config.batch_size // config.minibatches",
        "size = config.batch_size",
        "test_ppo.py::test_optimizer_steps_are_updates_times_epochs_times_minibatches_and_lr_falls_to_0",
    ),
    (
        "one epoch whatever the setting",
        "ppo.py",
        "for epoch in range(config.epochs):",
        "for epoch in range(1):",
        "test_ppo.py::test_optimizer_steps_are_updates_times_epochs_times_minibatches_and_lr_falls_to_0",
    ),
    (
        "critic's gradient not clipped",
        "ppo.py",
        "accelerator.clip_grad_norm_(actor_critic.parameters(), config.max_grad_norm)",
        "accelerator.clip_grad_norm_(actor_critic.policy.parameters(), config.max_grad_norm)",
        "test_ppo.py::test_the_gradient_is_clipped_by_its_global_norm",
    ),
    (
        "gradients pile up over steps",
        "ppo.py",
        "    optimizer.zero_grad()\n",
        "",
        "test_ppo.py::test_a_step_leaves_no_gradient_behind",
    ),
    (
        "KL logged per token",
        "ppo.py",
        '"objective/kl": torch.where(mask, kl, 0.0).sum(-1).mean()',
        '"objective/kl": masked_mean(kl, mask)',
        "test_ppo.py::test_summary_counts_kl_per_sequence_and_entropy_per_token",
    ),
    (
        "entropy over padding, too",
        "ppo.py",
        '"objective/entropy": masked_mean(batch["entropy"], mask)',
        '"objective/entropy": batch["entropy"].mean()',
        "test_ppo.py::test_summary_counts_kl_per_sequence_and_entropy_per_token",
    ),
    (
        "exact KL of the other direction",
        "rollout.py",
        "(logp.exp() * (logp - logq)).sum(-1)",
        "(logq.exp() * (logq - logp)).sum(-1)",
        "test_ppo.py::test_exact_kl_equals_enumeration_of_the_vocabulary",
    ),
    (
        "exact KL counts padding",
        "ppo.py",
        "exact.append(torch.where(counted, kl, 0.0).sum(-1))",
        "exact.append(kl.sum(-1))",
        "test_ppo.py::test_exact_kl_equals_enumeration_of_the_vocabulary",
    ),
    (
        "training goes on through alarms",
        "ppo.py",
        "        stop_if_alarmed(update, row)\n",
        "",
        "test_ppo.py::test_a_policy_far_from_its_reference_stops_with_step_metric_and_causes",
    ),
    (
        "resumed run forgets the optimizer",
        "runtime.py",
        '            part.load_state_dict(payload["parts"][name])\n',
        '            if name != "optimizer":\n                part.load_state_dict(payload["parts"][name])\n',
        "test_ppo.py::test_a_killed_run_resumes_to_the_same_numbers",
    ),
    # the doctor
    (
        "doctor blind to dropout",
        "doctor.py",
        "(new - again).abs().max().item(), 1e-6",
        "(new - new).abs().max().item(), 1e-6",
        "test_doctor.py::test_a_and_f_see_dropout",
    ),
    (
        "doctor's ratio compared with itself",
        "doctor.py",
        "(new - old).exp() - 1",
        "(new - new).exp() - 1",
        "test_doctor.py::test_a_and_f_see_dropout",
    ),
    (
        "doctor's KL compared with itself",
        "doctor.py",
        "ppo.kl_estimate(old, ref)",
        "ppo.kl_estimate(old, old)",
        "test_doctor.py::test_a_sees_a_policy_that_is_not_its_reference",
    ),
    (
        "doctor's approxkl compared with itself",
        "doctor.py",
        "ppo.policy_loss(new, old,",
        "ppo.policy_loss(new, new,",
        "test_doctor.py::test_a_sees_an_update_scored_at_another_temperature",
    ),
    (
        "doctor compares padded with padded",
        "doctor.py",
        "(padded[row, :n] - alone).abs()",
        "(alone - alone).abs()",
        "test_doctor.py::test_b_alone_sees_positions_that_count_padding",
    ),
    (
        "doctor's surprise without entropy",
        "doctor.py",
        "-logprobs - entropy, 0.0",
        "-logprobs - entropy - (-logprobs - entropy), 0.0",
        "test_doctor.py::test_c_alone_sees_what_sampling_does_and_scoring_does_not",
    ),
    (
        "doctor's z is one-sided",
        "doctor.py",
        "return abs(self.measured) <= self.limit",
        "return self.measured <= self.limit",
        "test_doctor.py::test_c_alone_sees_what_sampling_does_and_scoring_does_not",
    ),
    (
        "doctor does not look at the reward",
        "doctor.py",
        "(rewards - expected).abs().max().item()",
        "(rewards - rewards).abs().max().item()",
        "test_doctor.py::test_d_sees_a_flipped_sign",
    ),
    (
        "doctor probes with k1 whatever the recipe",
        "doctor.py",
        "mask, beta, config.kl_estimator)",
        "mask, beta)",
        "test_doctor.py::test_d_sees_another_estimator_in_the_reward",
    ),
    (
        "doctor lets beta = 0 pass",
        "doctor.py",
        "0.0 if beta > 0 else 1.0",
        "0.0",
        "test_doctor.py::test_d_sees_a_kl_that_costs_nothing",
    ),
    (
        "doctor accepts two EOS",
        "doctor.py",
        "((labels == tokenizer.eos_token_id).sum(-1) != 1)",
        "((labels == tokenizer.eos_token_id).sum(-1) < 1)",
        "test_doctor.py::test_e_sees_demonstrations_that_teach_another_ending",
    ),
    (
        "doctor accepts tokens after EOS",
        "doctor.py",
        "(elsewhere | holes | (last < 0))",
        "(holes | (last < 0))",
        "test_doctor.py::test_e_sees_each_kind_of_wrong_mask",
    ),
    (
        "doctor looks for EOS among the counted tokens only",
        "doctor.py",
        "ends = responses == eos_token_id",
        "ends = (responses == eos_token_id) & mask",
        "test_doctor.py::test_e_sees_each_kind_of_wrong_mask",
    ),
    (
        "doctor accepts holes in masks",
        "doctor.py",
        "(elsewhere | holes | (last < 0))",
        "(elsewhere | (last < 0))",
        "test_doctor.py::test_e_sees_each_kind_of_wrong_mask",
    ),
    # behaviour under trouble
    (
        "a failed save destroys the old folder",
        "runtime.py",
        "    fresh.mkdir()\n",
        "    fresh.mkdir()\n    shutil.rmtree(folder, ignore_errors=True)\n",
        "test_runtime.py::test_a_body_that_raises_leaves_the_old_folder_and_no_litter",
    ),
    (
        "a killed rename is not recovered",
        "runtime.py",
        "        old.rename(folder)\n",
        "        pass\n",
        "test_runtime.py::test_a_kill_between_the_two_renames_loses_nothing",
    ),
    (
        "state of other settings accepted",
        "runtime.py",
        'if payload["fingerprint"] != self.fingerprint:',
        "if False:",
        "test_runtime.py::test_a_state_of_other_settings_is_a_usage_error_and_changes_nothing",
    ),
    (
        "random state not restored",
        "runtime.py",
        '        torch.set_rng_state(payload["rng"][0])\n',
        "",
        "test_sft.py::test_a_killed_run_resumes_to_the_same_numbers",
    ),
    (
        "nan goes on",
        "runtime.py",
        "if not math.isfinite(value):",
        "if math.isinf(value):",
        "test_runtime.py::test_a_metric_that_is_not_finite_stops_and_keeps_the_earlier_rows",
    ),
    (
        "a boolean counts as a number",
        "recipes.py",
        "isinstance(value, int) and not isinstance(value, bool)",
        "isinstance(value, int)",
        "test_recipes.py::test_a_value_of_the_wrong_type_says_how_to_write_it",
    ),
    (
        "a checkpoint is reused though its inputs were made anew",
        "models.py",
        'settings[f"{earlier} weights"] = fingerprint(find_checkpoint(recipe, paths, earlier)[0])',
        "pass",
        "test_stages.py::test_a_checkpoint_whose_inputs_were_made_anew_is_not_reused",
    ),
    (
        "a fresh start overwrites an earlier resume point",
        "runtime.py",
        'self.path.replace(self.path.with_suffix(".previous.pt"))',
        "self.path.unlink()",
        "test_runtime.py::test_a_fresh_start_keeps_the_resume_point_of_an_earlier_run",
    ),
    (
        "a folder set aside by a killed save is deleted by the next save",
        "runtime.py",
        "folder = recover_folder(Path(folder))",
        "folder = Path(folder)",
        "test_runtime.py::test_a_folder_left_by_a_kill_between_two_renames_survives_the_next_save",
    ),
    (
        "test-only problems reach the base model's corpus",
        "tiny/world.py",
        "return rng.choice(options[:-1])",
        "return rng.choice(options)",
        "test_tiny.py::test_a_quarter_of_test_posts_hold_a_problem_or_phrasing_new_to_every_training",
    ),
    (
        "test-only names reach fine-tuning",
        "tiny/world.py",
        'names + new_names if split == "corpus" else names',
        "names + new_names",
        "test_tiny.py::test_new_names_are_new_to_every_stage_of_fine_tuning",
    ),
    (
        "marks of the base's corpus ask for a part of the problem only",
        "tiny/world.py",
        'marked(told, read.thing, "action", "thing")',
        'marked(told, read.thing, "thing")',
        "test_tiny.py::test_the_marks_of_the_corpus_are_true",
    ),
    (
        "marks of the base's corpus swapped",
        "tiny/world.py",
        'MARKS = {True: " TRUE", False: " FALSE"}',
        'MARKS = {True: " FALSE", False: " TRUE"}',
        "test_tiny.py::test_the_marks_of_the_corpus_are_true test_tiny.py::test_the_marks_of_a_word_list_are_true",
    ),
    (
        "an interval over pairs, as if those of one post were independent",
        "evaluation.py",
        "groups = np.arange(len(values)) if groups is None else np.asarray(groups)",
        "groups = np.arange(len(values))",
        "test_evaluation.py::test_groups_are_drawn_whole",
    ),
    (
        "another run's checkpoint deleted",
        "models.py",
        "keep_as=previous if other else None",
        "keep_as=None",
        "test_stages.py::test_a_checkpoint_of_other_settings_is_kept_when_it_is_replaced",
    ),
    (
        "a checkpoint reused after its world changed",
        "models.py",
        'for name in ("phrases", "world", "judge", "annotator")',
        "for name in ()",
        "test_stages.py::test_a_checkpoint_belongs_to_the_world_that_wrote_its_data",
    ),
    (
        "sampling from logits that are not finite",
        "rollout.py",
        "if cdf[:, -1].isnan().any():",
        "if False:",
        "test_rollout.py::test_broken_weights_do_not_sample_nonsense_in_silence",
    ),
    # LoRA
    (
        "LoRA scales by alpha and forgets the rank",
        "lora.py",
        "self.scale, self.dropout = alpha / r, dropout",
        "self.scale, self.dropout = alpha, dropout",
        "test_lora.py::test_logits_and_gradients_equal_those_of_peft",
    ),
    (
        "LoRA starts away from the base model",
        "lora.py",
        "base.weight.new_zeros(n_out, r)",
        "base.weight.new_ones(n_out, r)",
        "test_lora.py::test_it_starts_as_the_base_model",
    ),
    (
        "LoRA trains the base layer too",
        "lora.py",
        "base.requires_grad_(False)",
        "base",
        "test_lora.py::test_a_two_by_two_example_by_hand",
    ),
    (
        "LoRA leaves the rest of the model to learn",
        "lora.py",
        "    model.requires_grad_(False)\n",
        "",
        "test_lora.py::test_only_the_low_rank_matrices_learn",
    ),
    (
        "dropout of LoRA acts in evaluation",
        "lora.py",
        "F.dropout(x, self.dropout, self.training)",
        "F.dropout(x, self.dropout, True)",
        "test_lora.py::test_dropout_acts_on_the_update_alone_and_only_in_training",
    ),
    (
        "merging forgets the scale",
        "lora.py",
        "delta = self.scale * self.B @ self.A",
        "delta = self.B @ self.A",
        "test_lora.py::test_merging_keeps_the_function_and_removes_the_layers",
    ),
    (
        "merging forgets that Conv1D is transposed",
        "lora.py",
        "delta.T if isinstance(self.base, Conv1D) else delta",
        "delta",
        "test_lora.py::test_merging_keeps_the_function_and_removes_the_layers",
    ),
]


def run(mutant) -> bool:
    """True if the tests fail on the patched library."""
    _, file, original, patched, tests = mutant
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "rlhf_lib", Path(folder) / "rlhf_lib", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "tests", Path(folder) / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        target = Path(folder) / "rlhf_lib" / file
        source = target.read_text()
        if source.count(original) != 1:
            sys.exit(f"the mutant of {file} no longer applies: {original!r} occurs {source.count(original)} times")
        target.write_text(source.replace(original, patched))
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            sys.path[:] = [folder, *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
            arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:nbval", *(f"tests/{t}" for t in tests.split())]
            os._exit(int(pytest.main(arguments)))
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 1):
        sys.exit(f"the tests of {file} ({tests}) could not run: pytest exit code {code}")
    return code == 1


def main() -> int:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [m for m in MUTANTS if word in m[0]]
    survivors = []
    for mutant in chosen:
        start = time.time()
        killed = run(mutant)
        print(f"{'killed' if killed else 'SURVIVED':<9} {time.time() - start:5.1f} s  {mutant[0]}", flush=True)
        if not killed:
            survivors.append(mutant[0])
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
