"""Letting a model read: real scans one by one or averaged over repeats, no scan, no tokens, zeros and noise."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mindllm.data.store import Store, mean_values
from mindllm.evaluate.evaluation_set import Task
from mindllm.evaluate.results import Said
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import Prompter
from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance

NOISES = 4  # scans of noise per person


class Reader:
    """A model that answers a task's question: likelihoods of all candidates, and free-running text."""

    def __init__(
        self, model: MindLLM, task: Task, batch_size: int = 16, options: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.task, self.batch_size, self.options = model, task, batch_size, dict(options or {})
        self.blind: np.ndarray | None = None  # (C,) what it says of the candidates without a scan: read first
        self.no_brain = self.read(model.no_brain[None], "the mean fMRI token")
        self.blind = self.no_brain.blind

    def scans(
        self,
        store: Store,
        subject: str,
        groups: Sequence[np.ndarray],
        advance: Advance | None = None,
        voxels: np.ndarray | None = None,
    ) -> Said:
        """What it says of each group of trials (rows of the store), read as one scan: their mean.

        voxels: (V,) which voxels of the person to show; the others are left out, as if they had not been measured.
        """
        space = store.space(subject)
        space = space if voxels is None else space.select(np.flatnonzero(voxels))
        parts = []
        # The attention over the voxels is made once per call of encode, so many trials are encoded at once.
        for start in range(0, len(groups), 16 * self.batch_size):
            values = mean_values(store, subject, groups[start : start + 16 * self.batch_size])
            tokens = self.model.encode(values if voxels is None else values[:, voxels], space)
            parts.append(self.read(tokens, subject, advance, write=voxels is None))
        assert sum(len(part.texts) for part in parts) == len(groups), "a trial was lost"
        likelihood = np.concatenate([part.likelihood for part in parts if part.likelihood is not None])
        return Said(likelihood, [text for part in parts for text in part.texts], self.blind)

    def read(self, tokens: Tensor, where: str, advance: Advance | None = None, write: bool = True) -> Said:
        """What it says of fMRI tokens (B, T, width); without `write` only how likely the candidates are."""
        likelihood, texts = [], []
        for some in tokens.split(self.batch_size):
            likelihood.append(self.model.score(some, self.task.candidates, self.task.question).double().numpy())
            asked = [self.model.ask(self.task.question)] * len(some)
            texts += self.model.generate(some, asked, **self.options) if write else [""] * len(some)
            if advance:
                advance(len(some))
        found = finite(np.concatenate(likelihood), where)
        return Said(found, texts, found[0] if self.blind is None else self.blind)

    def question_only(self) -> Said:
        """What the language model says to the question alone: the prompt without any place for a scan."""
        bare, empty = copy.copy(self), self.model.no_brain[None, :0]
        bare.model = copy.copy(self.model)
        prompter = self.model.prompter
        bare.model.prompter = Prompter(prompter.tokenizer, 0, self.model.template, prompter.max_length)
        return bare.read(empty, "the question alone")

    def made_up(self, store: Store, subject: str, seed: int | Sequence[int]) -> dict[str, Said]:
        """What it says of a scan at the mean of every voxel, and of Gaussian noise as large as normalized values are."""
        space = store.space(subject)
        noise = np.random.default_rng(seed).normal(size=(NOISES, len(space))).astype(np.float32)
        zeros = np.zeros((1, len(space)), np.float32)
        return {
            name: self.read(self.model.encode(values, space), f"{name} input")
            for name, values in (("zero", zeros), ("noise", noise))
        }

    def evidence(self, store: Store, subject: str, groups: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """log p(text | scan) - log p(text | no brain) in nats (B,), of what was decoded from each scan."""
        out = []
        for start in range(0, len(groups), 16 * self.batch_size):
            tokens = self.model.encode(
                mean_values(store, subject, groups[start : start + 16 * self.batch_size]), store.space(subject)
            )
            for i, some in enumerate(tokens.split(self.batch_size)):
                said = list(texts[start + i * self.batch_size :][: len(some)])
                answered = [self.model.ask(self.task.question, text) for text in said]
                out.append(self.model.evidence(some, answered).double().cpu().numpy())
        return np.concatenate(out)


def finite(likelihood: np.ndarray, where: str) -> np.ndarray:
    """The likelihoods, or an InputError if the model says NaN or infinity."""
    bad = int((~np.isfinite(likelihood)).any(1).sum())
    if bad:
        raise InputError(
            f"the model gives NaN or infinite likelihoods for {bad} of {len(likelihood)} trials ({where}); its training has probably diverged. Train it again, with a smaller learning rate."
        )
    return likelihood


def standing_in(brain: Said, others: Sequence[Said], sessions: np.ndarray) -> dict[str, Said]:
    """One person's own readings as those of other trials: shuffled, shuffled within the session; and other people's."""
    trials = len(brain.texts)
    out = {"shuffled": brain.for_all(trials)}
    if len(set(sessions.tolist())) > 1:
        out["shuffled_session"] = brain.standing_in(sessions, sessions)
    if others:
        likelihood = np.concatenate([other.likelihood for other in others if other.likelihood is not None])
        texts = [text for other in others for text in other.texts]
        out["other_person"] = Said(likelihood, texts, brain.blind).for_all(trials)
    return out
