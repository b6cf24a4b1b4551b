"""Metrics and intervals against closed forms, brute force, other libraries, invariances and simulations."""

import itertools
import math
import re

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu
from scipy import optimize, stats
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve

from rlhf_lib import evaluation as ev

# ------------------------------------------------------------------------------------------ overlap with references


def longest_common_subsequence(a, b):
    """Length of the longest word sequence contained in both, by trying every one."""

    def subsequences(words):
        return {pick for size in range(len(words) + 1) for pick in itertools.combinations(words, size)}

    return max(map(len, subsequences(a) & subsequences(b)))


def test_rouge_l_equals_brute_force():
    rng = np.random.default_rng(0)  # words of three letters or fewer: rouge-score leaves them unstemmed
    words = np.array(["cat", "dog", "a", "of", "it", "run"])
    pairs = [(rng.choice(words, rng.integers(1, 9)), rng.choice(words, rng.integers(1, 9))) for _ in range(40)]
    expected = []
    for prediction, reference in pairs:
        common = longest_common_subsequence(prediction, reference)
        expected.append(2 * common / (len(prediction) + len(reference)))  # harmonic mean of precision and recall
    predictions, references = [[" ".join(words) for words in column] for column in zip(*pairs)]
    np.testing.assert_allclose(ev.rouge_l_each(predictions, references), expected, atol=1e-12)
    assert ev.rouge(predictions, references)["rougeL"] == pytest.approx(np.mean(expected))


def test_rouge_closed_forms():
    scores = ev.rouge(["a b", "x"], ["a b c d", "y"])  # precision 1, recall 2/4 and 1/3; the second pair scores 0
    assert scores == pytest.approx({"rouge1": 2 / 3 / 2, "rouge2": 1 / 2 / 2, "rougeL": 2 / 3 / 2})
    assert ev.rouge(["d c b a"], ["a b c d"]) == pytest.approx({"rouge1": 1, "rouge2": 0, "rougeL": 1 / 4})


def test_rouge_stems_and_ignores_case_and_marks():
    assert set(ev.rouge(["Cats, walking!"], ["cat walked"]).values()) == {1.0}


def test_rouge_of_an_empty_prediction_is_zero():
    assert set(ev.rouge([""], ["a b"]).values()) == {0.0}


def test_bleu_of_identical_texts_is_100():
    texts = ["my sister will not talk to me", "we argued about the rent again"]
    assert ev.bleu(texts, texts) == pytest.approx(100)
    assert ev.bleu(["", ""], texts) == 0


def test_bleu_brevity_penalty_falls_on_short_predictions_only():
    words = [f"w{i}" for i in range(10)]
    short, long = [" ".join(words[:8])], [" ".join(words)]
    assert ev.bleu(short, long) == pytest.approx(100 * math.exp(1 - 10 / 8))
    precisions = [8 / 10, 7 / 9, 6 / 8, 5 / 7]
    assert ev.bleu(long, short) == pytest.approx(100 * math.prod(precisions) ** (1 / 4))


def test_bleu_equals_nltk():
    rng = np.random.default_rng(1)
    references = [" ".join(rng.choice(["the", "man", "lost", "his", "job"], 12)) for _ in range(20)]
    predictions = [" ".join(text.split()[: rng.integers(8, 12)] + ["job", "the"]) for text in references]
    expected = corpus_bleu([[text.split()] for text in references], [text.split() for text in predictions])
    assert ev.bleu(predictions, references) == pytest.approx(100 * expected)


def test_distinct_n_counts():
    assert ev.distinct_n(["a a a a"], n=1) == 1 / 4
    assert ev.distinct_n(["a b a b"], n=2) == 2 / 3
    assert ev.distinct_n(["a b", "a b"], n=2) == 1 / 2  # the same text for two prompts is repetition too
    assert ev.distinct_n(["a b", "c d"], n=2) == 1  # no pair crosses from one text into the next
    assert ev.distinct_n(["a", ""], n=2) == 0


# ------------------------------------------------------------------------------------------------------ intervals


def test_mean_interval_equals_scipy_bootstrap():
    values = np.random.default_rng(2).exponential(size=80)
    ours = ev.mean_interval(values, n_boot=4000)
    scipys = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=3).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((scipys.low, scipys.high), abs=0.02)


def test_mean_interval_covers_the_truth():
    rng = np.random.default_rng(3)
    intervals = [ev.mean_interval(rng.normal(1, 2, 60), n_boot=200, seed=i) for i in range(500)]
    coverage = np.mean([interval.low <= 1 <= interval.high for interval in intervals])
    assert 0.91 <= coverage <= 0.975


