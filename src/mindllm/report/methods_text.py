"""How an evaluation was measured, in words."""

from collections.abc import Mapping
from typing import Any


def methods_text(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of everything that a reader must know to judge the numbers."""
    model, data = meta["model"], meta["data"]
    trained = model["trained_on_subjects"]
    ties = (
        f" (one of {meta['constant_ties']} equally frequent ones: identification counts a random one of them, text scores the most central)"
        if meta["constant_ties"] > 1
        else ""
    )
    llm = f"{model['llm']} (fingerprint {model['llm_fingerprint']}), frozen"
    permutations = f"{meta['permutations']:,}"
    return [
        ("Model", f"{model['name']}; language model {llm}; trained on {trained if isinstance(trained, str) else ', '.join(trained)}; store {model['trained_on_store']}; seed {model['training_seed']}"),
        ("Data", f"{data['store']}. {data['source']}. Licence: {data['license']}"),
        ("Split", data.get("split", "default")),
        ("Trials", f"{sum(p['trials'] for p in meta['subjects'].values())} single trials, none averaged and none left out; see the table of people"),
        ("Question", f"“{' '.join(meta['question'].split())}” ({meta['question_origin']})"),
        ("Candidates", f"{len(meta['candidates'])}: the first accepted answer of every evaluated stimulus; the truth is the stimulus' own. Ties count in expectation, as if broken at random"),
        ("Generation", f"free-running, greedy unless the options say otherwise: {meta['generate_options'] or 'default options'}"),
        ("Shuffled, in session, other person", f"the same model's readings stand in for each other: the exact mean over all that may stand in, the trial itself (or the other person's trial of the same stimulus) being one of them, so that it is exactly chance where the answers are equally frequent. p: the share of {permutations} random assignments that do as well as the brain (one-sided)"),
        ("No brain", f"the mean fMRI token of training in place of the scan. It says: “{meta['null_tokens_text']}”. Its gain is zero for every answer, so it stands at chance by definition"),
        ("Question only", f"the prompt without any place for fMRI tokens. It says: “{meta['question_only_text']}”"),
        ("Zero and noise input", f"every voxel at its mean: “{meta['zero_text']}”; and four scans of independent Gaussian noise as large as normalized values: “{meta['noise_text']}”"),
        ("Constant", f"the most frequent training answer: “{meta['constant_text']}”{ties}; candidates are ranked by their frequency in training"),
        ("p against what reads no scan", "as against shuffled scans; but where the control earns more than shuffled scans do, the brain must beat the random assignments by that much more"),
        ("Trained on shuffled pairs", "the whole training again with the same options and seed, each person's scans paired with that person's other trials' texts; validation trials too"),
        ("Ridge", "features: activity under 512 fixed Gaussian fields of 4 mm, the same places in everybody. Targets: whitened embeddings of the first answers. The strength is chosen by five-fold cross-validation over people (over stimuli, where one person was trained on). The text is the nearest training answer; candidates are ranked by cosine"),
        ("Nearest pattern", "correlation with each training stimulus' mean pattern, on the voxels that the training people and the evaluated person share"),
        ("p against what reads the scan too", f"{permutations} random signs of the answers' differences. From each reader's credit is taken away what its readings of the other trials would have earned on this one, so that a liking for some answers does not count"),
        ("Cluster oracle", f"k-means on the answers' embeddings, k = {meta['oracle_clusters']}: a reader that is told the true cluster and nothing else. A reference, no control"),
        ("Intervals", f"95 %, percentile bootstrap of {meta['bootstrap_resamples']:,} resamples over answers (all trials with the same true answer stay together) and, for everybody together, over people too. With few people this interval is too narrow. An interval of no width at 0 means that no hit was there to resample, not certainty"),
        ("People as a random effect", "each person counts alike; people_p in report.json is the one-sided t test of people's mean differences (brain minus condition). All other p-values are about these people"),
        ("Seed and time", f"seed {meta['seed']}; {meta['time']}; {meta['seconds']} s"),
        ("Versions", ", ".join(f"{name} {number}" for name, number in meta["versions"].items())),
    ]  # fmt: skip
