"""A report as sections of paragraphs, figures and tables, the same for Markdown and HTML."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mindllm.evaluation.conditions import CONDITIONS
from mindllm.evaluation.results import (
    AblationRow,
    EvaluationResult,
    NoiseCeiling,
    RunInfo,
    SubjectInfo,
    TrialRecord,
)
from mindllm.evaluation.text_scores import TEXT_METRICS, percent_factor
from mindllm.metrics.calibration import CalibrationCurve, Estimate, EvidenceCalibration
from mindllm.report.alt_texts import (
    describe_attention,
    describe_calibration,
    describe_confusion,
    describe_contributions,
    describe_coverage,
    describe_voxels,
)
from mindllm.report.formatting import UNDEFINED, format_percent
from mindllm.report.methods_text import UNKNOWN, methods_text
from mindllm.report.published import load_published_results
from mindllm.report.score_sections import (
    protocols_section,
    scores_section,
    subjects_section,
    text_scores_section,
)
from mindllm.report.summary import get_row
from mindllm.report.tables import (
    Cell,
    FigureReference,
    Section,
    Table,
    TableRow,
    to_head,
    to_rows,
)

if TYPE_CHECKING:
    from mindllm.report.brain_figures import BrainMaps, ParcelAttention
    from mindllm.report.contribution_maps import SubjectContributions

EXAMPLES = 3  # per table
COVERAGE_TEXT = (
    "Risk and coverage: accuracy of the candidate with the most evidence, where only the surest "
    "trials are answered."
)
ATTENTION_TEXT = (
    "Attention per voxel, averaged over the encoder's queries; 1 = as much as if every voxel got "
    "the same. The colors end at the 97th percentile. The map depends on the subject's anatomy and "
    "the weights, not on the trial. It shows which voxels the model attends to, not what it would "
    "lose without them."
)

CONTRIBUTIONS_TEXT = (
    "Each voxel's part in the evidence of a trial for its target, by the encoding model; the parts "
    "and the evidence of betas that are all zero sum to the evidence. The control is the mean "
    "over the targets of all trials that are averaged: what the same voxels contribute to the text "
    "of a random trial. Contributions say what this model reads where, not what a brain area codes."
)


def build_sections(
    result: EvaluationResult,
    maps: "BrainMaps | None" = None,
    contributions: "Sequence[SubjectContributions]" = (),
) -> list[Section]:
    """Return the sections of a report.

    Parameters
    ----------
    result : EvaluationResult
        The result.
    maps : BrainMaps, optional
        Where the voxels are, and which of them the model attends to.
    contributions : sequence of SubjectContributions
        What voxels contribute to the evidence.

    Returns
    -------
    list of Section
        In order; sections without content are left out.
    """
    sections = [
        scores_section(result),
        subjects_section(result),
        text_scores_section(result),
        protocols_section(result),
        calibration_section(result),
        confusion_section(result),
        noise_ceiling_section(result),
        ablation_section(result),
        examples_section(result),
        brain_section(result, maps) if maps else None,
        contribution_section(contributions) if contributions else None,
        published_section(result),
        skipped_section(result.run_info),
        methods_section(result.run_info),
    ]
    return [section for section in sections if section]


def calibration_section(result: EvaluationResult) -> Section:
    """Return whether log-likelihood ratios and probabilities tell right from wrong."""
    calibration = result.calibration
    rows = [
        auroc_row("prediction, by its log-likelihood ratio", calibration.prediction),
        auroc_row("most likely candidate, by its log-likelihood ratio", calibration.top_candidate),
        auroc_row("most likely candidate, by its probability", calibration.probability),
    ]
    paragraphs, figures = [], []
    if (evidence := calibration.evidence) is not None:
        rows.insert(0, auroc_row("most evidence, by its probability", evidence.probability))
        paragraphs.append(evidence_paragraph(evidence, len(result.run_info.candidates)))
        figures.append(FigureReference("coverage-all", COVERAGE_TEXT, describe_coverage(evidence)))
    paragraph = (
        "The log-likelihood ratio is log p(answer | fMRI) − log p(answer | null tokens), in nats; "
        "every prediction has one. AUROC: how often a correct answer has a higher one than a wrong "
        "answer (0.5: it tells nothing). The candidates' probabilities are off by "
        f"{format_percent(calibration.expected_calibration_error)} on average (expected "
        "calibration error)."
    )
    head = to_head("What is correct", "AUROC")
    figure = FigureReference(
        "calibration-all",
        "Fraction of trials that is correct, in bins of equal count, with Wilson's 95 % interval.",
        describe_calibration(calibration),
    )
    table = Table(head, [rows], "95 % interval: bootstrap over trials.")
    return Section("Calibration", [*paragraphs, paragraph], [table], [figure, *figures])


def evidence_paragraph(evidence: EvidenceCalibration, n_candidates: int) -> str:
    """Return how well the probabilities by evidence are calibrated, in words."""
    error, brier = evidence.expected_calibration_error, evidence.brier_score
    surprise = evidence.negative_log_likelihood
    return (
        "Evidence is log p(fMRI | text) − log p(fMRI), in nats, by the encoding model. Among the "
        "candidates, each as likely beforehand, it gives probabilities. They are off by "
        f"{format_percent(error.value)} on average ({format_percent(error.ci_low)} to "
        f"{format_percent(error.ci_high)}; expected calibration error); their Brier score is "
        f"{brier.value:.3f} ({brier.ci_low:.3f} to {brier.ci_high:.3f}; 0 is best), the negative "
        f"log-likelihood of the target {surprise.value:.2f} nats ({surprise.ci_low:.2f} to "
        f"{surprise.ci_high:.2f}; guessing: {math.log(n_candidates):.2f}). 95 % intervals: "
        "bootstrap over trials."
    )


def auroc_row(label: str, curve: CalibrationCurve) -> TableRow:
    """Return the AUROC of one score with its interval."""
    auroc = curve.auroc
    if auroc is None:
        return TableRow([Cell(label), Cell(UNDEFINED, "all correct, or none")])
    interval = f"{auroc.ci_low:.2f} – {auroc.ci_high:.2f}"
    return TableRow([Cell(label), Cell(f"{auroc.value:.2f}", interval)])


def confusion_section(result: EvaluationResult) -> Section | None:
    """Return how often the most likely candidate is of the target's category."""
    confusion = result.confusion
    if confusion is None:
        return None
    paragraph = (
        f"Categories: {confusion.source}. The most likely candidate is of the target's category in "
        f"{format_percent(confusion.accuracy)} of trials; the same candidates, given to random "
        f"trials, would be in {format_percent(confusion.chance_level)}."
    )
    figure = FigureReference(
        "confusion-all",
        "Category of the target (rows) by that of the most likely candidate (columns); percent of "
        "the row.",
        describe_confusion(confusion),
    )
    return Section("Confusion by category", [paragraph], figures=[figure])


