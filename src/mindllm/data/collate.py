"""From samples to model inputs: betas by subject, and tokenized conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from mindllm.data.store import Store
from mindllm.fmri.inputs import FMRIInputs
from mindllm.language.conversation import Conversation


class Processor(Protocol):
    """What tokenizes conversations: `MindLLMProcessor`."""

    def __call__(self, turns: Conversation) -> Any:
        """Encode one conversation."""

    def pad(self, prompts: Sequence[Any]) -> Mapping[str, torch.Tensor]:
        """Stack encoded conversations."""


@dataclass(frozen=True)
class TrialSample:
    """One trial with a conversation about it.

    Parameters
    ----------
    subject : str
    trial_index : int
        Row of the subject's betas in the store.
    stimulus : str
    betas : ndarray of shape (n_voxels,)
        Standardized, float32, in the order of the subject's masker.
    conversation : Conversation
        Messages, the last one of the assistant.
    """

    subject: str
    trial_index: int
    stimulus: str
    betas: np.ndarray
    conversation: Conversation


def collate_samples(
    samples: Sequence[TrialSample], store: Store, processor: Processor
) -> dict[str, Any]:
    """Model inputs of a batch.

    Parameters
    ----------
    samples : sequence of TrialSample
        Of any subjects, in any order.
    store : Store
        Holds the maskers.
    processor : MindLLMProcessor

    Returns
    -------
    dict
        What `MindLLM.forward` takes: input_ids, attention_mask, labels, fmri_token_positions, fmri.
    """
    prompts = [processor(sample.conversation) for sample in samples]
    return {**processor.pad(prompts), "fmri": collate_betas(samples, store)}


def collate_betas(samples: Sequence[TrialSample], store: Store) -> FMRIInputs:
    """Betas grouped by subject; `mixing_weights` puts them back into the order of the samples."""
    rows: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        rows.setdefault(sample.subject, []).append(row)
    order = [row for group in rows.values() for row in group]
    weights = None
    if order != sorted(order):
        weights = torch.zeros(len(samples), len(samples))
        weights[order, torch.arange(len(samples))] = 1.0
    return FMRIInputs(
        maskers=tuple(store.masker(subject) for subject in rows),
        betas=tuple(
            torch.from_numpy(np.stack([samples[row].betas for row in group]))
            for group in rows.values()
        ),
        mixing_weights=weights,
    )
