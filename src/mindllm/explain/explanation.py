"""Everything that is shown about a model and subjects: maps, words, region tables and lesions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field
from rich.progress import Progress

from mindllm.explain.attribution import AttributionConfig, WordAttributions
from mindllm.explain.evidence_path import Question
from mindllm.explain.explainer import Explainer
from mindllm.explain.lesions import (
    RandomSets,
    lesion_trial,
    random_orders,
)
from mindllm.explain.regions import Region, find_region, list_parcels, sum_by_region
from mindllm.explain.subject_data import SubjectData
from mindllm.explain.tables import RegionSamples, tabulate_regions
from mindllm.explain.text_maps import TextMap, map_texts, map_word
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.attention_maps import NO_PARCEL
from mindllm.model.choices import names
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError
from mindllm.utils.progress import progress_bar


class ExplainConfig(BaseModel):
    """Options of an explanation.

    Examples
    --------
    >>> ExplainConfig(words=(("dog", "dogs"),)).n_random
    200
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    words: tuple[tuple[str, ...], ...] = ()
    """Words, each with its forms, to map beside the texts of the trials."""
    networks: dict[str, tuple[str, ...]] = {}
    """Names of networks, and the parcels that each consists of."""
    n_random: int = Field(default=200, ge=1)
    """Random sets of voxels that each lesion is compared with."""
    random_sets: RandomSets = "contiguous"
    """Whether random voxels are patches of neighbors or drawn one by one."""
    permutations: int = Field(default=1000, ge=1)
    """Permutations of texts among trials."""
    min_voxels: int = Field(default=15, ge=1)
    """Parcels with fewer voxels have no row in the tables."""
    n_answers: int = Field(default=1, ge=0)
    """Trials of each subject whose generated words are attributed to voxels."""
    seed: int = Field(default=0, ge=0)
    """Seed of all random draws."""


@dataclass(frozen=True)
class SubjectExplanation:
    """What was computed for one subject.

    Parameters
    ----------
    data : SubjectData
    query_attention : ndarray of shape (num_queries, n_voxels)
    token_attention : ndarray of shape (num_fmri_tokens, n_voxels)
    texts : TextMap
        Contributions to the text of each trial.
    words : tuple of TextMap
    answers : tuple of WordAttributions
        Of the first trials.
    lesions : RegionSamples
        Evidence for the text of the trial, against the other texts, lost without each region.
    """

    data: SubjectData
    query_attention: np.ndarray
    token_attention: np.ndarray
    texts: TextMap
    words: tuple[TextMap, ...]
    answers: tuple[WordAttributions, ...]
    lesions: RegionSamples

    @property
    def masker(self) -> VoxelMasker:
        """The subject's voxels."""
        return self.data.masker

    @property
    def relative_attention(self) -> np.ndarray:
        """Mean attention of the queries relative to uniform attention, (n_voxels,)."""
        return self.query_attention.mean(0) * len(self.masker)


@dataclass(frozen=True)
class Explanation:
    """Subjects and the tables over all of them.

    Parameters
    ----------
    config : ExplainConfig
    subjects : tuple of SubjectExplanation
    tables : dict of str to DataFrame
        "attention", "text", "lesions", and "word-..." of each word; see `tabulate_regions`.
    """

    config: ExplainConfig
    subjects: tuple[SubjectExplanation, ...]
    tables: dict[str, pd.DataFrame]