def noise_ceiling_section(result: EvaluationResult) -> Section:
    """Return what the repetitions of stimuli would allow."""
    if not result.noise_ceilings:
        paragraph = (
            "No stimulus was shown twice to one subject, so a noise ceiling cannot be estimated "
            "from this data."
        )
        return Section("Noise ceiling", [paragraph])
    head = to_head(
        "Subject",
        "Trials per stimulus",
        ("Explainable variance", "median voxel, single trials"),
        ("Reliable voxels", "more than 10 % explainable"),
        (
            "Other repetitions",
            "the nearest neighbor among this subject's other trials has the target's answer",
        ),
    )
    caption = (
        "From the repetitions of the evaluated stimuli; 95 % interval over answers. A reference, "
        "no bound: all voxels count alike here, and a decoder that weights them may do better."
    )
    rows = [noise_ceiling_row(ceiling) for ceiling in result.noise_ceilings]
    return Section("Noise ceiling", (), [Table(head, [rows], caption)])


def noise_ceiling_row(ceiling: NoiseCeiling) -> TableRow:
    """Return one subject's noise ceiling in percent."""
    interval = f"{100 * ceiling.ci_low:.1f} – {100 * ceiling.ci_high:.1f}"
    return TableRow(
        [
            Cell(ceiling.subject),
            Cell(f"{ceiling.n_repetitions:.1f}"),
            Cell(format_percent(ceiling.median_explainable_variance)),
            Cell(format_percent(ceiling.reliable_voxel_fraction)),
            Cell(format_percent(ceiling.leave_one_repetition_out_top1), interval),
        ]
    )


def ablation_section(result: EvaluationResult) -> Section | None:
    """Return what is lost without a parcel; None where it was not measured."""
    if result.ablation is None:
        return None
    paragraph = (
        "The parcels with the most attention were left out one at a time, as if they had not been "
        "measured. Parcels share information, so a small loss does not mean that a parcel holds "
        "none."
    )
    caption = "Percentage points of identification lost; 95 % interval over subjects and answers."
    head = to_head(
        "Without", "Percent of the voxels", ("Loss, top 1", "points"), ("Loss, 2-way", "points")
    )
    table = Table(head, [[ablation_row(row) for row in result.ablation]], caption)
    return Section("Without a parcel", [paragraph], [table])


