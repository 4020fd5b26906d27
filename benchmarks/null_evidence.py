"""Evidence where nothing is planted: p-values, probabilities and controls of many null simulations.

Each simulation makes subjects whose query outputs are noise, fits an encoding model to all but
one of them, and identifies the trials of the one left out among the texts: those of training, and
texts that were never trained on. Printed: the share of simulations with p < 0.05 against shuffled
trials, a Kolmogorov-Smirnov test that the p-values are uniform, and how far the probabilities are
from the truth.

    python benchmarks/null_evidence.py --simulations 200
"""

import argparse
import json

import numpy as np
import torch
from rich.progress import track
from scipy.stats import binomtest, kstest

from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import ConditionPredictions, SubjectPredictions
from mindllm.evaluation.score import permutation_p_values, score_predictions
from mindllm.metrics.calibration import candidate_probabilities, evidence_calibration
from mindllm.metrics.registry import METRICS
from mindllm.model.encoding_fit import SubjectFeatures, fit_encoding_model

N_TEXTS, N_NEW, N_QUERIES, N_REPETITIONS = 24, 8, 64, 3
METRIC = list(METRICS).index("identification_evidence_2way")


def simulate(seed: int, n_subjects: int = 4) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Evidence (B, C) for known and for new texts, with the targets (B,), of pure noise."""
    rng = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(N_TEXTS + N_NEW, 32, generator=rng, dtype=torch.float64)
    mixing = torch.randn(N_QUERIES, N_QUERIES, generator=rng, dtype=torch.float64)

    def subject(texts: torch.Tensor) -> SubjectFeatures:
        noise = torch.randn(len(texts), N_QUERIES, generator=rng, dtype=torch.float64)
        return SubjectFeatures(noise @ mixing, texts)

    shown = torch.arange(N_TEXTS).repeat(N_REPETITIONS)
    model = fit_encoding_model(
        {f"sub-{i:02d}": subject(shown) for i in range(n_subjects - 1)}, embeddings
    )
    results = {}
    for name, texts in (("known", shown), ("new", torch.arange(N_NEW).repeat(9) + N_TEXTS)):
        test = subject(texts)
        candidates = torch.unique(texts)
        transform = model.subject_transform(test.values)
        evidence = model.evidence(test.values, transform, embeddings[candidates])
        results[name] = (evidence.numpy(), torch.searchsorted(candidates, texts).numpy())
    return results


def p_value(evidence: np.ndarray, targets: np.ndarray, seed: int) -> float:
    """P-value of 2-way identification by evidence above shuffled trials."""
    names = [str(i) for i in range(evidence.shape[1])]
    task = EvaluationSet({}, {}, names, [[n] for n in names], names, np.arange(len(names)), "", "")
    fmri = ConditionPredictions(None, [""] * len(evidence), evidence=evidence)
    conditions = {"fmri": fmri, "shuffled_trials": fmri.broadcast_to_trials(len(evidence))}
    predictions = SubjectPredictions("sub", np.array([names[t] for t in targets]), conditions)
    scores = score_predictions(predictions, task, seed=seed)
    p_values = permutation_p_values(scores, "shuffled_trials", seed)
    assert p_values is not None
    return float(p_values[METRIC])


def main() -> None:
    """Run the simulations and print what was found, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=200)
    count = parser.parse_args().simulations
    p_values: dict[str, list[float]] = {"known": [], "new": []}
    evidence: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"known": [], "new": []}
    for seed in track(range(count), "null simulations"):
        for name, (values, targets) in simulate(seed).items():
            p_values[name].append(p_value(values, targets, seed))
            evidence[name].append((values, targets))
    for name, values in p_values.items():
        n_below = int((np.array(values) < 0.05).sum())
        low, high = binomtest(n_below, count).proportion_ci()
        probabilities = candidate_probabilities(np.concatenate([e for e, _ in evidence[name]]))
        calibration = evidence_calibration(
            probabilities, np.concatenate([t for _, t in evidence[name]])
        )
        found = {
            "texts": name,
            "simulations": count,
            "p below 0.05": round(n_below / count, 3),
            "its 95 % interval": [round(low, 3), round(high, 3)],
            "Kolmogorov-Smirnov p": round(float(kstest(values, "uniform").pvalue), 3),
            "largest probability, mean": round(float(probabilities.max(1).mean()), 4),
            "how often it is right": round(calibration.probability.accuracy, 4),
            "expected calibration error": round(calibration.expected_calibration_error.value, 4),
        }
        print(json.dumps(found))


if __name__ == "__main__":
    main()
