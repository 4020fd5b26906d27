"""Everything that is shown about a model and subjects: maps, words, region tables and lesions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field
from rich.progress import Progress

from mindllm.explain.attribution import AttributionConfig, WordAttributions
from mindllm.explain.evidence_path import Question
from mindllm.explain.explainer import Explainer
from mindllm.explain.kept_parts import KeptParts, hash_parts
from mindllm.explain.lesions import (
    RandomSets,
    lesion_trial,
    random_orders,
)
from mindllm.explain.patterns import FWHM_PER_SD, WordPattern, map_pattern
from mindllm.explain.regions import Region, find_region, list_parcels, sum_by_region
from mindllm.explain.subject_data import SubjectData
from mindllm.explain.tables import RegionSamples, tabulate_regions
from mindllm.explain.text_maps import (
    TextMap,
    WordContributions,
    map_attribute,
    map_texts,
    map_word,
    weigh_word,
)
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
    attributes: dict[str, tuple[str, ...]] = {}
    """Names of attributes, and the words (the first form of each) whose maps are averaged."""
    smooth_mm: float | None = Field(default=None, ge=0)
    """Full width at half maximum of the smoothing of drawn maps; null: as wide as the receptive
    fields that queries start as, since a map is no sharper than these."""
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


def check_attributes(config: ExplainConfig) -> None:
    """Refuse attributes of words that are not mapped.

    Raises
    ------
    InputError
        If there is one.
    """
    known = [forms[0] for forms in config.words]
    for name, words in config.attributes.items():
        if unknown := [word for word in words if word not in known]:
            raise InputError(
                f"the attribute {name} has the word {unknown[0]!r}, which is not among the words "
                f"to map ({', '.join(known) or 'none'}). Name it with its forms too (--word)."
            )


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
    attributes : tuple of TextMap
    patterns : tuple of WordPattern
        By activation patterns, of the words and then of the attributes.
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
    attributes: tuple[TextMap, ...]
    patterns: tuple[WordPattern, ...]
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
        "attention", "text", "lesions"; "word-...", "attribute-..." of each, and the same with
        "pattern-" before it; see `tabulate_regions`.
    smooth_mm : float
        Full width at half maximum of the smoothing of drawn maps.
    """

    config: ExplainConfig
    subjects: tuple[SubjectExplanation, ...]
    tables: dict[str, pd.DataFrame]
    smooth_mm: float