def test_mean_interval_moves_and_stretches_with_the_values():
    values = np.random.default_rng(4).normal(size=30)
    base, moved = ev.mean_interval(values), ev.mean_interval(-2 * values + 5)
    assert moved == pytest.approx((5 - 2 * base.mean, 5 - 2 * base.high, 5 - 2 * base.low))


def test_mean_interval_depends_on_the_seed_alone():
    values = np.random.default_rng(5).normal(size=30)
    assert ev.mean_interval(values, seed=1) == ev.mean_interval(values, seed=1)
    assert ev.mean_interval(values, seed=1) != ev.mean_interval(values, seed=2)


def test_groups_are_drawn_whole():
    """Values that repeat within their prompt say no more than one of them: same interval, not a narrower one."""
    values = np.random.default_rng(6).normal(size=30)
    prompts = [f"{i:02}" for i in range(30)]
    once, alone = ev.mean_interval(values), ev.mean_interval(values, groups=prompts)
    copies = ev.mean_interval(np.tile(values, 5), groups=prompts * 5)
    assert alone == pytest.approx(once) and copies == pytest.approx(once)
    naive = ev.mean_interval(np.tile(values, 5))
    assert naive.high - naive.low < 0.6 * (once.high - once.low)
    low, high = ev.mean_interval([0, 0, 0, 1], groups=["a", "a", "a", "b"])[1:]
    assert (low, high) == (0, 1)  # aa, ab, bb: means 0, 1/4 and 1, weighted by the values that the groups hold
    draws = {ev.mean_interval([0, 0, 0, 1], 1, seed, ["a", "a", "a", "b"]).low for seed in range(50)}
    assert draws == {0, 0.25, 1}


def test_seed_interval_from_the_t_table():
    assert ev.seed_interval([0, 2]) == pytest.approx((1, 1 - 12.7062, 1 + 12.7062), abs=1e-4)  # t of 1 degree: 12.7062


def test_seed_interval_equals_scipys_and_covers_the_truth():
    rng = np.random.default_rng(6)
    samples = rng.normal(1, 2, (600, 4))
    intervals = np.array([ev.seed_interval(values) for values in samples])
    expected = stats.ttest_1samp(samples, 0, axis=1).confidence_interval(0.95)
    np.testing.assert_allclose(intervals, np.c_[samples.mean(1), expected.low, expected.high])
    assert 0.92 <= np.mean((intervals[:, 1] <= 1) & (1 <= intervals[:, 2])) <= 0.98


# ------------------------------------------------------------------------------------------------------ win rates


def test_win_rate_counts():
    result = ev.win_rate([1, 2, 3, 4], [0, 2, 5, 3])
    assert (result.rate, result.wins, result.ties, result.losses) == (0.625, 2, 1, 1)
    assert result.low <= 0.625 <= result.high


def test_all_ties_are_one_half():
    assert ev.win_rate([3.0] * 20, [3.0] * 20) == (0.5, 0.5, 0.5, 0, 20, 0)


def test_swapping_the_systems_mirrors_the_win_rate():
    a, b = np.random.default_rng(7).integers(0, 4, (2, 50))
    one, other = ev.win_rate(a, b), ev.win_rate(b, a)
    assert one.rate != 0.5
    assert (one.rate, one.low, one.high) == pytest.approx((1 - other.rate, 1 - other.high, 1 - other.low))
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)


def test_bootstrap_keeps_the_scores_of_a_prompt_together():
    hardness = np.random.default_rng(8).normal(0, 10, 100)
    result = ev.win_rate(hardness + 0.1, hardness)  # a little better on every prompt, however hard the prompt
    assert (result.rate, result.low, result.high) == (1, 1, 1)


def test_win_rate_interval_covers_the_truth_with_ties():
    rng = np.random.default_rng(9)
    truth, hits = 0.5 + 0.25 / 2, 0
    for i in range(500):
        hardness = rng.normal(0, 10, 60)
        gain = rng.choice([1, 0, -1], 60, p=[0.5, 0.25, 0.25])
        result = ev.win_rate(hardness + gain, hardness, n_boot=200, seed=i)
        hits += result.low <= truth <= result.high
    assert 0.91 <= hits / 500 <= 0.98


def test_pairwise_accuracy_counts_ties_one_half():
    assert ev.pairwise_accuracy([2, 1, 5, 0], [1, 1, 6, -1]) == 0.625
    chosen, rejected = np.random.default_rng(10).normal(size=(2, 40))
    accuracy = ev.pairwise_accuracy(chosen, rejected)
    assert accuracy == pytest.approx(np.mean(chosen > rejected))
    assert ev.pairwise_accuracy(rejected, chosen) == pytest.approx(1 - accuracy)


# ---------------------------------------------------------------------------------------------- length control


