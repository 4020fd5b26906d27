"""How a model was made: its model card, as data and as the README.md that the hub reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import yaml

CITATION = (
    "Qiu et al., MindLLM: A Subject-Agnostic and Versatile Model for fMRI-to-Text Decoding, "
    "ICML 2025, arXiv 2502.15786"
)
USAGE = """```python
from mindllm import MindLLM, VoxelMasker, standardize_betas

model = MindLLM.from_pretrained("this folder or its hub id")
masker = VoxelMasker.from_mask_img("mask.nii.gz")
betas = standardize_betas(masker.transform("betas.nii.gz"))  # (n_trials, n_voxels)
texts = model.decode(betas, masker)
```"""


@dataclass(frozen=True, slots=True)
class MeasuredScore:
    """One metric of one condition, as in `MetricRow`; None: not defined."""

    subject: str
    condition: str
    metric: str
    n_trials: int
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    chance_level: float | None = None


@dataclass(frozen=True, slots=True)
class ConvertedFrom:
    """The published checkpoint that a model was converted from.

    Parameters
    ----------
    file, sha256 : str
        Name and checksum of the file.
    lightning : str or None
        Version of Lightning that wrote it.
    tensors : mapping from str to list of int
        Name to shape of each tensor that was used.
    lora : list of str
        Names of the tensors of its LoRA part.
    """

    file: str
    sha256: str
    tensors: Mapping[str, list[int]]
    lora: list[str]
    lightning: str | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """How a model was made, and on what; None: not known, or not the case.

    Parameters
    ----------
    name : str, optional
        What reports call the model.
    subjects, validation_subjects : list of str, optional
        Subjects trained on, also those of the model that it started from; subjects that chose the
        checkpoint.
    stimuli : list of str, optional
        Training stimuli; unknown where those of the model that it started from are.
    answers : dict of str to int, optional
        First answer of each training trial's stimulus to its number of trials, most frequent first.
    question : str, optional
        The question of the conversations, if they all have the same.
    sources : list of str, optional
        Sources of conversations.
    store : str, optional
        Name of the data set.
    split : mapping, optional
        Name of the split and how it was made.
    seed, steps : int, optional
    standardized_with : dict of str to str, optional
        Subject to what the betas were standardized with.
    started_from : ModelCard, optional
        Of the model that it started from.
    converted_from : ConvertedFrom, optional
        The published checkpoint, if it is one.
    null_tokens : str, optional
        What the null tokens are, where they are not the mean fMRI tokens of the training trials.
    versions : dict of str to str, optional
        Of the libraries.
    config : mapping, optional
        All training options.
    results : list of MeasuredScore, optional
        Scores beside their controls.

    Examples
    --------
    >>> card = ModelCard(subjects=["sub-01"], seed=3)
    >>> card.to_dict()
    {'subjects': ['sub-01'], 'seed': 3}
    >>> ModelCard.from_dict(card.to_dict()) == card
    True
    """

    name: str | None = None
    subjects: list[str] | None = None
    validation_subjects: list[str] | None = None
    stimuli: list[str] | None = None
    answers: dict[str, int] | None = None
    question: str | None = None
    sources: list[str] | None = None
    store: str | None = None
    split: Mapping[str, Any] | None = None
    seed: int | None = None
    steps: int | None = None
    standardized_with: dict[str, str] | None = None
    started_from: "ModelCard | None" = None
    converted_from: ConvertedFrom | None = None
    null_tokens: str | None = None
    versions: dict[str, str] | None = None
    config: Mapping[str, Any] | None = None
    results: list[MeasuredScore] | None = None

    @property
    def split_name(self) -> str | None:
        """Name of the split that it was trained with."""
        return (self.split or {}).get("name")

    def to_dict(self) -> dict[str, object]:
        """JSON content; what is None is left out."""
        return asdict(self, dict_factory=drop_unknown)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The card that `to_dict` gave; TypeError for other entries than it has."""
        parts: dict[str, Callable[[Any], object]] = {
            "started_from": cls.from_dict,
            "converted_from": lambda part: ConvertedFrom(**part),
            "results": lambda rows: [MeasuredScore(**row) for row in rows],
        }
        present = {name: make(content[name]) for name, make in parts.items() if content.get(name)}
        return cls(**{**content, **present})


def drop_unknown(entries: Sequence[tuple[str, object]]) -> dict[str, object]:
    """A dict of the entries that are not None."""
    return {name: value for name, value in entries if value is not None}


def render_model_card(
    model_card: ModelCard,
    *,
    language_model: str,
    num_parameters: int,
    subjects: Sequence[str],
) -> str:
    """Markdown with a YAML header.

    Parameters
    ----------
    model_card : ModelCard
        How the model was trained, and what was measured.
    language_model : str
        Name of the frozen language model.
    num_parameters : int
        Trained parameters.
    subjects : sequence of str
        Subjects whose maskers the folder holds.

    Returns
    -------
    str

    Examples
    --------
    >>> card = render_model_card(
    ...     ModelCard(), language_model="lm", num_parameters=3, subjects=[]
    ... )
    >>> card.splitlines()[1]
    'library_name: mindllm'
    """
    header = {
        "library_name": "mindllm",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["fmri", "brain-decoding", "model_hub_mixin"],
        "base_model": language_model,
    }
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        "# fMRI to text with MindLLM",
        "",
        "An fMRI encoder that turns single-trial betas of any subject into tokens that "
        f"`{language_model}` reads. It has {num_parameters:,} trained parameters; the language "
        "model is frozen and not part of this folder.",
        "",
        "## Use",
        "",
        USAGE,
        "",
        "## Training",
        "",
        *training_lines(model_card, subjects),
        "",
        "## Results",
        "",
        *result_lines(model_card.results or []),
        "",
        "## Limits",
        "",
        "A fluent text is not evidence of decoding: compare every score with its controls. "
        "Decoding needs the subject's cooperation in a scanner.",
        "",
        "## Citation",
        "",
        CITATION,
    ]
    return "\n".join(lines) + "\n"


def training_lines(model_card: ModelCard, subjects: Sequence[str]) -> list[str]:
    """What the model was trained on; what the card does not state is said to be unknown."""

    def value(name: str) -> str:
        entry = getattr(model_card, name)
        if entry is None:
            return "unknown"
        return ", ".join(map(str, entry)) if isinstance(entry, list) else str(entry)

    stimuli = model_card.stimuli
    rows = {
        "Data set": value("store"),
        "Training subjects": value("subjects"),
        "Validation subjects": value("validation_subjects"),
        "Training stimuli": "unknown" if stimuli is None else f"{len(stimuli):,}",
        "Sources of text": value("sources"),
        "Steps": value("steps"),
        "Seed": value("seed"),
        "Maskers in this folder": ", ".join(subjects) or "none",
    }
    return ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]


def result_lines(rows: Sequence[MeasuredScore]) -> list[str]:
    """Measured scores beside their controls, or that none were measured."""
    if not rows:
        return ["Not measured yet: `mindllm evaluate` reports scores beside their controls."]
    lines = [
        "| Subject | Condition | Metric | Value | 95 % interval | Chance | Trials |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.value is None:
            continue
        interval = "" if row.ci_low is None else f"{row.ci_low:.3f} to {row.ci_high:.3f}"
        chance = "" if row.chance_level is None else f"{row.chance_level:.3f}"
        lines.append(
            f"| {row.subject} | {row.condition} | {row.metric} | {row.value:.3f} "
            f"| {interval} | {chance} | {row.n_trials} |"
        )
    return lines
