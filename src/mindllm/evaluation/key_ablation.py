"""Ablation of the keys of the attention: which description of a voxel helps to read a new subject.

Each variant of the keys is trained anew (the alignment stage, in which keys, queries and token head
are trained) on all subjects but one, for each left-out subject in turn. The encoding model is then
fitted to the trained encoder's query outputs of the same subjects, and the left-out subject's
trials are identified by evidence among all answers, which were shown to the other subjects. Ridge
regression from the same query outputs is a second way to read them, which does not align the
subject. `not trained` are the receptive fields that training begins with.

As in a cross-validation there are no p-values: every subject is both tested and trained on.

References
----------
Qiu et al., MindLLM, ICML 2025, arXiv 2502.15786, ablation of the keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from mindllm.data.store import Store
from mindllm.evaluation.ablation import ABLATION_METRICS
from mindllm.evaluation.answer_folds import AnswerFolds
from mindllm.evaluation.cache import PARTIAL_DIR, PredictionCache, hash_texts
from mindllm.evaluation.conditions import ALL_SUBJECTS
from mindllm.evaluation.cross_validation import MIN_SUBJECTS, select
from mindllm.evaluation.left_out_subject import FitOptions, LeftOutSubject
from mindllm.fmri.masker import VoxelMasker
from mindllm.language.sentence_embeddings import embed_sentences
from mindllm.metrics.identification import rank_scores
from mindllm.metrics.inference import bootstrap_interval, subject_means
from mindllm.metrics.registry import METRICS
from mindllm.model.encoder import FMRIEncoder
from mindllm.model.encoding_model import EncodingModelConfig
from mindllm.training.configuration import StageConfig, TrainConfig
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError
from mindllm.utils.folders import remove_folder
from mindllm.utils.progress import progress_bar
from mindllm.utils.seeds import subject_seed

BOTH, POSITION, REGIONS, SHUFFLED = "both", "position", "regions", "shuffled"
UNTRAINED = "not trained"
SHUFFLED_TRIALS = "shuffled_trials"
PREDICTED = ("fmri", "trained_on_permuted_pairs", "ridge")  # the conditions that are computed


@dataclass(frozen=True, slots=True)
class KeyVariant:
    """What keys are computed from.

    Parameters
    ----------
    name : str
        `both`, `position`, `regions`, `shuffled`, `not trained`, or that of an atlas: its regions
        alone.
    meaning : str
    coordinates : bool
    atlases : tuple of str or None
        None: all.
    shuffled : bool
        Whether the betas of each subject are permuted over its voxels, once for all trials.
    trained : bool
    """

    name: str
    meaning: str
    coordinates: bool = True
    atlases: tuple[str, ...] | None = None
    shuffled: bool = False
    trained: bool = True


@dataclass(frozen=True, slots=True)
class KeyAblationRow:
    """How well trials are identified under a condition, with one variant of the keys.

    Parameters
    ----------
    variant : str
    condition : str
        `fmri` and `shuffled_trials`, `trained_on_permuted_pairs` (the encoding model is fitted to
        permuted pairs) and `ridge`.
    subject : str
        "all" is the mean of the subjects.
    n_trials, n_seeds : int
        Trials; trainings that scores are means over.
    top1, two_way : float
        Among all answers, in [0, 1].
    top1_ci_low, top1_ci_high, two_way_ci_low, two_way_ci_high : float
        95 % bootstrap interval over answers, and over subjects.
    top1_difference, two_way_difference : float
        Minus that of `both` under the same condition, paired.
    top1_difference_ci_low, ..., two_way_difference_ci_high : float
    """

    variant: str
    condition: str
    subject: str
    n_trials: int
    n_seeds: int
    top1: float
    top1_ci_low: float
    top1_ci_high: float
    two_way: float
    two_way_ci_low: float
    two_way_ci_high: float
    top1_difference: float
    top1_difference_ci_low: float
    top1_difference_ci_high: float
    two_way_difference: float
    two_way_difference_ci_low: float
    two_way_difference_ci_high: float


def key_variants(store: Store, names: Sequence[str] | None = None) -> list[KeyVariant]:
    """Return the variants of the keys that a store allows, `both` first.

    Parameters
    ----------
    store : Store
        Its atlases are variants, if there are several.
    names : sequence of str, optional
        Those that are wanted; `both` is always among them. None: all.

    Returns
    -------
    list of KeyVariant

    Raises
    ------
    InputError
        If the store has no atlas, or a name is unknown.
    """
    atlases = list(store.parcel_names)
    if not atlases:
        raise InputError(
            f"{store.path} has no atlas, so keys can be computed from positions alone. "
            "Prepare it with an atlas."
        )
    variants = [
        KeyVariant(BOTH, "position and regions"),
        KeyVariant(POSITION, "position alone", atlases=()),
        KeyVariant(REGIONS, "regions of all atlases, no position", coordinates=False),
        *(
            KeyVariant(atlas, f"regions of {atlas} alone", coordinates=False, atlases=(atlas,))
            for atlas in (atlases if len(atlases) > 1 else [])
        ),
        KeyVariant(SHUFFLED, "as both, with betas shuffled over voxels", shuffled=True),
        KeyVariant(UNTRAINED, "position alone, not trained", atlases=(), trained=False),
    ]
    known = {variant.name: variant for variant in variants}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise InputError(
            f"there is no variant {', '.join(unknown)} of the keys; known: {', '.join(known)}."
        )
    return [v for v in variants if names is None or v.name in names or v.name == BOTH]


class ShuffledVoxels(Store):
    """A store in which each subject's voxels have the positions and parcels of others of them."""

    @cache  # noqa: B019 - a store lives as long as the command that opened it
    def masker(self, subject: str) -> VoxelMasker:
        """The subject's voxels, permuted in the same way for all trials."""
        masker = super().masker(subject)
        rng = np.random.default_rng(subject_seed(0, subject))
        return masker.select_voxels(rng.permutation(len(masker)))