def pure_length_bias(n, seed, lead=0.6, slope=0.9):
    """Two equally good systems, `a` usually longer, and a judge that looks at length alone: P = σ(slope·tanh Δ/sd)."""
    rng = np.random.default_rng(seed)
    len_b = rng.integers(40, 80, n)
    len_a = len_b + np.round(20 * rng.normal(lead, 1, n))
    wins = (rng.random(n) < expit(slope * np.tanh((len_a - len_b) / 20))).astype(float)
    return wins, len_a, len_b


def test_length_control_removes_a_pure_length_bias():
    wins, len_a, len_b = pure_length_bias(4000, seed=11)
    assert wins.mean() > 0.58
    assert ev.length_controlled_win_rate(wins, len_a, len_b) == pytest.approx(0.5, abs=0.03)
    centred = ev.length_controlled_win_rate(wins, len_a - np.mean(len_a - len_b), len_b)
    assert centred == pytest.approx(wins.mean(), abs=0.02)


def test_length_control_has_a_closed_form_for_two_length_differences():
    wins = [1, 1, 1, 0.5] * 50 + [1, 0, 0, 0] * 50  # the fit passes through both groups: θ ± φ·x = their log-odds
    len_a, len_b = [30] * 200 + [10] * 200, [20] * 400
    expected = expit((logit(3.5 / 4) + logit(1 / 4)) / 2)
    assert ev.length_controlled_win_rate(wins, len_a, len_b) == pytest.approx(expected, abs=1e-3)


def test_length_control_equals_maximum_likelihood():
    rng = np.random.default_rng(12)
    len_a, len_b = rng.gamma(2, 30, 400), rng.gamma(2, 20, 400)
    x = np.tanh((len_a - len_b) / np.std(len_a - len_b, ddof=1))
    wins = np.where(rng.random(400) < 0.2, 0.5, rng.random(400) < expit(0.4 + 1.5 * x))

    def negative_log_likelihood(weights):
        z = weights[0] + weights[1] * x
        return np.sum(np.logaddexp(0, z) - wins * z)

    theta, _ = optimize.minimize(negative_log_likelihood, [0, 0]).x
    assert ev.length_controlled_win_rate(wins, len_a, len_b) == pytest.approx(expit(theta), abs=1e-3)


def test_length_control_mirrors_and_has_no_unit():
    wins, len_a, len_b = pure_length_bias(200, seed=13)
    wins[::7] = 0.5
    rate = ev.length_controlled_win_rate(wins, len_a, len_b)
    assert ev.length_controlled_win_rate(1 - wins, len_b, len_a) == pytest.approx(1 - rate, abs=1e-6)
    assert ev.length_controlled_win_rate(wins, 4.5 * len_a, 4.5 * len_b) == pytest.approx(rate, abs=1e-6)


