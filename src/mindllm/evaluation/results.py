"""Typed results: predictions, scores per trial, and the result of an evaluation."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter

from mindllm.evaluation.conditions import ALL_SUBJECTS
from mindllm.metrics.calibration import CalibrationResult, Estimate
from mindllm.metrics.inference import Groups, subject_means
from mindllm.metrics.registry import Ranking
from mindllm.utils.arrays import Shape, read_checked_arrays
from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_write, read_json, write_json
from mindllm.utils.folders import recover_directory, replace_directory
from mindllm.utils.manifest import Manifest
from mindllm.utils.text_files import read_text
from mindllm.utils.validation import check_format, validate_content

FORMAT = 5
RESULT_FILE, RECORDS_FILE = "result.json", "predictions.jsonl"
LOG_LIKELIHOODS_FILE = "candidate_log_likelihoods.npz"
EVIDENCE_FILE = "candidate_evidence.npz"
WHAT = "a report (made by `mindllm evaluate`)"
REMEDY = "Evaluate the model anew."
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
FLOATS, TEXT = ("float32", "float64"), ("text",)
# Ranges are checked when a report is read; sums may be off by rounding.
Unit = Annotated[float, Field(ge=-1e-6, le=1 + 1e-6)]
Difference = Annotated[float, Field(ge=-1 - 1e-6, le=1 + 1e-6)]
Rank = Annotated[float, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


# Step 1: predictions.


@dataclass(frozen=True, slots=True)
class ConditionPredictions:
    """Predictions of one condition, for R inputs and C candidates.

    Parameters
    ----------
    log_likelihoods : ndarray of shape (R, C) or None
        Log-likelihoods in nats, or other scores, of the candidates; None where there are none.
    texts : sequence of str, length R
        Generated texts.
    null_log_likelihoods : ndarray of shape (C,) or None
        Log-likelihoods without fMRI, for the log-likelihood ratio.
    groups : tuple of ndarrays (R,) and (B,), or None
        Group of each row and of each trial, where any row of a group stands in for any of its
        trials; None: row b is the prediction for trial b.
    evidence : ndarray of shape (R, C) or None
        Evidence for the candidates in nats, or the scores of a method that has but one; None
        where there is none.
    """

    log_likelihoods: np.ndarray | None
    texts: Sequence[str]
    null_log_likelihoods: np.ndarray | None = None
    groups: Groups | None = None
    evidence: np.ndarray | None = None

    @classmethod
    def from_scores(
        cls, scores: np.ndarray, texts: Sequence[str], null_scores: np.ndarray | None = None
    ) -> "ConditionPredictions":
        """Predictions of a method that ranks candidates by one score (R, C) alone."""
        return cls(scores, texts, null_scores, evidence=scores)

    def ranking_scores(self, ranking: Ranking) -> np.ndarray | None:
        """(R, C): what candidates are ranked by; None where there is no such score."""
        if ranking == "evidence":
            return self.evidence
        if ranking == "log_likelihood":
            return self.log_likelihoods
        return self.log_likelihood_ratios

    @property
    def log_likelihood_ratios(self) -> np.ndarray | None:
        """(R, C): log p(candidate | fMRI) - log p(candidate | null tokens), in nats."""
        if self.log_likelihoods is None or self.null_log_likelihoods is None:
            return None
        return self.log_likelihoods - self.null_log_likelihoods

    def shared_within(
        self, row_groups: np.ndarray, trial_groups: np.ndarray
    ) -> "ConditionPredictions":
        """Return the same rows, standing in for all trials of the same group."""
        return replace(self, groups=(row_groups, trial_groups))

    def broadcast_to_trials(self, n_trials: int) -> "ConditionPredictions":
        """Return the same rows, standing in for every trial alike."""
        return self.shared_within(np.zeros(len(self.texts), int), np.zeros(n_trials, int))


@dataclass(frozen=True, slots=True)
class SubjectPredictions:
    """Predictions of every condition for the B trials of one subject; stimuli is (B,)."""

    subject: str
    stimuli: np.ndarray
    conditions: Mapping[str, ConditionPredictions]


# Step 2: scores.


@dataclass(frozen=True, slots=True)
class TrialScores:
    """Scores of B trials under each condition, in M metrics (the columns, in METRICS' order).

    Parameters
    ----------
    subject : str
        Subject label, or ALL_SUBJECTS.
    scores : mapping of condition to ndarray (B, M)
        Score per trial in [0, 1]; NaN where a metric does not apply.
    expected_scores : mapping of condition to ndarray (B, M)
        For conditions that read the trial: the mean score, on this trial, of the condition's
        predictions for all trials.
    null_distributions : mapping of condition to ndarray (P, M)
        Mean scores under permutations.
    ranks : mapping of condition to ndarray (B,)
        Rank of the target among the candidates, 1 = best.
    stimuli : ndarray of shape (B,)
        Stimulus of each trial.
    target_indices : ndarray of shape (B,)
        Candidate number of each trial's target. Trials are resampled by it: stimuli with one
        answer are not independent.
    subjects : ndarray of shape (B,)
        Subject of each trial.
    """

    subject: str
    scores: Mapping[str, np.ndarray]
    expected_scores: Mapping[str, np.ndarray]
    null_distributions: Mapping[str, np.ndarray]
    ranks: Mapping[str, np.ndarray]
    stimuli: np.ndarray
    target_indices: np.ndarray
    subjects: np.ndarray

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Return the mean of the subjects' means of values (B, M), (M,)."""
        return subject_means(values, self.subjects).mean(0)


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric of one condition. Scores are in [0, 1]; None means not defined.

    Text scores are in [0, 1] too. BLEU, METEOR and ROUGE-L are fractions. CIDEr is divided by 10,
    because pycocoevalcap's CIDEr-D is in [0, 10]: papers print 100 times CIDEr-D, which is
    1000 * value (see `mindllm.evaluation.text_scores.percent_factor`).

    Parameters
    ----------
    subject : str
        Subject label, or ALL_SUBJECTS.
    condition, metric : str
        Keys of CONDITIONS; of METRICS, or one of TEXT_METRICS.
    value, ci_low, ci_high : float or None
        Mean over subjects' means, and its 95 % bootstrap interval over answers and subjects.
    chance_level : float or None
        Expected value of guessing.
    n_trials, n_subjects, n_stimuli : int
        What the value is a mean of.
    p_value : float or None
        One-sided: fMRI above this condition; of `fmri` itself, above shuffled trials.
    group_p_value : float or None
        One-sided t test over subjects: fMRI above this condition at the population level.
    difference, difference_ci_low, difference_ci_high : float or None
        fMRI minus this condition, paired.
    mean_rank, mean_rank_chance : float or None
        Mean rank of the target (1 = best), only in rows of `identification_top1`.
    """

    subject: str
    condition: str
    metric: str
    value: Unit | None
    ci_low: Difference | None  # below 0 where an interval of CIDEr is
    ci_high: Difference | None
    chance_level: Unit | None
    n_trials: Count
    n_subjects: Count
    p_value: Unit | None = None
    group_p_value: Unit | None = None
    difference: Difference | None = None
    difference_ci_low: Difference | None = None
    difference_ci_high: Difference | None = None
    n_stimuli: Count | None = None
    mean_rank: Rank | None = None
    mean_rank_chance: Rank | None = None


@dataclass(frozen=True, slots=True)
class ProtocolResult:
    """Scores under one protocol, of `fmri` and its main controls, all subjects together."""

    name: str
    description: str
    n_subjects: Count
    n_trials: Count
    n_stimuli: Count
    n_candidates: Count
    rows: tuple[MetricRow, ...]
    text_rows: tuple[MetricRow, ...]


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One evaluated trial.

    Parameters
    ----------
    subject, trial_index, stimulus, session, repetition
        Which trial, as in the store's trials table.
    target : str
        Correct candidate.
    references : tuple of str
        All accepted answers.
    prediction : str
        Generated text.
    log_likelihood_ratio : float
        log p(prediction | fMRI) - log p(prediction | null tokens), in nats.
    exact_match : bool
        Whether the prediction equals a reference after normalization.
    target_log_likelihood, target_llr : float
        Log-likelihood and log-likelihood ratio of the target, in nats.
    rank, llr_rank : float
        Rank of the target among the candidates by either, 1 = best, ties sharing their mean.
    top_candidates : tuple of str
        The five most likely candidates.
    top_candidate_llr, top_candidate_probability : float
        Of the most likely one: log-likelihood ratio in nats; probability among the candidates.
    target_evidence, evidence_rank : float or None
        Evidence for the target in nats, and its rank by evidence; None without encoding model.
    top_evidence_candidates : tuple of str
        The five candidates with the most evidence; empty without encoding model.
    top_evidence_probability : float or None
        Probability of the first one among the candidates, each as likely beforehand.
    control_predictions : mapping of str to str
        Condition to the text that it predicts for the same trial.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    subject: str
    trial_index: Count
    stimulus: str
    session: str
    repetition: Count
    target: str
    references: tuple[str, ...]
    prediction: str
    log_likelihood_ratio: float
    exact_match: bool
    target_log_likelihood: float
    target_llr: float
    rank: Rank
    llr_rank: Rank
    top_candidates: tuple[str, ...]
    top_candidate_llr: float
    top_candidate_probability: Unit
    target_evidence: float | None
    evidence_rank: Rank | None
    top_evidence_candidates: tuple[str, ...]
    top_evidence_probability: Unit | None
    control_predictions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NoiseCeiling:
    """Noise ceiling of one subject over the repeated evaluated stimuli; fractions in [0, 1].

    n_repetitions is the mean number of trials per stimulus. The interval is that of
    leave_one_repetition_out_top1, over answers.
    """

    subject: str
    n_repetitions: float
    median_explainable_variance: float
    reliable_voxel_fraction: float
    leave_one_repetition_out_top1: float
    ci_low: float
    ci_high: float
    n_stimuli: Count


@dataclass(frozen=True, slots=True)
class ConfusionResult:
    """Category of the most likely candidate against that of the target.

    counts[i][j] is the number of trials of target category i with a prediction of category j.
    accuracy is the fraction on the diagonal; chance_level that of the same predictions given to
    random trials. source: where the categories come from, in words.
    """

    categories: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    source: str
    accuracy: float
    chance_level: float


@dataclass(frozen=True, slots=True)
class AblationRow:
    """Loss of identification when the voxels of one parcel are left out; fractions in [0, 1]."""

    atlas: str
    parcel: str
    voxel_fraction: float
    n_subjects: Count
    n_trials: Count
    top1_loss: Estimate
    two_way_loss: Estimate


# How it was measured.


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The evaluated model; None: its model card does not say.

    language_model_dtype: the precision it computed in, e.g. bfloat16; None: not noted.
    """

    name: str | None
    language_model: str
    language_model_fingerprint: str
    trained_on_subjects: tuple[str, ...] | None
    trained_on_store: str | None
    training_seed: int | None
    training_versions: Mapping[str, str] | None
    encoder: Mapping[str, object]
    language_model_dtype: str | None = None


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """The store that trials are taken from; None: it does not say. split: in words."""

    store: str | None
    source: str | None
    license: str | None
    prepared_with: str | None
    split: str


@dataclass(frozen=True, slots=True)
class SubjectInfo:
    """One evaluated subject; None: the model card does not say.

    split names the evaluated trials, in words. chose_checkpoint: whether these trials were
    validation data. standardized_with: what the z-scores were fitted on. covered: share of the
    places with training voxels that have a voxel of the subject within 12 mm.
    """

    subject: str
    n_trials: int
    n_stimuli: int
    n_voxels: int
    split: str
    in_training: bool | None
    chose_checkpoint: bool
    n_stimuli_in_training: int | None
    standardized_with: str
    covered: float | None = None


@dataclass(frozen=True, slots=True)
class RunInfo:
    """How an evaluation was made.

    question_source: where the question comes from, in words. most_frequent_text: one of
    n_most_frequent equally frequent training answers. skipped_conditions: condition to the reason
    why it was not measured. text_scores_skipped: likewise of the text scores; None: measured.
    started: ISO 8601, UTC. seconds: duration.
    """

    model: ModelInfo
    data: StoreInfo
    subjects: tuple[SubjectInfo, ...]
    n_stimuli: int
    n_stimuli_in_training: int | None
    question: str
    question_source: str
    candidates: tuple[str, ...]
    controls: str
    null_tokens_text: str
    question_only_text: str
    zero_text: str
    noise_text: str
    most_frequent_text: str | None
    n_most_frequent: int
    n_oracle_clusters: int
    skipped_conditions: Mapping[str, str]
    text_scores_skipped: str | None
    seed: int
    n_resamples: int
    n_permutations: int
    batch_size: int
    generate_options: Mapping[str, str]
    versions: Mapping[str, str]
    started: str
    seconds: float


@dataclass(frozen=True, slots=True)
class SavedSummary:
    """What result.json holds; see `EvaluationResult`."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    format: int
    run_id: str
    rows: list[MetricRow]
    text_rows: list[MetricRow]
    protocols: list[ProtocolResult]
    calibration: CalibrationResult
    confusion: ConfusionResult | None
    noise_ceilings: list[NoiseCeiling]
    ablation: list[AblationRow] | None
    run_info: RunInfo


SUMMARY = TypeAdapter(SavedSummary)
RECORD = TypeAdapter(TrialRecord)


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Everything that one evaluation found; `mindllm.report` renders it.

    Parameters
    ----------
    run_id : str
        Unique identifier of the run.
    scores, text_scores : list of MetricRow
        One row per subject, condition and metric; of all subjects too, as ALL_SUBJECTS.
        text_scores is empty without Java.
    protocols : list of ProtocolResult
        Scores under each protocol that the data allows, single trials first.
    predictions : list of TrialRecord
        One record per trial.
    run_info : RunInfo
        How it was measured.
    calibration : CalibrationResult
        Whether log-likelihood ratios and probabilities tell right from wrong.
    confusion : ConfusionResult or None
        By category; None where there are fewer than two.
    noise_ceilings : list of NoiseCeiling
        Of the subjects with repetitions.
    ablation : list of AblationRow or None
        None where it was not asked for.
    log_likelihoods : mapping of subject to ndarray of shape (n_trials, n_candidates), float32
        Log-likelihood of every candidate for every trial, in nats.
    null_log_likelihoods : ndarray of shape (n_candidates,), float32
        The same without fMRI.
    evidence : mapping of subject to ndarray of shape (n_trials, n_candidates), float32
        Evidence for every candidate of every trial, in nats; empty without encoding model.
    """

    run_id: str
    scores: list[MetricRow]
    text_scores: list[MetricRow]
    protocols: list[ProtocolResult]
    predictions: list[TrialRecord]
    run_info: RunInfo
    calibration: CalibrationResult
    confusion: ConfusionResult | None
    noise_ceilings: list[NoiseCeiling]
    ablation: list[AblationRow] | None
    log_likelihoods: Mapping[str, np.ndarray]
    null_log_likelihoods: np.ndarray
    evidence: Mapping[str, np.ndarray]

    def row(
        self, metric: str, condition: str = "fmri", subject: str = ALL_SUBJECTS
    ) -> MetricRow | None:
        """Return the row of a metric or text score; None if it was not measured."""
        keys = (metric, condition, subject)
        rows = (*self.scores, *self.text_scores)
        return next((r for r in rows if (r.metric, r.condition, r.subject) == keys), None)

    def value(
        self, metric: str, condition: str = "fmri", subject: str = ALL_SUBJECTS
    ) -> float | None:
        """Return one value in [0, 1].

        Parameters
        ----------
        metric : str
            A key of METRICS, or a text score such as "BLEU-1".
        condition : str
            A key of CONDITIONS.
        subject : str
            A subject label, or ALL_SUBJECTS.

        Returns
        -------
        float or None
            None where the condition was not measured or the metric is not defined.
        """
        row = self.row(metric, condition, subject)
        return None if row is None else row.value

    def save(self, directory: str | Path) -> None:
        """Write the result's files and their manifest, completely or not at all.

        Parameters
        ----------
        directory : str or Path
            Made if it does not exist; an earlier result in it is replaced.

        Raises
        ------
        InputError
            If another process writes the folder, or the disk is full.
        """
        with replace_directory(Path(directory)) as folder:
            self.write_files(folder)

    def write_files(self, out: Path) -> None:
        """Write result.json, predictions.jsonl, candidate log-likelihoods and evidence.

        Parameters
        ----------
        out : Path
            A folder that is given a manifest afterwards.
        """
        with atomic_write(out / RECORDS_FILE) as path:
            lines = (json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in self.predictions)
            path.write_text("".join(lines), encoding="utf-8", newline="\n")
        candidates = np.array(self.run_info.candidates)
        null = {"null_tokens": self.null_log_likelihoods}
        save_arrays(out / LOG_LIKELIHOODS_FILE, candidates, {**null, **self.log_likelihoods})
        save_arrays(out / EVIDENCE_FILE, candidates, self.evidence)
        write_json(out / RESULT_FILE, self.summary())

    def summary(self) -> dict[str, object]:
        """Return what result.json holds."""
        return {
            "format": FORMAT,
            "run_id": self.run_id,
            "rows": [asdict(row) for row in self.scores],
            "text_rows": [asdict(row) for row in self.text_scores],
            "protocols": [asdict(protocol) for protocol in self.protocols],
            "calibration": asdict(self.calibration),
            "confusion": None if self.confusion is None else asdict(self.confusion),
            "noise_ceilings": [asdict(ceiling) for ceiling in self.noise_ceilings],
            "ablation": None if self.ablation is None else [asdict(row) for row in self.ablation],
            "run_info": asdict(self.run_info),
        }

    @classmethod
    def load(cls, directory: str | Path) -> "EvaluationResult":
        """Read what `save` wrote.

        Parameters
        ----------
        directory : str or Path
            The folder.

        Returns
        -------
        EvaluationResult
            Equal to the one that was saved.

        Raises
        ------
        InputError
            If it is no result, is of another format, is damaged, or its files do not belong
            together.
        """
        folder = Path(directory)
        recover_directory(folder)
        content = read_json(folder / RESULT_FILE, WHAT)
        check_format(folder, "report", content.get("format"), FORMAT, REMEDY)
        Manifest.read(folder, WHAT, REMEDY).check_all()
        path = folder / RESULT_FILE
        summary = validate_content(SUMMARY, content, str(path), REMEDY)
        records = read_records(folder / RECORDS_FILE)
        check_records(records, summary.run_info, folder)
        arrays, evidence = read_candidate_scores(records, summary.run_info.candidates, folder)
        return cls(
            run_id=summary.run_id,
            scores=summary.rows,
            text_scores=summary.text_rows,
            protocols=summary.protocols,
            predictions=records,
            run_info=summary.run_info,
            calibration=summary.calibration,
            confusion=summary.confusion,
            noise_ceilings=summary.noise_ceilings,
            ablation=summary.ablation,
            null_log_likelihoods=arrays.pop("null_tokens"),
            log_likelihoods=arrays,
            evidence=evidence,
        )


def save_arrays(path: Path, candidates: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays per subject, with the names of their columns."""
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, candidates=candidates, **arrays)  # type: ignore[arg-type]


def read_records(path: Path) -> list[TrialRecord]:
    """Read and check predictions.jsonl: one record per line."""
    # Not splitlines: a text may hold other line separators.
    lines = read_text(path, f"the {path.name} of {WHAT}").split("\n")
    return [
        validate_content(RECORD, line.encode(), f"{path}, line {number}", REMEDY)
        for number, line in enumerate(lines, 1)
        if line
    ]


def check_records(records: Sequence[TrialRecord], run: RunInfo, folder: Path) -> None:
    """Raise InputError unless the records are of the evaluated subjects and candidates."""
    path, candidates = folder / RECORDS_FILE, set(run.candidates)
    if len(candidates) < max(len(run.candidates), 2):
        raise InputError(
            f"{folder / RESULT_FILE}: run_info.candidates has {len(candidates)} different texts of "
            f"{len(run.candidates)}; expected two or more, each once. {REMEDY}"
        )
    keys = Counter((record.subject, record.trial_index) for record in records)
    counts = Counter(record.subject for record in records)
    expected = {subject.subject: subject.n_trials for subject in run.subjects}
    if dict(counts) != expected:
        raise InputError(
            f"{path} has the trials {dict(counts)}; {RESULT_FILE} those of {expected}; expected "
            f"the same. {REMEDY}"
        )
    for record in records:
        where = f"{path}: trial {record.trial_index} of {record.subject}"
        if keys[record.subject, record.trial_index] > 1:
            raise InputError(f"{where} comes twice; expected once. {REMEDY}")
        if record.target not in candidates:
            raise InputError(f"{where} has the target {record.target!r}, no candidate. {REMEDY}")
        ranks = (record.rank, record.llr_rank, record.evidence_rank or 1)
        if max(ranks) > len(candidates):
            raise InputError(
                f"{where} has the rank {max(ranks):g} among {len(candidates)} candidates. {REMEDY}"
            )


def read_candidate_scores(
    records: Sequence[TrialRecord], candidates: Sequence[str], folder: Path
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Read and check log-likelihoods, with those of null tokens, and evidence per subject."""
    counts, size = Counter(record.subject for record in records), len(candidates)
    names: dict[str, tuple[Shape, tuple[str, ...]]] = {"candidates": ((size,), TEXT)}
    of_subjects = {subject: ((count, size), FLOATS) for subject, count in counts.items()}
    has_evidence = any(record.target_evidence is not None for record in records)
    files = {
        LOG_LIKELIHOODS_FILE: names | {"null_tokens": ((size,), FLOATS)} | of_subjects,
        EVIDENCE_FILE: names | (of_subjects if has_evidence else {}),
    }
    scores = []
    for name, expected in files.items():
        arrays = read_checked_arrays(folder / name, expected, REMEDY)
        stored = arrays.pop("candidates").tolist()
        if stored != np.array(candidates).tolist():
            raise InputError(
                f"{folder / name} is of other candidates than {RESULT_FILE}, first {stored[0]!r}; "
                f"expected {candidates[0]!r} and so on. {REMEDY}"
            )
        scores.append(arrays)
    return scores[0], scores[1]
