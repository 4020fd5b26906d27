"""How an evaluation was measured, in words."""

from mindllm.evaluation.results import RunInfo

UNKNOWN = "unknown"
PREDICTORS = {
    "Trained on permuted pairs": (
        "the whole training again with the same options and seed, each subject's trials paired "
        "with the texts of that subject's other trials; validation trials too"
    ),
    "Ridge": (
        "features: betas under 512 fixed Gaussian fields of 4 mm, at the same coordinates in "
        "every subject. Targets: whitened embeddings of the first references. The penalty is "
        "chosen by five-fold cross-validation over subjects (over stimuli, where one subject "
        "was trained on). The text is the nearest training answer; candidates are ranked by "
        "cosine similarity"
    ),
    "Nearest neighbor": (
        "correlation with each training stimulus' mean pattern, on the voxels that the "
        "training subjects and the evaluated subject share"
    ),
}


def methods_text(run: RunInfo) -> dict[str, str]:
    """Describe how a result was measured.

    Parameters
    ----------
    run : RunInfo
        How an evaluation was made.

    Returns
    -------
    dict of str to str
        Label to text of everything that is needed to judge the numbers.
    """
    return data_texts(run) | condition_texts(run) | statistics_texts(run)


def data_texts(run: RunInfo) -> dict[str, str]:
    """Describe the model, the trials and the question."""
    model, data = run.model, run.data
    subjects = model.trained_on_subjects
    seed = UNKNOWN if model.training_seed is None else model.training_seed
    n_trials = sum(info.n_trials for info in run.subjects)
    options = ", ".join(f"{name}={value}" for name, value in run.generate_options.items())
    precision = f", {model.language_model_dtype}" if model.language_model_dtype else ""
    return {
        "Model": (
            f"{model.name or UNKNOWN}; language model {model.language_model} (fingerprint "
            f"{model.language_model_fingerprint}{precision}), frozen; trained on "
            f"{UNKNOWN if subjects is None else ', '.join(subjects)}; store "
            f"{model.trained_on_store or UNKNOWN}; seed {seed}"
        ),
        "Data": (
            f"{data.store or UNKNOWN}. {data.source or UNKNOWN}. License: {data.license or UNKNOWN}"
        ),
        "Split": data.split,
        "Trials": (
            f"{n_trials} single trials, none averaged and none left out; see the table of subjects"
        ),
        "Question": f"“{' '.join(run.question.split())}” ({run.question_source})",
        "Candidates": (
            f"{len(run.candidates)}: the first reference of every evaluated stimulus; the target "
            "is that of the trial's stimulus. Ties count in expectation, as if broken at random"
        ),
        "Generation": (
            f"open-ended, greedy unless the options say otherwise: {options or 'default options'}"
        ),
    }


def condition_texts(run: RunInfo) -> dict[str, str]:
    """Describe the conditions, and what is generated without the trial's fMRI."""
    return {
        "Shuffled trials, shuffled within session, other subject": (
            "the same model's predictions stand in for each other: the exact mean over all that "
            "may stand in, the trial itself (or the other subject's trial of the same stimulus) "
            "being one of them, so that it is exactly chance where the answers are equally "
            f"frequent. p: the fraction of {run.n_permutations:,} random assignments that score as "
            "high as fMRI (one-sided)"
        ),
        "Null tokens": (
            "the mean fMRI tokens of training in place of the trial's. Generated text: "
            f"“{run.null_tokens_text}”. The log-likelihood ratio is zero for every answer, so it "
            "is at chance by definition"
        ),
        "Question only": (
            f"the prompt without any fMRI token. Generated text: “{run.question_only_text}”"
        ),
        "Zero and noise input": (
            f"every voxel at its mean: “{run.zero_text}”; and four trials of independent Gaussian "
            f"noise with the variance of standardized betas: “{run.noise_text}”"
        ),
        "Most frequent": (
            f"the most frequent training answer: “{run.most_frequent_text or UNKNOWN}”"
            f"{ties_text(run.n_most_frequent)}; candidates are ranked by their frequency in "
            "training"
        ),
        **PREDICTORS,
        "Cluster oracle": (
            f"k-means on the answers' embeddings, k = {run.n_oracle_clusters}: predicts from the "
            "target's cluster and nothing else. An upper reference, no control"
        ),
    }


def ties_text(n_most_frequent: int) -> str:
    """Describe what is done with several equally frequent answers; empty for one."""
    if n_most_frequent <= 1:
        return ""
    return (
        f" (one of {n_most_frequent} equally frequent ones: identification counts a random one of "
        "them, text scores the most central)"
    )


def statistics_texts(run: RunInfo) -> dict[str, str]:
    """Describe tests, intervals, seed and versions."""
    return {
        "p against conditions without fMRI": (
            "as against shuffled trials; but where the condition scores more than shuffled trials "
            "do, fMRI must be above the random assignments by that much more"
        ),
        "p against conditions with fMRI": (
            f"{run.n_permutations:,} random signs of the answers' differences. From each "
            "condition's score is subtracted what its predictions for all trials would have scored "
            "on this one, so that a preference for certain answers does not count"
        ),
        "Intervals": (
            f"95 %, percentile bootstrap of {run.n_resamples:,} resamples over answers (all trials "
            "with the same target stay together) and, for all subjects together, over subjects "
            "too. With few subjects this interval is too narrow. An interval of no width at 0 "
            "means that there was no hit to resample, not certainty"
        ),
        "Subjects as a random effect": (
            "each subject counts alike; group_p_value in result.json is the one-sided t test of "
            "subjects' mean differences (fMRI minus condition). All other p-values are about these "
            "subjects"
        ),
        "Seed and time": (f"seed {run.seed}; {run.started}; {run.seconds} s"),
        "Versions": (", ".join(f"{name} {number}" for name, number in run.versions.items())),
    }
