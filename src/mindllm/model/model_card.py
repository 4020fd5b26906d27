"""The README.md of a model folder, in the form that the Hugging Face hub reads."""

from collections.abc import Mapping, Sequence
from typing import Any

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


def render_model_card(
    model_card: Mapping[str, Any],
    *,
    language_model: str,
    num_parameters: int,
    subjects: Sequence[str],
) -> str:
    """Markdown with a YAML header.

    Parameters
    ----------
    model_card : mapping
        How the model was trained; `results` holds measured rows.
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
    >>> card = render_model_card({}, language_model="lm", num_parameters=3, subjects=[])
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
        *result_lines(model_card.get("results", [])),
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


def training_lines(model_card: Mapping[str, Any], subjects: Sequence[str]) -> list[str]:
    """What the model was trained on; what the card does not state is said to be unknown."""

    def value(name: str) -> str:
        entry = model_card.get(name)
        if entry is None:
            return "unknown"
        return ", ".join(map(str, entry)) if isinstance(entry, list) else str(entry)

    stimuli = model_card.get("stimuli")
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


def result_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Measured scores beside their controls, or that none were measured."""
    if not rows:
        return ["Not measured yet: `mindllm evaluate` reports scores beside their controls."]
    lines = [
        "| Subject | Condition | Metric | Value | 95 % interval | Chance | Trials |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["value"] is None:
            continue
        interval = "" if row["ci_low"] is None else f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"
        chance = "" if row["chance_level"] is None else f"{row['chance_level']:.3f}"
        lines.append(
            f"| {row['subject']} | {row['condition']} | {row['metric']} | {row['value']:.3f} "
            f"| {interval} | {chance} | {row['n_trials']} |"
        )
    return lines
