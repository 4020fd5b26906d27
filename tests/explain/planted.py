"""Simulated subjects whose voxels are known to code attributes, and a model that read the others.

The encoder is not trained: its queries are Gaussian receptive fields spread over the brain. The
texts are scenes, embedded as the values of their attributes.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from mindllm.explain.evidence_path import Question
from mindllm.explain.explainer import Explainer
from mindllm.explain.features import AffineFeatures
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.encoding_fit import SubjectFeatures, fit_encoding_model
from mindllm.model.language_model import load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.model.receptive_fields import init_queries
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.scenes import ATTRIBUTES, TUNINGS
from mindllm.simulate.subject import SimulatedSubject, simulate_subject
from mindllm.simulate.world import SimulatedExperiment, build_experiment

ATLAS = "HCPEx"
CONFIG = MindLLMConfig(
    num_queries=256,
    receptive_field_sd_mm=6.0,
    hidden_size=32,
    embedding_dim=16,
    memory_size=0,
    num_fmri_tokens=3,
    token_dim=8,
)
VALUES = [(attribute, value) for attribute, values in ATTRIBUTES.items() for value in values]


@dataclass(frozen=True)
class Planted:
    """A subject that the model was not fitted to, with S stimuli, K attribute values, T trials.

    stimuli (T,) numbers the stimulus of each trial; embeddings is (S, K).
    """

    experiment: SimulatedExperiment
    subject: SimulatedSubject
    model: MindLLM
    masker: VoxelMasker
    features: AffineFeatures
    embeddings: torch.Tensor
    stimuli: np.ndarray

    def question_about_value(self, value: int) -> Question:
        naming = torch.from_numpy(self.experiment.design[:, value] == 1)
        assert self.model.encoding_model is not None
        return Question.of_texts(
            self.model.encoding_model, self.embeddings[naming], self.embeddings[~naming]
        )

    def naming(self, value: int) -> np.ndarray:
        return self.experiment.design[self.stimuli, value] == 1

    def planted_voxels(self, attribute: str) -> np.ndarray:
        """Whether most of what lies around a voxel is parcels that code the attribute."""
        weights = self.experiment.tuning_weights(self.masker.coords_mm)
        fractions = [
            row / tuning.weight
            for row, tuning in zip(weights, TUNINGS, strict=True)
            if tuning.attribute == attribute
        ]
        return np.max(fractions, 0) > 0.5


def plan(
    llm_folder: Path, signal: float, n_subjects: int, seed: int = 3, left_out: int = -1
) -> Planted:
    """Simulate subjects, leave one out, and fit a model to the others."""
    experiment = build_experiment(
        SimulateConfig(
            n_subjects=n_subjects,
            resolution_mm=6.0,
            train_stimuli=120,
            val_stimuli=1,
            test_stimuli=60,
            unmodelled_fraction=0.3,
            signal=signal,
            seed=seed,
        )
    )
    subjects = [simulate_subject(experiment, index) for index in range(n_subjects)]
    maskers = [make_masker(experiment, subject) for subject in subjects]
    betas = [standardize(subject.betas) for subject in subjects]
    torch.manual_seed(0)
    names = {ATLAS: list(experiment.names[ATLAS].values())}
    model = MindLLM(CONFIG, names, load_language_model(llm_folder)).eval()
    left_out %= n_subjects
    others = [number for number in range(n_subjects) if number != left_out]
    init_queries(model.encoder, [maskers[number] for number in others])
    numbers = {name: i for i, name in enumerate(experiment.stimuli["stimulus"])}
    shown = [np.array([numbers[name] for name in s.trials["stimulus"]]) for s in subjects]
    is_training = (experiment.stimuli["split"] == "train").to_numpy()
    order = np.cumsum(is_training) - 1
    embeddings = torch.from_numpy(experiment.design - experiment.design.mean(0))
    features = {}
    for number in others:
        rows = is_training[shown[number]]
        outputs = model.query_outputs(betas[number][rows], maskers[number])
        features[maskers[number].subject] = SubjectFeatures(
            outputs, torch.from_numpy(order[shown[number][rows]])
        )
    model.encoding_model = fit_encoding_model(features, embeddings[is_training])
    model.sentence_encoder = "attributes"
    trials = betas[left_out]
    explainer = Explainer(model, maskers[left_out], trials, trials)
    return Planted(
        experiment,
        subjects[left_out],
        model,
        maskers[left_out],
        explainer.features,
        embeddings,
        shown[left_out],
    )


def make_masker(experiment: SimulatedExperiment, subject: SimulatedSubject) -> VoxelMasker:
    grid = experiment.labels[ATLAS]
    return VoxelMasker.from_voxel_indices(
        subject.subject,
        nib.Nifti1Image(np.zeros(grid.shape, np.uint8), experiment.affine),
        subject.voxel_indices,
        {ATLAS: grid[tuple(subject.voxel_indices.T)]},
        {ATLAS: experiment.names[ATLAS]},
    )


def standardize(betas: np.ndarray) -> np.ndarray:
    betas = (betas - betas.mean(1, keepdims=True)) / betas.std(1, keepdims=True)
    spread = betas.std(0)
    return ((betas - betas.mean(0)) / np.where(spread > 0, spread, 1)).astype(np.float32)
