"""Options of one answer, and what chooses its next token: sampling by row, and guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from mindllm.utils.errors import InputError
from mindllm.utils.seeds import MAX_SEED
from mindllm.utils.validation import validate_model

MAX_NEW_TOKENS = 48
TOP_K = 50  # of transformers, where a caller of `generate` names none
# Options of transformers' `generate` that rows with a companion can have.
GUIDED_OPTIONS = frozenset(
    {
        "max_new_tokens",
        "do_sample",
        "temperature",
        "top_p",
        "top_k",
        "logits_processor",
        "stopping_criteria",
        "stop_strings",
        "tokenizer",
        "eos_token_id",
        "pad_token_id",
        "past_key_values",
    }
)


class GenerationOptions(BaseModel):
    """How one answer is generated.

    Examples
    --------
    >>> GenerationOptions(max_new_tokens=16, temperature=0.7, stop=("\\n",)).top_p
    1.0
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_new_tokens: PositiveInt = MAX_NEW_TOKENS
    """Tokens at most, with the one that ends the answer."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Divides the logits before a token is drawn; 0: the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Tokens are drawn among the likeliest whose probabilities sum to this."""
    top_k: NonNegativeInt = 0
    """Tokens are drawn among so many of the likeliest; 0: among all."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end the answer and are no part of it."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    """Of the drawn tokens; null: another one each time."""
    guidance_scale: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Weight of the scan's tokens against the null tokens; 1: no guidance. See `GuidedRows`."""


class RowSampler(LogitsProcessor):
    """Draws each row's next token by the row's own options and random state.

    All other tokens get a score of minus infinity, so that greedy generation takes the drawn one.

    Parameters
    ----------
    options : sequence of GenerationOptions
        One per row.
    device : torch.device
        Where tokens are drawn.
    """

    def __init__(self, options: Sequence[GenerationOptions], device: torch.device) -> None:
        self.warpers: dict[int, LogitsProcessorList] = {}
        self.generators: dict[int, torch.Generator] = {}
        for row, row_options in enumerate(options):
            if not row_options.temperature:
                continue
            warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(row_options.temperature)]
            if row_options.top_k:
                warpers.append(TopKLogitsWarper(row_options.top_k))
            if row_options.top_p < 1:
                warpers.append(TopPLogitsWarper(row_options.top_p))
            self.warpers[row] = LogitsProcessorList(warpers)
            self.generators[row] = generator = torch.Generator(device)
            if row_options.seed is None:
                generator.seed()
            else:
                generator.manual_seed(row_options.seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, warpers in self.warpers.items():
            warped = warpers(input_ids[row : row + 1], scores[row : row + 1])[0]
            token = torch.multinomial(warped.softmax(-1), 1, generator=self.generators[row])
            scores[row] = -torch.inf
            scores[row, token] = 0
        return scores


class GuidedRows(LogitsProcessor):
    r"""Strengthens what the scan's tokens add to the null tokens (classifier-free guidance).

    Behind the n rows of a batch stand companions: the same conversations with the null tokens. They
    follow the tokens of their rows, of which the scores become

    .. math:: \log p(\text{null}) + s \, (\log p(\text{fMRI}) - \log p(\text{null}))

    for the guidance scale s, which is log p(fMRI) + g (log p(fMRI) - log p(null)) with g = s - 1.

    Parameters
    ----------
    scales : sequence of float
        Of the n rows; those of scale 1 have no companion.
    processors : LogitsProcessorList
        Applied to the guided scores of the n rows.

    References
    ----------
    Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv 2207.12598; Sanchez et al.,
    Stay on topic with Classifier-Free Guidance, 2023, arXiv 2306.17806 (language models).
    """

    def __init__(self, scales: Sequence[float], processors: LogitsProcessorList) -> None:
        self.n_rows, self.processors = len(scales), processors
        self.guided = [row for row, scale in enumerate(scales) if scale != 1]
        self.scales = torch.tensor([scales[row] for row in self.guided])[:, None]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        own_scores, null_scores = scores[: self.n_rows], scores[self.n_rows :].log_softmax(-1)
        with_fmri = own_scores[self.guided].log_softmax(-1)
        combined = null_scores + self.scales.to(scores.device) * (with_fmri - null_scores)
        excluded = with_fmri.isneginf() | null_scores.isneginf()  # of which the difference is NaN
        own_scores = own_scores.clone()
        own_scores[self.guided] = combined.masked_fill(excluded, -torch.inf)
        own_scores = self.processors(input_ids[: self.n_rows], own_scores)
        return torch.cat([own_scores, own_scores[self.guided]])


class GuidedCriteria(StoppingCriteria):
    """Ends companions with their rows; see `GuidedRows`."""

    def __init__(self, rows: GuidedRows, criteria: StoppingCriteriaList) -> None:
        self.rows, self.criteria = rows, criteria

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        n_rows = self.rows.n_rows
        if not self.criteria:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        is_done = self.criteria(input_ids[:n_rows], scores, **kwargs)
        return torch.cat([is_done, is_done[self.rows.guided]])


class FirstRows(BaseStreamer):
    """Passes the tokens of the first rows on to a streamer, not those of companions."""

    def __init__(self, streamer: BaseStreamer, n_rows: int) -> None:
        self.streamer, self.n_rows = streamer, n_rows

    def put(self, value: Tensor) -> None:
        """Take the next token of every row."""
        self.streamer.put(value[: self.n_rows])

    def end(self) -> None:
        """Take the end of the text."""
        self.streamer.end()


def guide_settings(
    settings: Mapping[str, Any], scales: Sequence[float], device: torch.device
) -> tuple[dict[str, object], list[int]]:
    """Arguments of `generate` for rows with companions, and the rows that have one.

    Parameters
    ----------
    settings : mapping
        Arguments of transformers' ``generate`` for rows without companions.
    scales : sequence of float
        Guidance scale of each row.
    device : torch.device

    Returns
    -------
    settings : dict
    guided : list of int

    Raises
    ------
    InputError
        If a scale is out of range, or an option cannot be had with guidance, such as beams.
    """
    if unknown := sorted(set(settings) - GUIDED_OPTIONS):
        raise InputError(
            f"guidance_scale is for greedy generation, and sampling by temperature, top_p and "
            f"top_k; found {unknown[0]}. Leave one of them out."
        )
    guided_settings = dict(settings)
    processors = LogitsProcessorList(guided_settings.pop("logits_processor", None) or [])
    if guided_settings.pop("do_sample", False):
        processors.append(RowSampler(sampling_options(guided_settings, len(scales)), device))
    for name in ("temperature", "top_p", "top_k"):
        guided_settings.pop(name, None)
    rows = GuidedRows(scales, processors)
    criteria = guided_settings.pop("stopping_criteria", None) or StoppingCriteriaList()
    guided_settings |= {
        "do_sample": False,
        "logits_processor": LogitsProcessorList([rows]),
        "stopping_criteria": StoppingCriteriaList([GuidedCriteria(rows, criteria)]),
    }
    return guided_settings, rows.guided


def sampling_options(settings: Mapping[str, Any], n_rows: int) -> list[GenerationOptions]:
    """Options of rows as `generate` samples them, with seeds from torch's random state."""
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": TOP_K}
    options = {name: settings.get(name, default) for name, default in defaults.items()}
    seeds = torch.randint(MAX_SEED, (n_rows,)).tolist()
    return [validate_model(GenerationOptions, options | {"seed": s}, "generate") for s in seeds]
