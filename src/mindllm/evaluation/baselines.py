"""Simpler predictors of the same trials, and an oracle that knows a part of the target."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property, reduce
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mindllm.data.conversations import ConversationDataset
from mindllm.data.dataset import TrialDataset
from mindllm.data.store import Store
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import ConditionPredictions
from mindllm.metrics.exact_match import normalize_answer
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.encoder import FMRIEncoder
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.model.model_card import ModelCard
from mindllm.model.receptive_fields import init_queries
from mindllm.model.text_embeddings import embed_texts, whitened_text_embeddings

N_FIELDS = 512  # receptive fields that ridge regression reads
ALPHAS = np.logspace(0, 6, 7)
MIN_SHARED_VOXELS = 20
MAX_TIES = 1000  # equally frequent training answers
EMBEDDING_DIM = 256
BATCH_SIZE = 256  # trials read at once
NO_STIMULUS = -2.0  # below every correlation: no training stimulus has this answer
Groups = Sequence[np.ndarray]


class ConditionSkipped(Exception):
    """Why a condition cannot be measured here; the report says it."""


class AnswerEmbeddings:
    """Whitened embeddings of training answers and candidates, as unit vectors in one space.

    Parameters
    ----------
    language_model : FrozenLanguageModel
        What embeds the texts.
    answers : mapping of str to int
        Training answers and how many trials they were the target of.
    candidates : sequence of str
        Candidates of the evaluation.

    Attributes
    ----------
    answers : list of str
        Training answers, sorted.
    of_answers, of_candidates : ndarray of shape (n_texts, dim)
        Their embeddings.
    answer_index : dict of str to int
        Number of each training answer.
    """

    def __init__(
        self,
        language_model: FrozenLanguageModel,
        answers: Mapping[str, int],
        candidates: Sequence[str],
    ) -> None:
        self.answers = sorted(answers)
        texts = sorted({*self.answers, *candidates})
        embedded = whitened_text_embeddings(embed_texts(language_model, texts), EMBEDDING_DIM)
        vectors = embedded.cpu().numpy()
        index = {text: i for i, text in enumerate(texts)}
        self.of_answers = vectors[[index[t] for t in self.answers]] if answers else vectors[:0]
        self.of_candidates = vectors[[index[text] for text in candidates]]
        self.answer_index = {text: i for i, text in enumerate(self.answers)}

    @cache  # noqa: B019 - they live as long as an evaluation
    def clusters(self, n_clusters: int, seed: int = 0) -> KMeans:
        """Return k-means clusters of the candidates."""
        return KMeans(n_clusters, n_init=10, random_state=seed).fit(self.of_candidates)


def most_frequent_baseline(
    task: EvaluationSet, answers: Mapping[str, int], embeddings: AnswerEmbeddings
) -> ConditionPredictions:
    """Predict the most frequent training answer, whatever the trial.

    Parameters
    ----------
    task : EvaluationSet
        The candidates, which are scored by their frequency.
    answers : mapping of str to int
        Training answers and their frequency.
    embeddings : AnswerEmbeddings
        Of these answers.

    Returns
    -------
    ConditionPredictions
        One row per equally frequent answer, the most central one first.
    """
    counts: Counter[str] = Counter()
    for text, count in answers.items():
        counts[normalize_answer(text)] += count
    frequency = np.array([[counts[normalize_answer(text)] for text in task.candidates]], float)
    weights = np.array([answers[text] for text in embeddings.answers], float)
    centrality = embeddings.of_answers @ (weights @ embeddings.of_answers)
    texts = sorted(
        most_frequent(answers), key=lambda text: -centrality[embeddings.answer_index[text]]
    )[:MAX_TIES]
    return ConditionPredictions.from_scores(
        np.repeat(frequency, len(texts), 0), texts, frequency[0]
    )


def most_frequent(answers: Mapping[str, int]) -> list[str]:
    """Return the answers of the most training trials, sorted."""
    return sorted(text for text, count in answers.items() if count == max(answers.values()))


def check_subjects_available(store: Store, card: ModelCard, subjects: Iterable[str]) -> None:
    """Raise ConditionSkipped unless this is the model's training store, with these subjects."""
    if card.store != store.meta.get("name") or set(subjects) - set(store.subjects):
        raise ConditionSkipped(
            f"the trials that the model was trained on ({card.store}) are not in this store"
        )