def test_length_control_changes_nothing_where_length_does_not_matter():
    rng = np.random.default_rng(14)
    delta = np.repeat(rng.integers(-30, 60, 100), 4)
    wins = np.tile([1, 1, 0.5, 1], 100)  # each length difference sees the same outcomes, so φ = 0 exactly
    assert ev.length_controlled_win_rate(wins, 50 + delta, np.full(400, 50)) == pytest.approx(0.875, abs=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lead", [0, 10])
def test_length_control_is_finite_where_length_decides_every_win(lead):
    delta = np.arange(-59, 60, 2) + lead
    rate = ev.length_controlled_win_rate((delta > 0).astype(float), 60 + delta, np.full(60, 60))
    assert rate == pytest.approx(0.5, abs=0.1)


def test_length_control_is_steady_where_length_decides_every_win():  # without a ridge the spread is .45
    deltas = np.random.default_rng(17).normal(0.4, 1, (20, 200))
    rates = [ev.length_controlled_win_rate((delta > 0).astype(float), 50 + delta, np.full(200, 50)) for delta in deltas]
    assert np.mean(rates) == pytest.approx(0.5, abs=0.08)
    assert np.std(rates) < 0.12


@pytest.mark.filterwarnings("error")
def test_length_control_without_spread_is_the_raw_rate():
    lengths = np.array([10, 20, 30, 40])
    assert ev.length_controlled_win_rate([1, 0.5, 1, 0], lengths, lengths) == 0.625
    assert ev.length_controlled_win_rate([1, 0.5, 1, 0], lengths + 5, lengths) == 0.625
    for outcome in (0, 0.5, 1):
        assert ev.length_controlled_win_rate([outcome] * 4, lengths, lengths[::-1]) == outcome
    assert ev.length_controlled_win_rate([1], [7], [3]) == 1


# ---------------------------------------------------------------------------------- calibration and best-of-n


def test_calibration_by_hand():
    result = ev.calibration([0.05, 0.1, 0.15, 0.9, 1.0], [0, 1, 0, 0, 1], n_bins=5)
    assert np.array(result.bins) == pytest.approx(np.array([[0.1, 1 / 3, 3], [0.95, 1 / 2, 2]]))
    assert result.error == pytest.approx(3 / 5 * (1 / 3 - 0.1) + 2 / 5 * 0.45)


def test_calibration_bins_equal_scikit_learns():
    rng = np.random.default_rng(15)
    probabilities, outcomes = rng.beta(5, 2, 300), rng.integers(0, 2, 300)
    bins = ev.calibration(probabilities, outcomes, n_bins=10).bins
    observed, predicted = calibration_curve(outcomes, probabilities, n_bins=10)
    np.testing.assert_allclose([(b.predicted, b.observed) for b in bins], np.c_[predicted, observed])
    assert sum(b.count for b in bins) == 300


def test_calibration_error_tells_honest_from_overconfident():
    rng = np.random.default_rng(16)
    honest = rng.random(20000)
    outcomes = (rng.random(20000) < honest).astype(int)
    assert ev.calibration(honest, outcomes).error < 0.015
    assert ev.calibration(expit(4 * logit(honest)), outcomes).error > 0.1
    coin = rng.integers(0, 2, 20000)
    assert ev.calibration(np.where(honest < 0.5, 0.05, 0.95), coin).error == pytest.approx(0.45, abs=0.015)


def exact_best_of_n_kl(probabilities, n):
    """KL(best-of-n ‖ reference) when the outcomes have different scores, listed from worst to best."""
    cdf = np.cumsum(probabilities)
    best = cdf**n - np.append(0, cdf[:-1]) ** n
    return np.sum(best * np.log(best / probabilities))


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_best_of_n_kl_bounds_the_exact_kl(n):
    few, many = np.array([0.5, 0.3, 0.2]), np.full(20000, 1 / 20000)
    assert exact_best_of_n_kl(few, n) <= ev.best_of_n_kl(n) + 1e-12
    assert exact_best_of_n_kl(many, n) == pytest.approx(ev.best_of_n_kl(n), abs=1e-3)


# ------------------------------------------------------------------------------------------------------ bad input

BAD = {
    "no texts": (lambda: ev.rouge([], []), "predictions must be a non-empty list"),
    "one string": (lambda: ev.bleu("a b", "a b"), "predictions must be a non-empty list"),
    "missing text": (lambda: ev.rouge_l_each(["a", None], ["a", "b"]), "predictions must be"),
    "bare references": (lambda: ev.rouge(["a"], "a"), "references must be"),
    "unequal texts": (lambda: ev.rouge(["a"], ["a", "b"]), "predictions has 1, references has 2"),
    "unequal for bleu": (lambda: ev.bleu(["a", "b"], ["a"]), "predictions has 2, references has 1"),
    "no text for distinct_n": (lambda: ev.distinct_n([]), "texts must be"),
    "0-grams": (lambda: ev.distinct_n(["a b"], n=0), "n is 0"),
    "no scores": (lambda: ev.win_rate([], []), "scores_a has shape (0,)"),
    "unequal scores": (lambda: ev.win_rate([1, 2], [1]), "scores_a has 2, scores_b has 1"),
    "a matrix": (lambda: ev.mean_interval(np.ones((2, 2))), "values has shape (2, 2)"),
    "not a number": (lambda: ev.pairwise_accuracy([1, math.nan], [0, 0]), "chosen_scores holds 1 values"),
    "no resamples": (lambda: ev.mean_interval([1, 2], n_boot=0), "n_boot is 0"),
    "a group missing": (lambda: ev.mean_interval([1, 2], groups=["p"]), "values has 2, groups has 1"),
    "one seed": (lambda: ev.seed_interval([1.0]), "values holds one seed"),
    "scores as wins": (lambda: ev.length_controlled_win_rate([0.7, 1], [1, 2], [1, 1]), "wins holds other values"),
    "unequal lengths": (lambda: ev.length_controlled_win_rate([1, 0], [1, 2], [1]), "len_b has 1"),
    "scores as probabilities": (lambda: ev.calibration([1.2], [1]), "probabilities holds values outside"),
    "negative probability": (lambda: ev.calibration([-0.1], [1]), "probabilities holds values outside"),
    "soft outcomes": (lambda: ev.calibration([0.5], [0.5]), "outcomes holds other values"),
    "no bins": (lambda: ev.calibration([0.5], [1], n_bins=0), "n_bins is 0"),
    "best of none": (lambda: ev.best_of_n_kl(0), "n is 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_is_wrong_and_what_to_do(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call()
    assert re.search(r": (pass|find|train)", str(error.value)) and "\n" not in str(error.value)
