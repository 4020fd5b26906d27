"""Summary of findings: sentences that are computed from a result and from nothing else."""

from collections.abc import Sequence

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS, Kind
from mindllm.evaluation.results import EvaluationResult, MetricRow, RunInfo
from mindllm.evaluation.text_scores import percent_factor
from mindllm.report.formatting import format_p, format_percent, join_words

ALPHA = 0.05
CONTROLS: tuple[Kind, ...] = ("shuffled", "blind", "trained")
MAX_LISTED = 12  # subjects in one sentence


def main_metric(result: EvaluationResult) -> str:
    """Return the metric of the headline: top 1 by evidence, or by likelihood without evidence."""
    return "identification_evidence_top1" if result.evidence else "identification_top1"


def get_row(
    result: EvaluationResult, metric: str, condition: str = "fmri", subject: str = ALL_SUBJECTS
) -> MetricRow:
    """Return a row that must have been measured.

    Parameters
    ----------
    result : EvaluationResult
        The result.
    metric, condition, subject : str
        As in `EvaluationResult.row`.

    Returns
    -------
    MetricRow
        The row.

    Raises
    ------
    KeyError
        If it was not measured.
    """
    row = result.row(metric, condition, subject)
    if row is None:
        raise KeyError(f"{metric} of {condition} was not measured for {subject}")
    return row


def summarize_findings(result: EvaluationResult) -> list[str]:
    """Summarize a result in sentences.

    Parameters
    ----------
    result : EvaluationResult
        The result.

    Returns
    -------
    list of str
        Identification against its controls and simpler methods, single subjects, generated text,
        calibration, the noise ceiling, and whether subjects and stimuli were seen in training.
    """
    return [
        identification_sentence(result),
        *baselines_sentence(result),
        *subjects_sentence(result),
        text_sentence(result),
        *calibration_sentence(result),
        *noise_ceiling_sentence(result),
        *validation_sentence(result.run_info),
        training_sentence(result.run_info),
    ]


def identification_sentence(result: EvaluationResult) -> str:
    """Return how often the target ranked first, and whether that is above every control."""
    metric, run = main_metric(result), result.run_info
    row = get_row(result, metric)
    interval = f"{format_percent(row.ci_low)} to {format_percent(row.ci_high)}"
    method = "by evidence" if result.evidence else "by likelihood"
    measured = (
        f"Identification from fMRI {method}: the target ranked first among "
        f"{len(run.candidates)} candidates in {format_percent(row.value)} of {row.n_trials} trials "
        f"(95 % interval {interval}; chance {format_percent(row.chance_level)})"
    )
    below, not_below = compare_with_conditions(result, metric, CONTROLS)
    p = format_p(largest_p_value(result, metric), run.n_permutations)
    if not not_below:
        controls = join_words(below)
        return f"{measured}, above its controls: {controls}; {p} against each, in these subjects."
    exceptions = f", though above {join_words(below)}" if below else ""
    return (
        f"{measured}: not above its controls. It cannot be called better than "
        f"{join_words(not_below)}{exceptions} (largest {p})."
    )


def compare_with_conditions(
    result: EvaluationResult, metric: str, kinds: Sequence[Kind]
) -> tuple[list[str], list[str]]:
    """Divide conditions into those that fMRI is above (p < 0.05), and the others.

    p < 0.05 against every single one of them needs no correction for their number.

    Parameters
    ----------
    result : EvaluationResult
        The result.
    metric : str
        A key of METRICS.
    kinds : sequence of str
        Kinds of conditions.

    Returns
    -------
    below, not_below : list of str
        Conditions with their scores, as words of a sentence.
    """
    below: list[str] = []
    not_below: list[str] = []
    for name, condition in CONDITIONS.items():
        row = result.row(metric, name)
        if condition.kind not in kinds or row is None or row.value is None or row.p_value is None:
            continue
        text = f"{condition.words} ({format_percent(row.value)})"
        (below if row.p_value < ALPHA else not_below).append(text)
    return below, not_below


