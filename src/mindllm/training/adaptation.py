"""Adaptation of a trained model to a subject of a store."""

from dataclasses import dataclass

import numpy as np

from mindllm.data.conversations import ConversationDataset
from mindllm.data.dataset import TrialDataset
from mindllm.data.store import Store
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError
from mindllm.utils.seeds import subject_seed


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How many trials a model was adapted by, and how many of them had a label.

    Parameters
    ----------
    n_trials, n_labels : int
    """

    n_trials: int
    n_labels: int


def adapt_to_subject(
    model: MindLLM, store: Store, subject: str, n_labels: int = 0, seed: int = 0
) -> Adaptation:
    """Adapt a model's evidence to a subject, by its trials outside the split test.

    Parameters
    ----------
    model : MindLLM
        Changed in place; see `MindLLM.adapt_subject`.
    store : Store
    subject : str
    n_labels : int
        Trials of the split train whose text is used, drawn at random; 0: none.
    seed : int
        Of the draw.

    Returns
    -------
    Adaptation

    Raises
    ------
    InputError
        If the store has no such subject, or it has fewer than 40 trials outside the split test,
        or fewer labelled training trials than asked for.
    """
    store.select_subjects([subject])
    table = store.trials(subject)
    rows = np.flatnonzero((table["split"] != "test").to_numpy())
    texts: list[str | None] = [None] * len(rows)
    for index, text in draw_labels(store, subject, rows, n_labels, seed).items():
        texts[index] = text
    betas = store.betas(subject, rows, standardize=True)
    model.adapt_subject(betas, store.masker(subject), texts)
    return Adaptation(len(rows), n_labels)


def draw_labels(
    store: Store, subject: str, rows: np.ndarray, n_labels: int, seed: int
) -> dict[int, str]:
    """Draw trials, by their place in rows, with the first answer about their stimulus."""
    if not n_labels:
        return {}
    table = store.trials(subject)
    answers = ConversationDataset(store, [TrialDataset(store, [subject], "train")]).first_answer
    in_training = (table["split"] == "train").to_numpy()
    stimuli = table["stimulus"].to_numpy(str)
    labelled = [i for i, row in enumerate(rows) if in_training[row] and stimuli[row] in answers]
    if len(labelled) < n_labels:
        raise InputError(
            f"{subject} has {len(labelled)} training trials with a text, {n_labels} were asked "
            "for; choose fewer (--n-labels)."
        )
    rng = np.random.default_rng(subject_seed(seed, subject))
    return {int(i): answers[stimuli[rows[i]]] for i in rng.permutation(labelled)[:n_labels]}
