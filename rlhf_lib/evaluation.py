"""Automatic metrics, win rates and their uncertainty: numbers in, numbers out, no model and no file.

Every function raises ValueError, with one sentence, for empty input, unequal lengths and values out of range. N is the
number of prompts. Intervals cover 95 %.

Left out: tests of significance and corrections for many comparisons; read whether the interval of a paired difference,
`mean_interval(a - b)`, holds 0.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import sacrebleu
from scipy import stats
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")

LENGTH_RIDGE = 0.01
"""λ of the penalty λ/2·φ² in `length_controlled_win_rate`: a normal prior of sd 10 on φ, a log-odds ratio"""


class Interval(NamedTuple):
    mean: float
    low: float
    high: float


class WinRate(NamedTuple):
    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int


class CalibrationBin(NamedTuple):
    predicted: float
    """mean probability in the bin"""
    observed: float
    """share of outcomes that are 1"""
    count: int


class Calibration(NamedTuple):
    bins: list[CalibrationBin]
    error: float
    """expected calibration error, 0..1"""


# ---------------------------------------------------------------------------------------------- checks of input


def _vector(values, name: str) -> np.ndarray:
    """`values` as finite float64 of shape (N,), N ≥ 1."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(
            f"{name} has shape {vector.shape}, but one number for each prompt was expected: pass a non-empty flat list"
        )
    if not np.isfinite(vector).all():
        raise ValueError(
            f"{name} holds {np.sum(~np.isfinite(vector))} values that are not finite, but numbers were expected: "
            "find the prompts that could not be scored"
        )
    return vector


def _same_length(**columns) -> None:
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        counts = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(f"{counts}, but one entry for each prompt was expected: pass them in the same prompt order")


def _vectors(**columns) -> list[np.ndarray]:
    """Each column as `_vector` gives it, all of the same length."""
    vectors = {name: _vector(values, name) for name, values in columns.items()}
    _same_length(**vectors)
    return list(vectors.values())


def _at_least(value: int, least: int, name: str) -> None:
    if value != int(value) or value < least:
        raise ValueError(f"{name} is {value}, but a whole number was expected: pass {least} or more")


def _texts(texts: Sequence[str], name: str) -> list[str]:
    if isinstance(texts, str) or len(texts) == 0 or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a non-empty list of strings: pass one text for each prompt")
    return list(texts)


def _text_pairs(predictions: Sequence[str], references: Sequence[str]) -> tuple[list[str], list[str]]:
    predictions, references = _texts(predictions, "predictions"), _texts(references, "references")
    _same_length(predictions=predictions, references=references)
    return predictions, references


# ------------------------------------------------------------------------------------------ overlap with references