def largest_p_value(result: EvaluationResult, metric: str) -> float:
    """Return the largest p-value against a control."""
    rows = [result.row(metric, name) for name, c in CONDITIONS.items() if c.kind in CONTROLS]
    return max(row.p_value for row in rows if row is not None and row.p_value is not None)


def baselines_sentence(result: EvaluationResult) -> list[str]:
    """Return whether simpler methods score as high; nothing where none was measured."""
    parts = []
    top1 = main_metric(result)
    for metric, words in (
        (top1, "by top 1"),
        (top1.replace("top1", "2way"), "by 2-way identification"),
    ):
        below, not_below = compare_with_conditions(result, metric, ("baseline",))
        outcomes = [f"above {join_words(below)}"] if below else []
        outcomes += [f"not above {join_words(not_below)}"] if not_below else []
        if outcomes:
            value = format_percent(get_row(result, metric).value)
            parts.append(f"{words} ({value}) it is {', '.join(outcomes)}")
    if not parts:
        return []
    return [f"Beside simpler methods, trained on the same trials: {'; '.join(parts)}."]


def subjects_sentence(result: EvaluationResult) -> list[str]:
    """Return in how many subjects fMRI is above shuffled trials, and whether in the population.

    Nothing for one subject.
    """
    subjects = [info.subject for info in result.run_info.subjects]
    n_subjects = len(subjects)
    if n_subjects == 1:
        return []
    rows = [get_row(result, main_metric(result), subject=subject) for subject in subjects]
    n_above = sum(row.p_value is not None and row.p_value < ALPHA for row in rows)
    values = [f"{row.subject} {format_percent(row.value)}" for row in rows[:MAX_LISTED]]
    n_hidden = n_subjects - MAX_LISTED
    more = f", and {n_hidden} more in the table" if n_hidden > 0 else ""
    p = get_row(result, main_metric(result), "shuffled_trials").group_p_value
    population = (
        ""
        if p is None
        else f"; at the population level, fMRI above shuffled trials: p = {p:.2g} "
        f"(one-sided t test over {n_subjects} subjects)"
    )
    return [
        f"Taken one by one, {n_above} of {n_subjects} subjects are above their shuffled trials "
        f"(p < {ALPHA}, each tested alone): {', '.join(values)}{more}{population}."
    ]


def text_sentence(result: EvaluationResult) -> str:
    """Return how often the generated text is a reference, and BLEU and CIDEr beside controls."""
    below, not_below = compare_with_conditions(result, "exact_match", CONTROLS)
    p = format_p(largest_p_value(result, "exact_match"), result.run_info.n_permutations)
    value = format_percent(get_row(result, "exact_match").value)
    text = f"Open-ended generation equals a reference in {value} of trials"
    if not_below:
        text = f"{text}: not above {join_words(not_below)} (largest {p})"
    else:
        text = f"{text}, above {join_words(below)} ({p} against each)"
    if not result.text_scores:
        return f"{text}."
    scores = [text_score_clause(result, metric) for metric in ("BLEU-1", "CIDEr")]
    return f"{text}; {join_words(scores)}."


def text_score_clause(result: EvaluationResult, metric: str) -> str:
    """Return a text score beside the control with the highest one."""
    factor = percent_factor(metric)
    value = factor * (get_row(result, metric).value or 0)
    rows = [
        row
        for name, condition in CONDITIONS.items()
        if condition.kind in CONTROLS and (row := result.row(metric, name)) is not None
    ]
    best = max(rows, key=lambda row: row.value or 0)
    best_value = factor * (best.value or 0)
    ties = [CONDITIONS[row.condition].words for row in rows if (row.difference_ci_low or 0) <= 0]
    if ties:
        return f"{metric} is {value:.1f}, not above {join_words(ties)} (up to {best_value:.1f})"
    return (
        f"{metric} is {value:.1f}, above every control "
        f"(the strongest is {CONDITIONS[best.condition].words}, {best_value:.1f})"
    )