def ablation_row(row: AblationRow) -> TableRow:
    """Return what is lost without one parcel."""
    losses = [loss_cell(loss) for loss in (row.top1_loss, row.two_way_loss)]
    voxels = Cell(format_percent(row.voxel_fraction))
    return TableRow([parcel_cell(row.atlas, row.parcel), voxels, *losses])


def parcel_cell(atlas: str, parcel: str) -> Cell:
    """Return the name of a parcel with its atlas."""
    return Cell(parcel.replace("_", " "), atlas)


def loss_cell(loss: Estimate) -> Cell:
    """Return a loss in percentage points with its interval."""
    return Cell(
        f"{100 * loss.value:+.1f}", f"{100 * loss.ci_low:+.1f} to {100 * loss.ci_high:+.1f}"
    )


def examples_section(result: EvaluationResult) -> Section:
    """Return the best, median and worst trials."""
    head = to_head(
        "Subject",
        "Target",
        ("Prediction", "open-ended generation"),
        ("Its log-likelihood ratio", "nats"),
        "Most likely candidate",
        ("Log-likelihood ratio of the target", "nats"),
        ("Rank of the target", f"of {len(result.run_info.candidates)}"),
    )
    tables = [
        Table(head, [[example_row(record) for record in records]], f"{name}.")
        for name, records in choose_examples(result.predictions).items()
    ]
    paragraph = (
        "Chosen by the log-likelihood ratio of the target, log p(target | fMRI) − log p(target | "
        f"null tokens): the best, the middle and the worst of all {len(result.predictions)} "
        "trials. Above 0, the fMRI makes the target more likely. All trials are in "
        "predictions.jsonl."
    )
    return Section("Examples", [paragraph], tables)


def example_row(record: TrialRecord) -> TableRow:
    """Return one trial; correct answers are ticked."""
    top_candidate = record.top_candidates[0]
    return TableRow(
        [
            Cell(record.subject, f"trial {record.trial_index}"),
            Cell(record.target),
            Cell((record.prediction or "(nothing)") + " ✓" * record.exact_match),
            Cell(f"{record.log_likelihood_ratio:+.1f}"),
            Cell(top_candidate + " ✓" * (top_candidate == record.target)),
            Cell(f"{record.target_llr:+.2f}"),
            Cell(f"{record.rank:g}"),
        ]
    )


