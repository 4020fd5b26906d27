"""What simpler readers say of the same trials: a constant answer, the field's linear baseline, the nearest training pattern;
and what knowing only a part of the truth would give.
"""

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

from mindllm.data.conversations import ConversationDataset
from mindllm.data.dataset import TrialDataset
from mindllm.data.store import Store, mean_betas
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import ConditionPredictions
from mindllm.metrics.exact_match import normalize_answer
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.encoder import FMRIEncoder
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.model.text_embeddings import embed_texts, whitened_text_embeddings

FIELDS = 512  # smoothed places of the brain that ridge reads
ALPHAS = np.logspace(0, 6, 7)
MIN_SHARED = 20  # voxels
TIES = 1000  # equally frequent training answers that stand for the constant one
WIDTH = 256
Groups = Sequence[np.ndarray]


class ConditionSkipped(Exception):
    """Why a baseline cannot be measured here; the report says it."""


class AnswerEmbeddings:
    """Texts as unit vectors: whitened embeddings by the language model. Answers of training and candidates share one space."""

    def __init__(
        self, llm: FrozenLanguageModel, answers: Mapping[str, int], candidates: Sequence[str]
    ) -> None:
        self.answers = sorted(answers)
        texts = sorted({*self.answers, *candidates})
        vectors = whitened_text_embeddings(embed_texts(llm, texts), WIDTH).cpu().numpy()
        place = {text: i for i, text in enumerate(texts)}
        self.of_answers = (
            vectors[[place[text] for text in self.answers]] if answers else vectors[:0]
        )
        self.of_candidates = vectors[[place[text] for text in candidates]]
        self.number = {text: i for i, text in enumerate(self.answers)}

    @cache  # noqa: B019 - they live as long as an evaluation
    def clusters(self, k: int, seed: int = 0) -> KMeans:
        """The candidates in k clusters."""
        return KMeans(k, n_init=10, random_state=seed).fit(self.of_candidates)


def most_frequent_baseline(
    task: EvaluationSet, answers: Mapping[str, int], meanings: AnswerEmbeddings
) -> ConditionPredictions:
    """The most frequent training answer, whatever the scan. Of equally frequent ones each stands in, the most central first."""
    counts: Counter[str] = Counter()
    for text, count in answers.items():
        counts[normalize_answer(text)] += count
    frequency = np.array([[counts[normalize_answer(text)] for text in task.candidates]], float)
    weights = np.array([answers[text] for text in meanings.answers], float)
    centrality = meanings.of_answers @ (weights @ meanings.of_answers)
    first = sorted(most_frequent(answers), key=lambda text: -centrality[meanings.number[text]])[
        :TIES
    ]
    return ConditionPredictions(np.repeat(frequency, len(first), 0), first, frequency[0])


def most_frequent(answers: Mapping[str, int]) -> list[str]:
    """The answers given to the most training trials, sorted."""
    return sorted(text for text, count in answers.items() if count == max(answers.values()))


def check_subjects_available(store: Store, card: Mapping[str, Any], people: Iterable[str]) -> None:
    """Raise Unavailable unless this is the store that the model of a card was trained on, with all these people in it."""
    if card.get("store") != store.meta.get("name") or set(people) - set(store.subjects):
        raise ConditionSkipped(
            f"the trials that the model was trained on ({card.get('store')}) are not in this store"
        )