def _rouge_each(predictions: Sequence[str], references: Sequence[str]) -> list[dict]:
    from rouge_score import rouge_scorer  # only here: its import takes a second, which most stages need not wait

    pairs = zip(*_text_pairs(predictions, references))
    scorer = rouge_scorer.RougeScorer(ROUGE_TYPES, use_stemmer=True)
    return [scorer.score(target=reference, prediction=prediction) for prediction, reference in pairs]


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-measure, 0..1, of shared words, shared word pairs and the longest common subsequence.

    Lower case, Porter stems (Lin 2004, "ROUGE", in the rouge-score package). An empty prediction scores 0.
    """
    scores = _rouge_each(predictions, references)
    return {kind: float(np.mean([score[kind].fmeasure for score in scores])) for kind in ROUGE_TYPES}


def rouge_l_each(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L F-measure of each pair, (N,): `mean_interval(a - b)` of two of these compares two systems."""
    return np.array([score["rougeL"].fmeasure for score in _rouge_each(predictions, references)])


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU, 0..100, one reference per prediction (Papineni et al. 2002; sacrebleu's defaults, Post 2018).

    It multiplies the precisions of 1- to 4-grams over the whole corpus: it has no per-prompt value, and a corpus in
    which no text has four words scores 0.
    """
    predictions, references = _text_pairs(predictions, references)
    return float(sacrebleu.corpus_bleu(predictions, [references]).score)


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Different word n-grams divided by all n-grams of all the texts, 0..1; low means repetition.

    Li et al. 2016 (arXiv 1510.03055), who divide by the number of words. It falls as texts are added: compare sets of
    the same size. `distinct_n([text])` sees repetition within one text. 0 where no text has n words.
    """
    _at_least(n, 1, "n")
    words = [text.split() for text in _texts(texts, "texts")]
    ngrams = [tuple(text[i : i + n]) for text in words for i in range(len(text) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


# ------------------------------------------------------------------------------------------------------ intervals


def mean_interval(values, n_boot: int = 1000, seed: int = 0, groups=None) -> Interval:
    """Mean of `values` (N,), one per prompt, with the percentile bootstrap over prompts (Efron 1979).

    `mean_interval(a - b)` is the paired comparison of two systems on the same prompts. Where several values share a
    prompt, such as all the pairs made of its samples, `groups` (N,) names the prompt of each, and whole groups are drawn:
    they are not independent, and an interval that treats them so is too narrow (the cluster bootstrap, Davison and
    Hinkley 1997, section 3.8). Where all values are equal the interval has no width: the sample then says nothing about
    how far other prompts could differ.
    """
    values = _vector(values, "values")
    _at_least(n_boot, 1, "n_boot")
    groups = np.arange(len(values)) if groups is None else np.asarray(groups)
    _same_length(values=values, groups=groups)
    _, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)
    rng, n = np.random.default_rng(seed), len(sums)
    draws = (rng.integers(n, size=n) for _ in range(n_boot))
    low, high = np.quantile([sums[d].sum() / counts[d].sum() for d in draws], [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def seed_interval(values) -> Interval:
    """Mean of `values` (S,), one result per training seed, with Student's t interval of S − 1 degrees of freedom.

    Few seeds make wide intervals: half the width is 9.0 standard deviations for 2 seeds, 1.6 for 4.
    """
    values = _vector(values, "values")
    if len(values) < 2:
        raise ValueError("values holds one seed, but a spread needs two or more: train with another seed")
    mean, error = values.mean(), stats.sem(values)
    half = stats.t.ppf(0.975, len(values) - 1) * error
    return Interval(float(mean), float(mean - half), float(mean + half))


# ------------------------------------------------------------------------------------------------------ win rates


def prompt_wins(scores_a, scores_b) -> np.ndarray:
    """(N,) in {0, .5, 1}: 1 where `a` scores higher on the prompt, .5 where both score the same."""
    scores_a, scores_b = _vectors(scores_a=scores_a, scores_b=scores_b)
    return np.where(scores_a == scores_b, 0.5, scores_a > scores_b)


def win_rate(scores_a, scores_b, n_boot: int = 1000, seed: int = 0) -> WinRate:
    """Share of prompts on which `a` beats `b`, ties counting one half; scores (N,) each, in the same prompt order.

    The interval is that of `mean_interval` over the prompts' wins: prompts are drawn, and the two scores of a prompt
    stay together (Koehn 2004, the paired bootstrap). With 100 prompts it can be .2 wide.
    """
    wins = prompt_wins(scores_a, scores_b)
    counts = [int(np.sum(wins == outcome)) for outcome in (1, 0.5, 0)]
    return WinRate(*mean_interval(wins, n_boot, seed), *counts)


def length_controlled_win_rate(wins, len_a, len_b) -> float:
    """Win rate of `a`, 0..1, that the judge would give were both answers equally long.

    Fits logit P(a wins) = θ + φ·tanh(Δ / sd(Δ)) with Δ = len_a − len_b, and returns P at Δ = 0, which is σ(θ): the
    model of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475) without its term for the difficulty of instructions,
    which takes many systems to estimate. Δ is scaled but never centred: centred, Δ = 0 would mean "as much longer as
    usual" and the bias would stay. A tie is half a win and half a loss of the same pair.

    wins (N,) in {0, .5, 1}, as from `prompt_wins`; len_a, len_b (N,) in tokens, words or characters.

    Where length alone decides every win, maximum likelihood has φ = ∞ and no stable answer, so φ carries a weak ridge
    (AlpacaEval: an L1 penalty, cross-validated, on all weights). θ carries none, since shrinking it would pull every
    rate towards .5. Outcomes that are all the same (θ = ±∞ or 0), and length differences that are all the same, return
    the raw rate. Where `a` is longer on nearly every prompt, equal length is extrapolation: distrust the result.
    """
    wins, len_a, len_b = _vectors(wins=wins, len_a=len_a, len_b=len_b)
    if not np.isin(wins, (0, 0.5, 1)).all():
        raise ValueError("wins holds other values than 0, .5 and 1: pass the outcomes of prompt_wins, not the scores")
    delta = len_a - len_b
    if np.ptp(wins) == 0 or np.ptp(delta) == 0:
        return float(wins.mean())
    x = np.tanh(delta / delta.std(ddof=1))
    model = LogisticRegression(C=1 / LENGTH_RIDGE, tol=1e-8, max_iter=1000)  # an L2 penalty that spares the intercept
    outcomes = np.repeat([1, 0], len(wins))
    model.fit(np.tile(x, 2)[:, None], outcomes, sample_weight=np.concatenate([wins, 1 - wins]))
    return float(expit(model.intercept_[0]))


# ---------------------------------------------------------------------------------- reward models and best-of-n


def pairwise_accuracy(chosen_scores, rejected_scores) -> float:
    """Share of pairs whose chosen answer scores higher, ties counting one half; scores (N,) each."""
    chosen, rejected = _vectors(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    return float(prompt_wins(chosen, rejected).mean())


def calibration(probabilities, outcomes, n_bins: int = 10) -> Calibration:
    """Does what is predicted with p happen in a share p of the cases? Equal-width bins over 0..1, empty ones dropped.

    error = Σ_b n_b/N · |observed_b − predicted_b|, Guo et al. 2017 (arXiv 1706.04599), equation 3. Chance alone makes
    it positive, the more so with few cases per bin.

    probabilities (N,) in 0..1; outcomes (N,) in {0, 1}. For a reward model, first put each pair in a random order:
    with σ(chosen − rejected) every outcome is 1, and even the best model looks wrong.
    """
    probabilities, outcomes = _vectors(probabilities=probabilities, outcomes=outcomes)
    _at_least(n_bins, 1, "n_bins")
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError("probabilities holds values outside 0..1: pass the score difference through a sigmoid first")
    if not np.isin(outcomes, (0, 1)).all():
        raise ValueError("outcomes holds other values than 0 and 1: pass 1 where the predicted event happened, else 0")
    index = np.minimum((probabilities * n_bins).astype(int), n_bins - 1)
    inside = [index == b for b in np.unique(index)]
    bins = [CalibrationBin(float(probabilities[i].mean()), float(outcomes[i].mean()), int(i.sum())) for i in inside]
    error = sum(b.count * abs(b.observed - b.predicted) for b in bins) / len(outcomes)
    return Calibration(bins, error)


def best_of_n_kl(n: int) -> float:
    """Upper bound, in nats, on KL(best-of-n ‖ reference) per prompt: log n − (n − 1)/n.

    Beirami et al. 2024 (arXiv 2401.01879), theorem 3.1. Reached when no two samples share text or score; a policy with
    few likely answers stays far below.
    """
    _at_least(n, 1, "n")
    return math.log(n) - (n - 1) / n