def choose_examples(records: Sequence[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """Choose trials by the log-likelihood ratio of their target, never only the best.

    Parameters
    ----------
    records : sequence of TrialRecord
        All trials.

    Returns
    -------
    dict
        "Best", "Median" and "Worst" to up to three trials, none of them twice; of fewer than three
        trials, "All".
    """
    order = sorted(records, key=lambda record: -record.target_llr)
    if len(order) < 3:
        return {"All": order}
    n = min(EXAMPLES, len(order) // 3)
    middle = (len(order) - n) // 2
    return {"Best": order[:n], "Median": order[middle : middle + n], "Worst": order[-n:]}


def brain_section(result: EvaluationResult, maps: "BrainMaps") -> Section:
    """Return where the voxels are, and which of them and which parcels get the attention."""
    n_voxels = {info.subject: info.n_voxels for info in result.run_info.subjects}
    figures = []
    for group, subjects in maps.groups.items():
        if len(subjects) > 1:
            voxels = (
                "All evaluated subjects: the color is the depth of voxels along the line of sight, "
                "mean over subjects."
            )
            attention = "Attention, mean over all evaluated subjects."
        else:
            voxels = f"{subjects[0]}: {n_voxels[subjects[0]]} voxels."
            attention = f"{subjects[0]}: attention."
        maskers, values = maps.members(group)
        figures.append(FigureReference(f"voxels-{group}", voxels, describe_voxels(maskers)))
        alt = describe_attention(maskers, values)
        figures.append(FigureReference(f"attention-{group}", attention, alt))
    if not maps.parcels:
        return Section("Voxels and attention", [ATTENTION_TEXT], figures=figures)
    head = to_head(
        "Parcel", "Percent of the attention", "Percent of the voxels", "Relative attention"
    )
    caption = "Parcels with the most attention, mean over the evaluated subjects."
    table = Table(head, [[parcel_row(parcel) for parcel in maps.parcels]], caption)
    return Section("Voxels and attention", [ATTENTION_TEXT], [table], figures)


def contribution_section(parts: "Sequence[SubjectContributions]") -> Section:
    """Return what voxels contribute to the evidence for the targets, beside the control."""
    rows = [
        [
            part.masker.subject,
            str(len(part.trials)),
            *(
                f"{value:.2f}"
                for value in (
                    part.evidence,
                    part.target.sum(),
                    part.at_zero,
                    part.control_evidence,
                    part.control.sum(),
                )
            ),
        ]
        for part in parts
    ]
    head = to_head(
        "Subject",
        "Trials",
        ("Evidence for the target", "nats, mean"),
        ("From the voxels", "their sum"),
        ("Without betas", "what no voxel contributes"),
        ("Control: evidence", "for the target of a random trial"),
        ("Control: from the voxels", "their sum"),
    )
    figure = FigureReference(
        "contributions-all",
        "Contribution to the evidence for the target minus the control, nats per voxel, mean over "
        "trials and evaluated subjects. The colors end at the 97th percentile.",
        describe_contributions(parts),
    )
    return Section(
        "Contributions to the evidence",
        [CONTRIBUTIONS_TEXT],
        [Table(head, [to_rows(rows)])],
        [figure],
    )


def parcel_row(parcel: "ParcelAttention") -> TableRow:
    """Return the attention to one parcel."""
    fractions = [format_percent(parcel.attention), format_percent(parcel.voxel_fraction)]
    texts = [*fractions, f"{parcel.relative_attention:.2f}"]
    return TableRow([parcel_cell(parcel.atlas, parcel.parcel), *map(Cell, texts)])


def published_section(result: EvaluationResult) -> Section | None:
    """Return published text scores, for scale; None without text scores."""
    if not result.text_scores:
        return None
    published = load_published_results()
    values = {
        metric: percent_factor(metric) * value
        for metric in TEXT_METRICS
        if (value := get_row(result, metric).value) is not None
    }
    store = result.run_info.data.store or UNKNOWN
    rows = [
        TableRow([Cell("this report", store), Cell("all"), *published_cells(values)], kind="fmri")
    ]
    numbers = {source: number for number, source in enumerate(published.sources, 1)}
    for system in published.caption:
        name = Cell(system.system, f"{system.setting} [{numbers[system.source]}]")
        rows.append(TableRow([name, Cell(system.subject), *published_cells(system.scores)]))
    paragraph = (
        f"Published scores on {published.data}, {published.scores_are}. They can be compared with "
        "this report only where it is about the same data, subjects and references; on other data "
        "they are for scale alone. None of them comes with controls."
    )
    sources = [f"[{numbers[name]}] {text}" for name, text in published.sources.items()]
    table = Table(to_head("System", "Subject", *TEXT_METRICS), [rows])
    paragraphs = [paragraph, f"Sources: {'; '.join(sources)}"]
    return Section("Published results", paragraphs, [table], collapsed=True)


def published_cells(scores: Mapping[str, float]) -> list[Cell]:
    """Return text scores in percent, a dash for those that are missing."""
    return [Cell(f"{scores[m]:.2f}" if m in scores else UNDEFINED) for m in TEXT_METRICS]


def skipped_section(run: RunInfo) -> Section | None:
    """Return the conditions that were not measured, and why."""
    if not run.skipped_conditions:
        return None
    rows = to_rows([(CONDITIONS[c].label, reason) for c, reason in run.skipped_conditions.items()])
    return Section("Not measured", (), [Table(to_head("Condition", "Why"), [rows])])


def methods_section(run: RunInfo) -> Section:
    """Return how it was measured, and in which subjects."""
    head = to_head(
        "Subject",
        "Trials",
        "Split",
        "Stimuli",
        "Stimuli in training",
        "Subject in training",
        "Voxels",
        "Covered",
        "Standardized with",
    )
    caption = (
        "The subjects, their trials, and what of them the model was trained on. Covered: the share "
        "of the places with training voxels that have a voxel of the subject within 12 mm."
    )
    subjects = Table(head, [to_rows([subject_texts(info) for info in run.subjects])], caption)
    steps = Table(to_head("What", "How"), [to_rows(list(methods_text(run).items()))])
    return Section("Methods", (), [subjects, steps])


def subject_texts(info: SubjectInfo) -> list[str]:
    """Return one subject's row of the table of subjects."""
    in_training = {True: "yes", False: "no", None: UNKNOWN}[info.in_training]
    n_stimuli = info.n_stimuli_in_training
    return [
        info.subject,
        str(info.n_trials),
        info.split,
        str(info.n_stimuli),
        UNKNOWN if n_stimuli is None else str(n_stimuli),
        in_training + (", but chose the weights" if info.chose_checkpoint else ""),
        str(info.n_voxels),
        UNKNOWN if info.covered is None else f"{info.covered:.0%}",
        info.standardized_with,
    ]