class TrainingTrials:
    """The trials that the model was trained on, for baselines to learn from.

    Parameters
    ----------
    store : Store
        The store that the model was trained on.
    card : ModelCard
        Of the model.

    Raises
    ------
    ConditionSkipped
        If the training trials are not in this store.
    """

    def __init__(self, store: Store, card: ModelCard) -> None:
        if not card.subjects:
            raise ConditionSkipped("the model card does not list the training subjects")
        check_subjects_available(store, card, card.subjects)
        self.store, self.subjects = store, list(card.subjects)
        trials = TrialDataset(store, self.subjects, "train")
        known = set(trials.table["stimulus"] if card.stimuli is None else card.stimuli)
        self.table = trials.table[trials.table["stimulus"].isin(known)].reset_index(drop=True)
        if self.table.empty:
            raise ConditionSkipped("no trial that the model was trained on is in this store")
        first_answer = ConversationDataset(store, [trials]).first_answer
        self.table["answer"] = self.table["stimulus"].map(first_answer)
        if set(self.table["answer"]) - set(card.answers or {}):
            raise ConditionSkipped(
                "the answers in this store are not those that the model was trained on"
            )
        self._ridge: Any = None

    def features(self, subject: str, groups: Groups) -> np.ndarray:
        """Return the activity of group means under fixed Gaussian receptive fields.

        Parameters
        ----------
        subject, groups : str, sequence of ndarray of length B
            Whose trials, as groups of trial indices, each of which is averaged.

        Returns
        -------
        ndarray of shape (B, 512)
            Fields of 4 mm standard deviation, at the same coordinates in every subject.
        """
        return attend_groups(self.fields, self.store, subject, groups).numpy()

    @cached_property
    def fields(self) -> FMRIEncoder:
        """An untrained encoder with its queries spread over the training subjects' voxels."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = FMRIEncoder(MindLLMConfig(num_queries=N_FIELDS, memory_size=0), {})
            init_queries(encoder, self.store.maskers(self.subjects))
        return encoder

    def fit_ridge(self, embeddings: AnswerEmbeddings) -> Any:
        """Fit ridge regression from features to text embeddings.

        Parameters
        ----------
        embeddings : AnswerEmbeddings
            Targets.

        Returns
        -------
        sklearn.model_selection.GridSearchCV
            Fitted. The penalty is chosen with subjects left out (stimuli, for one subject).
        """
        # One subject after the other, as in the table.
        by_subject = self.table.groupby("subject", sort=False)["row"]
        x = np.concatenate(
            [self.features(str(s), list(rows.to_numpy()[:, None])) for s, rows in by_subject]
        )
        numbers = [embeddings.answer_index[text] for text in self.table["answer"]]
        groups = self.table["subject" if len(self.subjects) > 1 else "stimulus"].to_numpy()
        folds = GroupKFold(min(5, len(set(groups))))
        pipeline = make_pipeline(StandardScaler(), Ridge())
        search = GridSearchCV(pipeline, {"ridge__alpha": ALPHAS}, cv=folds)
        return search.fit(x, embeddings.of_answers[numbers], groups=groups)

    def predict_ridge(
        self, embeddings: AnswerEmbeddings, subject: str, groups: Groups
    ) -> ConditionPredictions:
        """Predict by ridge regression, which is fitted at the first call.

        Parameters
        ----------
        embeddings : AnswerEmbeddings
            Of training answers and candidates.
        subject, groups : str, sequence of ndarray of length B
            Whose trials, as groups of trial indices, each of which is averaged.

        Returns
        -------
        ConditionPredictions
            B rows: cosine of each candidate with the predicted embedding; the text is the training
            answer with the largest one.
        """
        if self._ridge is None:
            self._ridge = self.fit_ridge(embeddings)
        predicted = self._ridge.predict(self.features(subject, groups))
        nearest = (predicted @ embeddings.of_answers.T).argmax(1)
        return ConditionPredictions.from_scores(
            predicted @ embeddings.of_candidates.T, [embeddings.answers[i] for i in nearest]
        )

    def predict_nearest_neighbor(
        self, task: EvaluationSet, subject: str, groups: Groups
    ) -> ConditionPredictions:
        """Predict the answer of the training stimulus with the most similar mean pattern.

        Parameters
        ----------
        task : EvaluationSet
            The candidates.
        subject, groups : str, sequence of ndarray of length B
            Whose trials, as groups of trial indices, each of which is averaged.

        Returns
        -------
        ConditionPredictions
            B rows: largest correlation of a training stimulus with this answer, on the voxels that
            all share.

        Raises
        ------
        ConditionSkipped
            If the subjects' voxels are not on one grid, or too few are shared.
        """
        voxels = self.shared_voxels(subject)
        stimuli, sums = self.stimulus_sums(voxels)
        patterns = self.store.mean_betas(subject, groups)[:, voxels[subject]]
        # Correlations; a sum is as good as a mean.
        similarity = unit_rows(patterns) @ unit_rows(sums).T
        by_stimulus = self.table.drop_duplicates("stimulus").set_index("stimulus")["answer"]
        answers = by_stimulus.loc[stimuli].tolist()
        keys = np.array([normalize_answer(text) for text in answers])
        scores = np.full((len(patterns), len(task.candidates)), NO_STIMULUS)
        for i, text in enumerate(task.candidates):
            columns = np.flatnonzero(keys == normalize_answer(text))
            if len(columns):
                scores[:, i] = similarity[:, columns].max(1)
        return ConditionPredictions.from_scores(scores, [answers[i] for i in similarity.argmax(1)])

    def stimulus_sums(self, voxels: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the training stimuli (S,) and the sum of their trials' betas (S, n_shared)."""
        stimuli, index = np.unique(self.table["stimulus"].to_numpy(str), return_inverse=True)
        n_shared = len(next(iter(voxels.values())))
        sums = np.zeros((len(stimuli), n_shared), np.float32)
        for subject, part in self.table.groupby("subject"):
            rows, targets = part["row"].to_numpy(), index[part.index]
            for start in range(0, len(rows), BATCH_SIZE):
                batch = slice(start, start + BATCH_SIZE)
                betas = self.store.betas(str(subject), rows[batch], standardize=True)
                np.add.at(sums, targets[batch], betas[:, voxels[str(subject)]])
        return stimuli, sums

    def shared_voxels(self, subject: str) -> dict[str, np.ndarray]:
        """Return, by subject, the numbers of the voxels that all of them have, in one order."""
        names = sorted({*self.subjects, subject})
        maskers = [self.store.masker(name) for name in names]
        shape, affine = maskers[0].shape, maskers[0].affine
        if any(m.shape != shape or not np.allclose(m.affine, affine, atol=1e-3) for m in maskers):
            raise ConditionSkipped("the subjects' voxels are not on one grid")
        flat = [np.ravel_multi_index(tuple(m.voxel_indices.T), m.shape) for m in maskers]
        common = reduce(np.intersect1d, flat)
        if len(common) < MIN_SHARED_VOXELS:
            raise ConditionSkipped(
                f"the subjects share {len(common)} voxels, fewer than {MIN_SHARED_VOXELS}"
            )
        numbers = []
        for indices in flat:
            order = np.argsort(indices)
            numbers.append(order[np.searchsorted(indices[order], common)])
        return dict(zip(names, numbers, strict=True))