class KeyAblation:
    """Ablation of the keys on one store, leaving every subject out in turn.

    Parameters
    ----------
    store : Store
    config : TrainConfig, optional
        Options of the alignment stage and of the encoder; there is no instruction tuning.
    directory : Path
        What is computed is kept here until the end: called again, it is read.
    subjects : sequence of str, optional
        Subjects that take part, three or more. None: all.
    left_out : sequence of str, optional
        Those of them that are left out in turn. None: all.
    names : sequence of str, optional
        Of the variants; None: all.
    n_seeds : int
        Trainings of each, with consecutive seeds from that of the config, whose scores are
        averaged.

    Raises
    ------
    InputError
        If the subjects are fewer than three, the store has no atlas, a variant is unknown, or the
        options of training name what a variant changes.

    Examples
    --------
    >>> from mindllm import Store
    >>> rows = KeyAblation(Store("store"), Path("keys")).run()  # doctest: +SKIP
    """

    def __init__(
        self,
        store: Store,
        directory: Path,
        config: TrainConfig | None = None,
        *,
        subjects: Sequence[str] | None = None,
        left_out: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        n_seeds: int = 1,
    ) -> None:
        self.store, self.config, self.n_seeds = store, config or TrainConfig(), n_seeds
        check_options(self.config)
        self.subjects = store.select_subjects(subjects)
        self.left_out = self.subjects if left_out is None else select(left_out, self.subjects)
        if len(self.subjects) < MIN_SUBJECTS:
            raise InputError(
                f"{len(self.subjects)} subjects: leaving one out needs at least {MIN_SUBJECTS}."
            )
        self.variants = key_variants(store, names)
        self.folds = AnswerFolds.divide(store, self.subjects, 2)
        self.directory = directory / PARTIAL_DIR
        self.cache = PredictionCache(self.directory, self.fingerprint())
        split = store.split_dir.name if store.split_dir else None
        self.shuffled_store = ShuffledVoxels(store.path, split)

    def fingerprint(self) -> dict[str, str]:
        """Return everything that the evidence depends on, whatever the variants."""
        return {
            "store": str(self.store.meta.get("name")),
            "trials": hash_texts(*(self.store.fingerprint(s) for s in self.subjects)),
            "subjects": ", ".join(self.subjects),
            "answers": hash_texts(*self.folds.answers),
            "options": self.config.model_dump_json(),
        }

    @cached_property
    def embeddings(self) -> Tensor:
        """Sentence embeddings of the answers (n_answers, embedding_dim)."""
        vectors = embed_sentences(self.folds.answers, self.config.sentence_encoder)
        return torch.from_numpy(vectors).double()

    def fits(self) -> Iterator[tuple[KeyVariant, str, int]]:
        """Yield variant, left-out subject and seed of all that is fitted, subject by subject."""
        for subject in self.left_out:
            for variant in self.variants:
                for number in range(self.n_seeds if variant.trained else 1):
                    yield variant, subject, self.config.seed + number

    def run(self, progress: Progress | None = None) -> list[KeyAblationRow]:
        """Train and evaluate every variant, for every left-out subject.

        Parameters
        ----------
        progress : Progress, optional
            Where bars are drawn.

        Returns
        -------
        list of KeyAblationRow
            Of all subjects, then of each.
        """
        scores: dict[tuple[str, str, str], list[np.ndarray]] = {}
        fits = list(self.fits())
        with progress_bar(progress, "ablating keys", len(fits)) as advance:
            for variant, subject, seed in fits:
                advance(0, f"ablating keys ({variant.name}, {subject} left out)")
                for condition, values in self.score(variant, subject, seed, progress).items():
                    scores.setdefault((variant.name, condition, subject), []).append(values)
                advance(1)
        means = {key: np.mean(values, 0) for key, values in scores.items()}
        groups = {ALL_SUBJECTS: self.left_out} | {s: [s] for s in self.left_out}
        return [
            replace(self.row(means, variant, condition, group), subject=name)
            for name, group in groups.items()
            for variant in self.variants
            for condition in (*PREDICTED, SHUFFLED_TRIALS)
        ]

    def score(
        self, variant: KeyVariant, subject: str, seed: int, progress: Progress | None
    ) -> dict[str, np.ndarray]:
        """Top 1 and 2-way (n_trials, 2) of a left-out subject's trials, by condition."""
        names = {name: f"{hash_texts(variant.name)}-{seed}-{name}" for name in PREDICTED}
        if not all(self.cache.has(subject, name) for name in names.values()):
            self.predict(variant, subject, seed, names, progress)
        targets, scores = self.targets(subject), {}
        for condition, name in names.items():
            ranked = rank_both(self.cache.array(subject, name, no_array))
            scores[condition] = ranked[np.arange(len(targets)), targets]
            if condition == "fmri":  # any trial of the subject: the mean over them
                scores[SHUFFLED_TRIALS] = ranked.mean(0)[targets]
        return scores

    def predict(
        self,
        variant: KeyVariant,
        subject: str,
        seed: int,
        names: dict[str, str],
        progress: Progress | None,
    ) -> None:
        """Train a variant on the other subjects, and keep what it says about the left-out one."""
        folder = self.directory / "models" / f"{hash_texts(variant.name, subject)}-{seed}"
        store = self.shuffled_store if variant.shuffled else self.store
        config = self.config
        fit_options = FitOptions(
            seed, config.encoding_model or EncodingModelConfig(), config.encoder_config()
        )
        encoder = self.train(variant, subject, seed, folder, progress) if variant.trained else None
        left_out = LeftOutSubject(
            store, subject, self.folds, self.embeddings, fit_options, self.cache, encoder
        )
        methods = dict(left_out.methods(None))
        for condition, name in names.items():
            self.cache.array(subject, name, partial(methods[condition], None))
        if variant.trained:
            remove_folder(folder, within=self.directory)

    def train(
        self, variant: KeyVariant, subject: str, seed: int, folder: Path, progress: Progress | None
    ) -> FMRIEncoder:
        """Train the keys of a variant on all subjects but one; goes on where it was interrupted."""
        others = [s for s in self.subjects if s != subject]
        store = self.shuffled_store if variant.shuffled else self.store
        config = variant_config(self.config, variant, seed)
        return train(
            store, folder, config, subjects=others, resume=True, progress=progress
        ).encoder.requires_grad_(False)

    def targets(self, subject: str) -> np.ndarray:
        """Number of the answer of each of a subject's trials."""
        return self.folds.stimulus_texts[self.folds.stimulus_index(subject)]

    def row(
        self,
        scores: dict[tuple[str, str, str], np.ndarray],
        variant: KeyVariant,
        condition: str,
        subjects: Sequence[str],
    ) -> KeyAblationRow:
        """Return the row of the mean of subjects."""
        values = np.concatenate([scores[variant.name, condition, s] for s in subjects])
        reference = np.concatenate([scores[BOTH, condition, s] for s in subjects])
        answers = [self.targets(s) for s in subjects]
        labels = np.repeat(subjects, [len(part) for part in answers])
        table = np.column_stack([values, values - reference])
        low, high = bootstrap_interval(table, np.concatenate(answers), labels)
        mean = subject_means(table, labels).mean(0)
        numbers = [float(x) for triple in zip(mean, low, high, strict=True) for x in triple]
        n_seeds = self.n_seeds if variant.trained else 1
        return KeyAblationRow(variant.name, condition, "", len(values), n_seeds, *numbers)


