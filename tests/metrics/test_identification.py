"""Scores: fair ties, exact chance, intervals that cover, p-values uniform under the null."""

import time

import numpy as np
import pytest

from mindllm.metrics.exact_match import exact_match, exact_match_scores, normalize_answer
from mindllm.metrics.identification import identification, rank, top_k_scores
from mindllm.metrics.inference import bootstrap_interval, p_value, permutation_null


@pytest.mark.parametrize(
    "text",
    [
        "a dog runs",
        "A dog runs.",
        "  a  DOG\nruns ",
        "“a dog runs”".replace("“", '"').replace("”", '"'),
    ],
)
def test_normalization_ignores_case_space_and_outer_punctuation(text: str) -> None:
    assert normalize_answer(text) == "a dog runs"


def test_normalization_keeps_words_apart() -> None:
    assert normalize_answer("a dog's run") != normalize_answer("a dogs run")


def test_exact_match_takes_any_accepted_answer_and_never_silence() -> None:
    assert exact_match("A cat.", ["a dog", "a cat"])
    assert not exact_match("a cat sleeps", ["a dog", "a cat"])
    assert not exact_match("", ["", "a cat"])
    assert exact_match_scores(["a", "b"], [["b"], ["a", "b"]]).tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize("k", [1, 5, 60])
def test_constant_scores_give_exactly_chance(k: int) -> None:
    hits = identification(np.full((7, 60), -3.25), np.arange(7), k)
    np.testing.assert_allclose(hits, k / 60, rtol=1e-12)


def test_ties_count_as_if_broken_at_random() -> None:
    scores = np.array([[5.0, 3.0, 3.0, 3.0, 1.0]])
    np.testing.assert_allclose(top_k_scores(scores, 2)[0], [1, 1 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(top_k_scores(scores, 5)[0], 1)
    assert rank(scores, np.array([2])) == 3
    rng, wins = np.random.default_rng(0), 0
    for _ in range(4000):
        wins += 2 in np.lexsort((rng.random(5), -scores[0]))[:2]
    assert wins / 4000 == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("k", [1, 3])
def test_credit_of_a_row_sums_to_k(k: int) -> None:
    scores = np.random.default_rng(0).integers(0, 4, (50, 9)).astype(float)
    np.testing.assert_allclose(top_k_scores(scores, k).sum(1), k)


def test_perfect_scores_give_one() -> None:
    assert identification(np.eye(6), np.arange(6)).tolist() == [1] * 6
    assert rank(np.eye(6), np.arange(6)).tolist() == [1] * 6


def test_bootstrap_covers_the_truth_and_knows_clusters() -> None:
    rng, inside, repeats = np.random.default_rng(1), 0, 300
    clusters = np.repeat(np.arange(50), 4)
    for seed in range(repeats):
        easy = rng.beta(1, 1.5, 50)  # how easy each stimulus is; its mean is 0.4
        low, high = bootstrap_interval(
            rng.random(200) < easy[clusters], clusters, resamples=300, seed=seed
        )
        inside += low <= 0.4 <= high
    assert 0.90 <= inside / repeats <= 0.985


def test_bootstrap_keeps_trials_of_a_stimulus_together() -> None:
    values, clusters = np.repeat([0.0, 1.0], 20).repeat(10), np.repeat(np.arange(40), 10)
    low, high = bootstrap_interval(values, clusters)
    alone = bootstrap_interval(values, np.arange(400))
    assert high - low > 2.5 * (alone[1] - alone[0])


def test_bootstrap_is_seeded_takes_columns_and_is_fast() -> None:
    values = np.random.default_rng(0).random((1000, 2))
    began = time.perf_counter()
    low, high = bootstrap_interval(values, np.arange(1000), seed=3)
    assert time.perf_counter() - began < 2
    assert low.shape == high.shape == (2,)
    assert (low < values.mean(0)).all()
    assert (high > values.mean(0)).all()
    again = bootstrap_interval(values[:, 0], np.arange(1000), seed=3)
    assert np.allclose([low[0], high[0]], again)


def test_shuffled_random_scores_stand_at_chance() -> None:
    credit = top_k_scores(np.random.default_rng(0).normal(size=(120, 60)), 1)
    null = permutation_null([(credit, np.arange(120) % 60)], permutations=1000)[:, 0]
    assert null.mean() == pytest.approx(1 / 60, abs=0.002)
    # Uniform permutations: over balanced truths the expectation is chance, whatever the scores.
    assert credit.mean(0)[np.arange(120) % 60].mean() == pytest.approx(1 / 60, rel=1e-12)


def test_p_values_are_uniform_under_the_null() -> None:
    rng, true, values = np.random.default_rng(2), np.arange(40) % 20, []
    for seed in range(300):
        ranks = (
            1.0 - np.argsort(np.argsort(rng.normal(size=(40, 20)), 1), 1) / 20
        )  # graded credit: almost no ties
        values.append(
            p_value(
                ranks[np.arange(40), true].mean(),
                permutation_null([(ranks, true)], permutations=99, seed=seed)[:, 0],
            )
        )
    values = np.array(values)
    assert values.min() > 0
    for level in (0.05, 0.2, 0.5, 0.8):
        assert (values <= level).mean() == pytest.approx(
            level, abs=3.5 * np.sqrt(level * (1 - level) / 300)
        )


def test_p_value_of_hits_is_never_too_small_under_the_null() -> None:
    rng, true, small = np.random.default_rng(3), np.arange(60), 0
    for seed in range(200):
        credit = top_k_scores(rng.normal(size=(60, 60)), 1)
        null = permutation_null([(credit, true)], permutations=99, seed=seed)[:, 0]
        small += p_value(credit[true, true].mean(), null) <= 0.05
    assert small / 200 <= 0.1