@torch.no_grad()
def attend_groups(encoder: FMRIEncoder, store: Store, subject: str, groups: Groups) -> Tensor:
    """Return the query outputs (B, num_queries) of the mean of each group of trials."""
    voxels = encoder.prepare_voxels(store.masker(subject))
    batches = (
        torch.from_numpy(store.mean_betas(subject, groups[i : i + BATCH_SIZE]))
        for i in range(0, len(groups), BATCH_SIZE)
    )
    return torch.cat([encoder.attend(voxels, batch) for batch in batches])


def unit_rows(patterns: np.ndarray) -> np.ndarray:
    """Return rows (B, n_voxels) with mean 0 and length 1; a row that never varies is 0."""
    centred = patterns - patterns.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)


def cluster_oracle(
    task: EvaluationSet,
    stimuli: Sequence[str] | np.ndarray,
    embeddings: AnswerEmbeddings,
    n_clusters: int,
    seed: int = 0,
) -> ConditionPredictions:
    """Predict from the target's cluster of answers, and nothing else.

    Parameters
    ----------
    task : EvaluationSet
        Candidates and targets.
    stimuli : sequence of str, length B
        Stimulus of each trial.
    embeddings : AnswerEmbeddings
        What is clustered.
    n_clusters, seed : int
        Of k-means.

    Returns
    -------
    ConditionPredictions
        B rows: 1 for the candidates in the target's cluster, else 0; the text is the training
        answer (or candidate, without one) nearest to the cluster's center.
    """
    clusters = embeddings.clusters(n_clusters, seed)
    labels = clusters.labels_
    inside = (labels[:, None] == labels).astype(float)  # (C, C)
    vectors, names = embeddings.of_answers, embeddings.answers
    if not names:
        vectors, names = embeddings.of_candidates, list(task.candidates)
    texts = [names[i] for i in (clusters.cluster_centers_ @ vectors.T).argmax(1)]
    _, target = task.columns(stimuli)
    return ConditionPredictions.from_scores(inside[target], [texts[labels[t]] for t in target])