def calibration_sentence(result: EvaluationResult) -> list[str]:
    """Return whether the log-likelihood ratio of a prediction tells right from wrong."""
    sentences = evidence_sentence(result)
    auroc = result.calibration.prediction.auroc
    if auroc is None:
        return sentences
    verb = "tells" if auroc.ci_low > 0.5 else "does not tell"
    return [
        *sentences,
        f"The log-likelihood ratio of a prediction {verb} right from wrong (AUROC "
        f"{auroc.value:.2f}, 95 % interval {auroc.ci_low:.2f} to {auroc.ci_high:.2f}; "
        "0.5: not at all).",
    ]


def evidence_sentence(result: EvaluationResult) -> list[str]:
    """Return whether probabilities by evidence are right as often as they say."""
    evidence = result.calibration.evidence
    if evidence is None:
        return []
    error = evidence.expected_calibration_error
    sentence = (
        "Probabilities by evidence are off by "
        f"{100 * error.value:.1f} points on average (expected calibration error, 95 % interval "
        f"{100 * error.ci_low:.1f} to {100 * error.ci_high:.1f})"
    )
    auroc = evidence.probability.auroc
    if auroc is None:
        return [f"{sentence}."]
    verb = "tell" if auroc.ci_low > 0.5 else "do not tell"
    return [
        f"{sentence} and {verb} right from wrong (AUROC {auroc.value:.2f}, "
        f"{auroc.ci_low:.2f} to {auroc.ci_high:.2f})."
    ]


def noise_ceiling_sentence(result: EvaluationResult) -> list[str]:
    """Return how well other repetitions identify the target; nothing without repetitions."""
    values = [
        f"{ceiling.subject} {format_percent(ceiling.leave_one_repetition_out_top1)}"
        for ceiling in result.noise_ceilings[:MAX_LISTED]
    ]
    if not values:
        return []
    return [
        "For scale, and no upper bound: the nearest neighbor among a subject's other repetitions "
        f"has the target's answer in {', '.join(values)} of trials."
    ]


def validation_sentence(run: RunInfo) -> list[str]:
    """Return a warning where the evaluated trials chose the model's weights; else nothing."""
    subjects = [info.subject for info in run.subjects if info.chose_checkpoint]
    if not subjects:
        return []
    return [
        f"Not a clean test: trials of {join_words(subjects)} were validation data, with which "
        "this model's weights were chosen."
    ]


def training_sentence(run: RunInfo) -> str:
    """Return whether subjects and stimuli were seen in training."""
    subjects, n_seen, n_stimuli = training_clause(run), run.n_stimuli_in_training, run.n_stimuli
    if n_seen is None:
        return (
            f"{subjects}. Whether the stimuli were seen in training is unknown: "
            "the model card does not list them."
        )
    if not n_seen:
        return f"{subjects}; none of the {n_stimuli} evaluated stimuli was."
    stimuli = (
        f"all {n_stimuli} evaluated stimuli were"
        if n_seen == n_stimuli
        else f"{n_seen} of the {n_stimuli} evaluated stimuli ({format_percent(n_seen / n_stimuli)})"
        " were"
    )
    if all(info.in_training is False for info in run.subjects):
        return (
            f"{subjects}, but {stimuli}, with other subjects: this is identification of seen "
            "stimuli in unseen subjects. It says nothing about new stimuli."
        )
    return (
        f"{subjects}, and {stimuli} seen in training too: this score is partly about stimuli "
        "already seen, not about new ones."
    )


def training_clause(run: RunInfo) -> str:
    """Return whether the subjects were seen in training."""
    states = [info.in_training for info in run.subjects]
    n_subjects, n_seen = len(states), sum(state is True for state in states)
    if None in states:
        return (
            "Whether these subjects were seen in training is unknown: the model card does not say"
        )
    if n_seen:
        return (
            f"{n_seen} of {n_subjects} evaluated subjects were seen in training, with other trials"
        )
    if n_subjects == 1:
        return "The evaluated subject was not seen in training"
    return f"None of the {n_subjects} evaluated subjects was seen in training"