def explain(
    model: MindLLM,
    subjects: Sequence[SubjectData],
    config: ExplainConfig | None = None,
    progress: Progress | None = None,
    keep_in: Path | None = None,
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
    keep_in : Path, optional
        Folder for parts that take long, which a later call with the same model and data reads.

    Returns
    -------
    Explanation

    Raises
    ------
    InputError
        If the model has no encoding model, a word is in no text, or a subject lacks a parcel.
    """
    config = config or ExplainConfig()
    check_attributes(config)
    kept, model_key = KeptParts(keep_in), hash_model(model)
    parts = tuple(
        explain_subject(model, data, config, progress, kept, model_key) for data in subjects
    )
    tables = {
        "attention": tabulate_attention(parts),
        "text": tabulate_regions([part.texts.samples for part in parts], config.seed),
        "lesions": tabulate_regions([part.lesions for part in parts], config.seed),
    }
    names = [f"word-{forms[0]}" for forms in config.words]
    names += [f"attribute-{name}" for name in config.attributes]
    for number, name in enumerate(names):
        maps = [(*part.words, *part.attributes)[number].samples for part in parts]
        patterns = [part.patterns[number].samples for part in parts]
        tables[name] = tabulate_regions(maps, config.seed)
        tables[f"pattern-{name}"] = tabulate_regions(patterns, config.seed)
    return Explanation(config, parts, tables, choose_fwhm(model, config))


def choose_fwhm(model: MindLLM, config: ExplainConfig) -> float:
    """Smoothing of drawn maps, in mm: as asked for, or that of the receptive fields."""
    if config.smooth_mm is not None:
        return config.smooth_mm
    return FWHM_PER_SD * (model.encoder.config.receptive_field_sd_mm or 0.0)


def hash_model(model: MindLLM) -> str:
    """Tells a model's weights from others'."""
    tensors = model.encoder.state_dict(prefix="encoder.") | {"null_tokens": model.null_tokens}
    tensors |= model.projector.state_dict(prefix="projector.")
    if model.encoding_model is not None:
        tensors |= model.encoding_model.state_dict(prefix="encoding_model.")
    weights = [tensors[name].detach().double().cpu().numpy() for name in sorted(tensors)]
    return hash_parts(model.language_model.fingerprint, *weights)


def explain_subject(
    model: MindLLM,
    data: SubjectData,
    config: ExplainConfig,
    progress: Progress | None,
    kept: KeptParts,
    model_key: str,
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
    with progress_bar(progress, f"{subject}: words", len(config.words)) as advance:
        words = []
        for forms in config.words:
            words.append(weigh_forms(explainer, data, forms, regions))
            advance(1)
    key = hash_parts(model_key, data.betas, *data.texts)
    lesions = lesion_subject(
        explainer, data, [compared[i] for i in trials.numbers], regions, config, progress,
        kept, key,
    )  # fmt: skip
    word_maps, attributes, patterns = map_words(explainer, data, words, regions, config)
    return SubjectExplanation(
        data=data,
        query_attention=explainer.query_attention,
        token_attention=explainer.token_attention,
        texts=texts,
        words=word_maps,
        attributes=attributes,
        patterns=patterns,
        answers=attribute_answers(explainer, data, config, progress, kept, key),
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


def weigh_forms(
    explainer: Explainer, data: SubjectData, forms: Sequence[str], regions: Sequence[Region]
) -> WordContributions:
    """Contributions to one word, in all trials of a subject that have a text."""
    question = explainer.question_about_words(forms, data.trial_texts.texts)
    naming = np.array([names(text, forms) for text in data.texts])
    return weigh_word(explainer.features, question, forms[0], naming, regions)


def map_words(
    explainer: Explainer,
    data: SubjectData,
    words: Sequence[WordContributions],
    regions: Sequence[Region],
    config: ExplainConfig,
) -> tuple[tuple[TextMap, ...], tuple[TextMap, ...], tuple[WordPattern, ...]]:
    """Maps of words and of attributes by contributions, and of both by activation patterns."""
    by_name = {word.name: word for word in words}
    groups = {word.name: [word] for word in words}
    of_attributes = {
        name: [by_name[part] for part in parts] for name, parts in config.attributes.items()
    }
    options = (data.stimuli, regions, config.permutations, config.seed)
    patterns = [
        map_pattern(
            name,
            explainer.betas,
            np.stack([word.evidence for word in group], 1),
            np.stack([word.naming for word in group], 1),
            *options,
        )
        for name, group in [*groups.items(), *of_attributes.items()]
    ]
    return (
        tuple(map_word(word, *options) for word in words),
        tuple(map_attribute(name, group, *options) for name, group in of_attributes.items()),
        tuple(patterns),
    )


def lesion_subject(
    explainer: Explainer,
    data: SubjectData,
    questions: Sequence[Question],
    regions: Sequence[Region],
    config: ExplainConfig,
    progress: Progress | None,
    kept: KeptParts,
    key: str,
) -> RegionSamples:
    """Evidence for the text of each trial, against the other texts, lost without each region."""
    largest = max(int(region.voxels.sum()) for region in regions)
    orders = random_orders(data.masker, largest, config.n_random, config.random_sets, config.seed)
    features, subject = explainer.features.select(data.chosen), data.masker.subject
    masks = [region.voxels for region in regions]
    lost, null = [], np.zeros((config.n_random, len(regions)))
    with progress_bar(progress, f"{subject}: lesions", len(questions)) as advance:
        for trial, question in enumerate(questions):

            def compute(trial: int = trial, question: Question = question) -> dict[str, np.ndarray]:
                pair = lesion_trial(features, trial, question, regions, orders)
                return dict(zip(("lost", "random"), pair, strict=True))

            name = f"{subject}-lesions-{data.numbers[data.chosen[trial]]}"
            arrays = kept.get(name, hash_parts(key, orders, *masks), compute)
            lost.append(arrays["lost"])
            null += arrays["random"] / len(questions)
            advance(1)
    return RegionSamples(regions, np.stack(lost), data.trial_texts.stimuli, null)


def attribute_answers(
    explainer: Explainer,
    data: SubjectData,
    config: ExplainConfig,
    progress: Progress | None,
    kept: KeptParts,
    key: str,
) -> tuple[WordAttributions, ...]:
    """Words of the generated answers of the first trials, attributed to voxels."""
    subject, answers = data.masker.subject, []
    rows = data.chosen[: config.n_answers]
    with progress_bar(progress, f"{subject}: words of answers", len(rows)) as advance:
        for row in rows:

            def compute(row: int = int(row)) -> dict[str, np.ndarray]:
                return explainer.attribute_words(row, config=AttributionConfig()).to_arrays()

            arrays = kept.get(f"{subject}-answer-{data.numbers[row]}", key, compute)
            answers.append(WordAttributions.from_arrays(arrays))
            advance(1)
    return tuple(answers)


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