def check_options(config: TrainConfig) -> None:
    """Refuse options of training that the variants change, or that train no keys."""
    if config.init_from or {"coordinates_in_keys", "atlases"} & set(config.encoder):
        raise InputError(
            "an ablation of keys trains new encoders, and sets coordinates_in_keys and atlases "
            "itself; leave these and init_from out of the options."
        )
    if not config.alignment.max_steps:
        raise InputError("alignment has max_steps 0, so no keys would be trained; give it steps.")


def variant_config(config: TrainConfig, variant: KeyVariant, seed: int) -> TrainConfig:
    """Return the options that a variant is trained with: alignment alone, with its keys."""
    keys = {"coordinates_in_keys": variant.coordinates, "atlases": variant.atlases}
    return config.model_copy(
        update={
            "encoder": config.encoder | keys,
            "seed": seed,
            "instruction_tuning": StageConfig(max_steps=0, batch_size=1),
            "encoding_model": None,  # fitted by LeftOutSubject
            "lora": None,
        }
    )


def rank_both(scores: np.ndarray) -> np.ndarray:
    """Return top 1 and 2-way (n_trials, n_answers, 2) of every answer, from scores."""
    weights = [METRICS[name].weights(scores.shape[1]) for name in ABLATION_METRICS]
    return np.stack([rank_scores(scores, w) for w in weights], -1)


def no_array() -> np.ndarray:
    """Stand for the computation of an array that is known to be kept."""
    raise AssertionError("the array was kept before")
