"""A tiny model whose encoding model was fitted to trials of two subjects, and a third subject."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mindllm.explain.evidence_path import Question
from mindllm.explain.explainer import Explainer
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.encoding_fit import SubjectFeatures, fit_encoding_model
from mindllm.model.modeling import MindLLM
from tests.conftest import make_space

N_TEXTS, DIM = 12, 8


@dataclass(frozen=True)
class Fitted:
    """A model in double precision, and trials of a subject that it was not fitted to."""

    model: MindLLM
    masker: VoxelMasker
    betas: np.ndarray
    texts: np.ndarray
    embeddings: torch.Tensor

    @property
    def explainer(self) -> Explainer:
        return Explainer(self.model, self.masker, self.betas, self.betas)

    def question(self, text: int, against: tuple[int, ...] = ()) -> Question:
        others = self.embeddings[list(against)] if against else None
        assert self.model.encoding_model is not None
        return Question.of_texts(self.model.encoding_model, self.embeddings[[text]], others)


def draw_trials(masker: VoxelMasker, waves: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Betas (n_trials, n_voxels) that follow the text smoothly over the brain, and the texts."""
    rng = np.random.default_rng(seed)
    texts = np.tile(np.arange(N_TEXTS), 6)
    signal = np.cos(masker.coords_mm @ waves[texts].T).T
    return signal + rng.normal(size=signal.shape), texts


@pytest.fixture
def fitted(tiny_model: MindLLM) -> Fitted:
    rng = np.random.default_rng(0)
    waves = rng.normal(size=(N_TEXTS, 3)) / 20
    model = tiny_model.double()
    embeddings = torch.nn.functional.normalize(
        torch.from_numpy(rng.normal(size=(N_TEXTS, DIM))), dim=-1
    )
    features = {}
    for number in range(2):
        masker = make_space(f"sub-{number:02d}", 80, number)
        betas, texts = draw_trials(masker, waves, number)
        outputs = model.query_outputs(betas, masker)
        features[masker.subject] = SubjectFeatures(outputs, torch.from_numpy(texts))
    model.encoding_model = fit_encoding_model(features, embeddings)
    model.sentence_encoder = "none"
    masker = make_space("sub-02", 70, 2)
    betas, texts = draw_trials(masker, waves, 2)
    return Fitted(model, masker, betas, texts, embeddings)