class TrainingTrials:
    """The trials that the model was trained on, where they are in this store: what the baselines learn from."""

    def __init__(self, store: Store, card: Mapping[str, Any]) -> None:
        people = card.get("subjects")
        if not people:
            raise ConditionSkipped("the model's card does not say whom it was trained on")
        check_subjects_available(store, card, people)
        self.store, self.people = store, list(people)
        trials = TrialDataset(store, self.people, "train")
        known = set(card["stimuli"]) if "stimuli" in card else set(trials.table["stimulus"])
        self.table = trials.table[trials.table["stimulus"].isin(known)].reset_index(drop=True)
        if self.table.empty:
            raise ConditionSkipped("no trial that the model was trained on is in this store")
        first = ConversationDataset(store, [trials]).first_answer
        self.table["answer"] = self.table["stimulus"].map(first)
        if set(self.table["answer"]) - set(card.get("answers", {})):
            raise ConditionSkipped(
                "the answers in this store are not those that the model was trained on"
            )

    def features(self, subject: str, groups: Groups, block: int = 256) -> np.ndarray:
        """(B, FIELDS): the activity under fixed Gaussian fields of 4 mm standard deviation, the same places in everybody."""
        voxels = self.fields.prepare_voxels(self.store.masker(subject))
        parts = [
            torch.from_numpy(mean_betas(self.store, subject, groups[i : i + block]))
            for i in range(0, len(groups), block)
        ]
        with torch.no_grad():
            return torch.cat([self.fields.attend(voxels, part) for part in parts]).numpy()

    @cached_property
    def fields(self) -> FMRIEncoder:
        """An untrained encoder, placed over the training people's voxels: what everybody's voxels are resampled with."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = FMRIEncoder(MindLLMConfig(num_queries=FIELDS, memory_size=0), {})
            encoder.init_queries([self.store.masker(s) for s in self.people])
        return encoder

    def ridge(self, meanings: AnswerEmbeddings) -> Any:
        """Ridge regression from features to text vectors; its strength is chosen with people left out (stimuli, for one person)."""
        people = self.table.groupby("subject", sort=False)[
            "row"
        ]  # one person after the other, as in the table
        x = np.concatenate(
            [self.features(str(s), list(rows.to_numpy()[:, None])) for s, rows in people]
        )
        y = meanings.of_answers[[meanings.number[text] for text in self.table["answer"]]]
        groups = self.table["subject" if len(self.people) > 1 else "stimulus"].to_numpy()
        folds = GroupKFold(min(5, len(set(groups))))
        search = GridSearchCV(
            make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": ALPHAS}, cv=folds
        )
        return search.fit(x, y, groups=groups)

    def predict_ridge(
        self, fitted: Any, meanings: AnswerEmbeddings, subject: str, groups: Groups
    ) -> ConditionPredictions:
        """Candidates by their likeness to the predicted vector; the text is the training answer that is most like it."""
        predicted = fitted.predict(self.features(subject, groups))
        best = (predicted @ meanings.of_answers.T).argmax(1)
        return ConditionPredictions(
            predicted @ meanings.of_candidates.T, [meanings.answers[i] for i in best]
        )

    def predict_nearest_neighbor(
        self, task: EvaluationSet, subject: str, groups: Groups
    ) -> ConditionPredictions:
        """Candidates by the correlation of their training stimuli's mean pattern with the trial, on the voxels all share."""
        kept = self.shared(subject)
        stimuli, place = np.unique(self.table["stimulus"].to_numpy(str), return_inverse=True)
        sums = np.zeros((len(stimuli), len(kept[subject])), np.float32)
        for name, part in self.table.groupby("subject"):
            rows, where = part["row"].to_numpy(), place[part.index]
            for start in range(0, len(rows), 256):
                values = self.store.betas(str(name), rows[start : start + 256], standardize=True)[
                    :, kept[str(name)]
                ]
                np.add.at(sums, where[start : start + 256], values)
        own = mean_betas(self.store, subject, groups)[:, kept[subject]]
        near = standard(own) @ standard(sums).T  # correlations; a sum is as good as a mean
        answer = (
            self.table.drop_duplicates("stimulus")
            .set_index("stimulus")["answer"]
            .loc[stimuli]
            .tolist()
        )
        keys = np.array([normalize_answer(text) for text in answer])
        score = np.full(
            (len(own), len(task.candidates)), -2.0
        )  # below every correlation: no such training stimulus
        for i, text in enumerate(task.candidates):
            about = np.flatnonzero(keys == normalize_answer(text))
            if len(about):
                score[:, i] = near[:, about].max(1)
        return ConditionPredictions(score, [answer[i] for i in near.argmax(1)])

    def shared(self, subject: str) -> dict[str, np.ndarray]:
        """Person -> numbers of the voxels that the training people and `subject` all have, in one order."""
        names = sorted({*self.people, subject})
        spaces = [self.store.masker(name) for name in names]
        first = spaces[0]
        if any(
            s.shape != first.shape or not np.allclose(s.affine, first.affine, atol=1e-3)
            for s in spaces
        ):
            raise ConditionSkipped("the people's voxels are not on one grid")
        flat = [np.ravel_multi_index(tuple(s.voxel_indices.T), s.shape) for s in spaces]
        common = reduce(np.intersect1d, flat)
        if len(common) < MIN_SHARED:
            raise ConditionSkipped(
                f"the people share {len(common)} voxels, fewer than {MIN_SHARED}"
            )
        orders = [np.argsort(own) for own in flat]
        places = [
            order[np.searchsorted(own[order], common)]
            for own, order in zip(flat, orders, strict=True)
        ]
        return dict(zip(names, places, strict=True))


def standard(values: np.ndarray) -> np.ndarray:
    """Rows (B, V) with mean 0 and length 1; a row that never varies is 0."""
    centred = values - values.mean(1, keepdims=True)
    size = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, size, out=np.zeros_like(centred), where=size > 0)


def cluster_oracle(
    task: EvaluationSet,
    stimuli: Sequence[str] | np.ndarray,
    meanings: AnswerEmbeddings,
    k: int,
    seed: int = 0,
) -> ConditionPredictions:
    """A reader that is told which of k clusters of answers is the true one, and says the training answer nearest to its centre."""
    found = meanings.clusters(k, seed)
    inside = (found.labels_[:, None] == found.labels_).astype(float)  # (C, C)
    if len(meanings.answers):
        nearest = (found.cluster_centers_ @ meanings.of_answers.T).argmax(1)
        texts = [meanings.answers[i] for i in nearest]
    else:
        texts = [
            task.candidates[i]
            for i in (found.cluster_centers_ @ meanings.of_candidates.T).argmax(1)
        ]
    _, true = task.columns(stimuli)
    return ConditionPredictions(inside[true], [texts[found.labels_[t]] for t in true])