def explain(
    model: MindLLM,
    subjects: Sequence[SubjectData],
    config: ExplainConfig | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Explain what a model makes of subjects' trials.

    Parameters
    ----------
    model : MindLLM
        With an encoding model.
    subjects : sequence of SubjectData
    config : ExplainConfig, optional
    progress : rich.progress.Progress, optional
        Shows what is being computed.

    Returns
    -------
    Explanation

    Raises
    ------
    InputError
        If the model has no encoding model, a word is in no text, or a subject lacks a parcel.
    """
    config = config or ExplainConfig()
    parts = tuple(explain_subject(model, data, config, progress) for data in subjects)
    tables = {
        "attention": tabulate_attention(parts),
        "text": tabulate_regions([part.texts.samples for part in parts], config.seed),
        "lesions": tabulate_regions([part.lesions for part in parts], config.seed),
    }
    for number, words in enumerate(config.words):
        samples = [part.words[number].samples for part in parts]
        tables[f"word-{words[0]}"] = tabulate_regions(samples, config.seed)
    return Explanation(config, parts, tables)


def explain_subject(
    model: MindLLM, data: SubjectData, config: ExplainConfig, progress: Progress | None
) -> SubjectExplanation:
    """Explain the trials of one subject; see `explain`."""
    explainer = Explainer(model, data.masker, data.betas, data.alignment_betas)
    trials = data.trial_texts
    regions = list_regions(data.masker, config)
    questions = [explainer.question_about(text) for text in trials.texts]
    compared = questions_against_others(explainer, trials.texts)
    chosen = explainer.features.select(data.chosen)
    subject = data.masker.subject
    with progress_bar(progress, f"{subject}: contributions", len(questions)) as advance:
        texts = map_texts(
            chosen, questions, trials, regions, config.permutations, config.seed, advance
        )
    words = tuple(map_words(explainer, data, forms, regions, config) for forms in config.words)
    lesions = lesion_subject(
        explainer, data, [compared[i] for i in trials.numbers], regions, config, progress
    )
    answered = data.chosen[: config.n_answers]
    with progress_bar(progress, f"{subject}: words of answers", len(answered)) as advance:
        answers = []
        for row in answered:
            answers.append(explainer.attribute_words(int(row), config=AttributionConfig()))
            advance(1)
    return SubjectExplanation(
        data=data,
        query_attention=explainer.query_attention,
        token_attention=explainer.token_attention,
        texts=texts,
        words=words,
        answers=tuple(answers),
        lesions=lesions,
    )


def questions_against_others(explainer: Explainer, texts: Sequence[str]) -> list[Question]:
    """Evidence for each text against all others; a single text is compared with none known."""
    model = explainer.model.encoding_model
    assert model is not None  # else there would be no features
    embeddings = explainer.model.embed_texts(list(texts))
    everything = range(len(texts))
    return [
        Question.of_texts(model, embeddings[[i]], embeddings[[j for j in everything if j != i]])
        for i in everything
    ]


def list_regions(masker: VoxelMasker, config: ExplainConfig) -> list[Region]:
    """The parcels and networks of a subject; InputError if there are none."""
    regions = list_parcels(masker, config.min_voxels)
    regions = [region for region in regions if region.name != NO_PARCEL]
    regions += [find_region(masker, parts, name) for name, parts in config.networks.items()]
    if not regions:
        raise InputError(
            f"{masker.subject} has no parcel of {config.min_voxels} voxels or more, so there are "
            "no regions to tell apart. Give an atlas with its mask, or choose fewer voxels."
        )
    return regions


def map_words(
    explainer: Explainer,
    data: SubjectData,
    forms: Sequence[str],
    regions: Sequence[Region],
    config: ExplainConfig,
) -> TextMap:
    """Contributions to one word, in all trials of a subject that have a text."""
    question = explainer.question_about_words(forms, data.trial_texts.texts)
    naming = np.array([names(text, forms) for text in data.texts])
    return map_word(
        explainer.features,
        question,
        forms[0],
        naming,
        data.stimuli,
        regions,
        config.permutations,
        config.seed,
    )


def lesion_subject(
    explainer: Explainer,
    data: SubjectData,
    questions: Sequence[Question],
    regions: Sequence[Region],
    config: ExplainConfig,
    progress: Progress | None,
) -> RegionSamples:
    """Evidence for the text of each trial, against the other texts, lost without each region."""
    largest = max(int(region.voxels.sum()) for region in regions)
    orders = random_orders(data.masker, largest, config.n_random, config.random_sets, config.seed)
    features = explainer.features.select(data.chosen)
    lost, null = [], np.zeros((config.n_random, len(regions)))
    with progress_bar(progress, f"{data.masker.subject}: lesions", len(questions)) as advance:
        for trial, question in enumerate(questions):
            of_regions, of_random = lesion_trial(features, trial, question, regions, orders)
            lost.append(of_regions)
            null += of_random / len(questions)
            advance(1)
    return RegionSamples(regions, np.stack(lost), data.trial_texts.stimuli, null)


def tabulate_attention(parts: Sequence[SubjectExplanation]) -> pd.DataFrame:
    """Mean attention of the queries by region, against its part of all voxels.

    Parameters
    ----------
    parts : sequence of SubjectExplanation

    Returns
    -------
    DataFrame
        `atlas`, `region`, `n_voxels`, `voxel_fraction`, `attention` and `relative_attention`
        (their ratio), means over subjects; by atlas, most attention for its size first.
    """
    rows = []
    for part in parts:
        mass = part.query_attention.mean(0)
        regions = part.lesions.regions
        sizes = np.array([region.voxels.sum() for region in regions])
        for region, size, total in zip(regions, sizes, sum_by_region(mass, regions), strict=True):
            rows.append((region.atlas, region.name, size, size / len(mass), total))
    columns = ["atlas", "region", "n_voxels", "voxel_fraction", "attention"]
    table = pd.DataFrame(rows, columns=columns)
    table = table.groupby(["atlas", "region"], as_index=False, sort=False).mean()
    table["relative_attention"] = table["attention"] / table["voxel_fraction"]
    order = table.sort_values("relative_attention", ascending=False, kind="stable")
    return order.sort_values("atlas", kind="stable").reset_index(drop=True)
