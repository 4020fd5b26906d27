"""Write an explanation: images, tables, pictures, and one page that needs nothing else."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from mindllm.explain.attention import MNIGrid
from mindllm.explain.explanation import Explanation, SubjectExplanation
from mindllm.explain.patterns import smooth
from mindllm.explain.text_maps import TextMap
from mindllm.plotting.maps import (
    interactive_map,
    plot_cortex_map,
    plot_flat_map,
    plot_glass_brain_map,
    plot_slices_map,
)
from mindllm.report.pages import load_template, to_data_uri
from mindllm.utils.files import to_json
from mindllm.utils.folders import replace_directory
from mindllm.utils.ranges import count_of

ROWS = 8  # of a table on the page; the TSV has all
SIGNIFICANT = 0.05
DRAWINGS: dict[str, Callable[[nib.Nifti1Image, str, bool], bytes]] = {
    "glass": plot_glass_brain_map,
    "slices": plot_slices_map,
    "cortex": plot_cortex_map,
    "flat": plot_flat_map,
}
VIEWS = {
    "glass": "glass brain from four sides",
    "slices": "axial slices",
    "cortex": "inflated cortex (fsaverage5) from the side, the middle and below",
    "flat": "flattened cortex (fsaverage5)",
}


@dataclass(frozen=True)
class Picture:
    """A drawn map.

    Parameters
    ----------
    file : str
        Of the PNG within the folder.
    uri : str
        Its content.
    alt : str
        What it shows, for those who do not see it.
    """

    file: str
    uri: str
    alt: str


@dataclass(frozen=True)
class MapSection:
    """A map on the page.

    Parameters
    ----------
    title, meaning : str
        What the map is, and what can be said by it, in plain words.
    pictures : list of Picture
    table : list of dict of str to str
        First rows of the region table.
    tsv : str
        File of the table.
    interactive : str
        File of the interactive map; empty: none.
    """

    title: str
    meaning: list[str]
    pictures: list[Picture]
    table: list[dict[str, str]]
    tsv: str
    interactive: str


@dataclass(frozen=True)
class MeanMap:
    """A map in MNI space, mean over subjects."""

    name: str
    title: str
    unit: str
    signed: bool
    img: nib.Nifti1Image


def write_explanation(
    explanation: Explanation,
    out: str | Path,
    title: str,
    write_queries: bool = True,
    write_interactive: bool = True,
) -> Path:
    """Write an explanation into a folder.

    Parameters
    ----------
    explanation : Explanation
    out : str or Path
        The folder; an earlier explanation in it is replaced as a whole.
    title : str
        Of the page.
    write_queries : bool
        Whether the attention of every single query is written.
    write_interactive : bool
        Whether interactive maps are written.

    Returns
    -------
    Path
        report.html.
    """
    out = Path(out)
    with replace_directory(out) as folder:
        grids = [MNIGrid(part.masker) for part in explanation.subjects]
        for part, grid in zip(explanation.subjects, grids, strict=True):
            write_images(part, grid, folder, write_queries)
        for name, table in explanation.tables.items():
            save(folder / "tables" / f"{name}.tsv", table)
        write_words(explanation, folder)
        means = mean_maps(explanation, grids)
        (folder / "maps" / "mean").mkdir(parents=True)
        for mean in means:
            nib.save(mean.img, folder / "maps" / "mean" / f"{mean.name}_space-MNI152.nii.gz")
        sections = [write_map(explanation, mean, folder, write_interactive) for mean in means]
        write_summary(explanation, folder)
        page = load_template("explanation.html.jinja").render(
            title=title,
            subjects=[describe_subject(part) for part in explanation.subjects],
            sections=sections,
            lesions=lesion_sentences(explanation),
            lesion_table=table_rows(explanation.tables["lesions"]),
            answers=answer_rows(explanation),
            config=explanation.config,
        )
        (folder / "report.html").write_text(page, encoding="utf-8")
    return out / "report.html"


def save(path: Path, table: pd.DataFrame) -> None:
    """Write a table as TSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, sep="\t", index=False, float_format="%.6g")


def write_images(
    part: SubjectExplanation, grid: MNIGrid, folder: Path, write_queries: bool
) -> None:
    """Write a subject's maps as NIfTI, on its own grid and in MNI space."""
    n_voxels = len(part.masker)
    maps = {
        "attention": part.relative_attention,
        "attention-tokens": part.token_attention * n_voxels,
        "contribution-text": part.texts.voxels,
        "contribution-text-shuffled": part.texts.control,
    }
    if write_queries:
        maps["attention-queries"] = part.query_attention * n_voxels
    kinds = ["word"] * len(part.words) + ["attribute"] * len(part.attributes)
    for kind, word in zip(kinds, (*part.words, *part.attributes), strict=True):
        maps[f"contribution-{kind}-{word.name}"] = word.voxels
        maps[f"contribution-{kind}-{word.name}-other-trials"] = word.control
    for kind, pattern in zip(kinds, part.patterns, strict=True):
        maps[f"pattern-{kind}-{pattern.name}"] = pattern.voxels
    for row, answer in zip(part.data.chosen, part.answers, strict=False):
        maps[f"answer-trial-{part.data.numbers[row]}"] = answer.voxels
    target = folder / "maps" / part.masker.subject
    target.mkdir(parents=True)
    for name, values in maps.items():
        single = np.asarray(values, np.float32)
        nib.save(part.masker.inverse_transform(single), target / f"{name}_space-subject.nii.gz")
        nib.save(grid.to_img(single), target / f"{name}_space-MNI152.nii.gz")


def write_words(explanation: Explanation, folder: Path) -> None:
    """Write the words of generated answers, and the regions that they came from."""
    words, regions = [], []
    for part in explanation.subjects:
        for row, answer in zip(part.data.chosen, part.answers, strict=False):
            trial = int(part.data.numbers[row])
            for number, word in enumerate(answer.words):
                key = (part.masker.subject, trial, number, word)
                words.append(
                    (
                        *key,
                        answer.log_likelihood[number],
                        answer.at_zero[number],
                        answer.error[number],
                    )
                )
                for region in part.lesions.regions:
                    total = answer.voxels[number, region.voxels].sum()
                    regions.append((*key, region.atlas, region.name, total))
    keys = ["subject", "trial", "number", "word"]
    columns = [*keys, "log_likelihood", "at_zero", "error"]
    save(folder / "tables" / "answers.tsv", pd.DataFrame(words, columns=columns))
    columns = [*keys, "atlas", "region", "attribution"]
    save(folder / "tables" / "answers-regions.tsv", pd.DataFrame(regions, columns=columns))


def mean_maps(explanation: Explanation, grids: Sequence[MNIGrid]) -> list[MeanMap]:
    """The maps that are drawn, each the mean over the subjects with voxels at a point."""
    parts, fwhm = explanation.subjects, explanation.smooth_mm
    coords = [part.masker.coords_mm for part in parts]

    def average(values: Sequence[np.ndarray]) -> nib.Nifti1Image:
        sums = [grid.to_img(v).get_fdata() for grid, v in zip(grids, values, strict=True)]
        counts = sum(
            grid.to_img(np.ones(len(v))).get_fdata() for grid, v in zip(grids, values, strict=True)
        )
        mean = np.divide(sum(sums), counts, out=np.zeros_like(sums[0]), where=counts > 0)
        return nib.Nifti1Image(mean.astype(np.float32), grids[0].affine)

    def signed(
        name: str, title: str, values: Sequence[np.ndarray], unit: str = "millinats per voxel"
    ) -> MeanMap:
        smoothed = [smooth(c, v, fwhm) for c, v in zip(coords, values, strict=True)]
        return MeanMap(name, title, unit, True, average(smoothed))

    attention = average([part.relative_attention for part in parts])
    differences = [1000 * (part.texts.voxels - part.texts.control) for part in parts]
    maps = [
        MeanMap("attention", "Where the queries attend", "times uniform", False, attention),
        signed("text", "What speaks for the text of the trial", differences),
    ]
    n_words = len(parts[0].words)
    for number, pattern in enumerate(parts[0].patterns):
        kind = "word" if number < n_words else "attribute"
        of_subjects = [(*part.words, *part.attributes)[number] for part in parts]
        name, what = f"{kind}-{pattern.name}", f"the {kind} “{pattern.name}”"
        differences = [1000 * (m.voxels - m.control) for m in of_subjects]
        maps.append(signed(name, f"What speaks for {what}", differences))
        patterns = [part.patterns[number].voxels for part in parts]
        title = f"What varies with the evidence for {what}"
        maps.append(signed(f"pattern-{name}", title, patterns, "correlation x difference"))
    return maps


def write_map(
    explanation: Explanation, mean: MeanMap, folder: Path, write_interactive: bool
) -> MapSection:
    """Draw a map in every way, and describe it."""
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    table = explanation.tables[mean.name]
    highest = ", ".join(table["region"].head(3)) if len(table) else "no region"
    pictures = []
    for view, draw in DRAWINGS.items():
        png = draw(mean.img, mean.unit, mean.signed)
        file = f"{mean.name}-{view}.png"
        (figures / file).write_bytes(png)
        alt = f"{mean.title}, {VIEWS[view]}; in {mean.unit}. Highest regions: {highest}."
        pictures.append(Picture(f"figures/{file}", to_data_uri(png), alt))
    interactive = ""
    if write_interactive:
        interactive = f"interactive/{mean.name}.html"
        (folder / "interactive").mkdir(exist_ok=True)
        page = interactive_map(mean.img, mean.title, mean.signed)
        (folder / interactive).write_text(page, encoding="utf-8")
    return MapSection(
        mean.title,
        describe_map(explanation, mean.name, table),
        pictures,
        table_rows(table),
        f"tables/{mean.name}.tsv",
        interactive,
    )


def describe_map(explanation: Explanation, name: str, table: pd.DataFrame) -> list[str]:
    """What a map shows and what not, in plain words."""
    if name == "attention":
        return [
            "How much of the attention each voxel gets, mean of all queries; 1 is what it would "
            "get if all voxels got the same. Attention depends on where a voxel is, not on what "
            "it did, and is the same in every trial.",
            "It shows where the model listens, not that what it hears there is about the stimulus.",
        ]
    if name.startswith("pattern-"):
        return describe_pattern(explanation, name.split("-", 2)[2], table)
    maps = [find_map(part, name) for part in explanation.subjects]
    n_regions, count = len(table), int((table["q_value"] < SIGNIFICANT).sum())
    known = all(part.data.texts_are_known for part in explanation.subjects)
    sentences = [sum_sentence(name, maps)]
    if name == "text":
        control = "of the texts of other trials, permuted"
        subject = "the text of the trial"
    else:
        control = "of the trials whose text does not name it"
        subject = f"“{maps[0].name}”"
    sentences.append(
        f"The pictures show the mean contribution minus that {control}, "
        f"{smoothing(explanation)}. {count} of {n_regions} regions speak for "
        f"{subject} more than under permutation (q < {SIGNIFICANT}, corrected per atlas)."
    )
    if not known:
        sentences.append(
            "The texts were chosen by the same trials, so that regions must seem to speak for "
            "them: these p-values do not test that the brain tells anything."
        )
    sentences.append(
        "A region that speaks for a text tells this model something that goes with it. It need "
        "not represent the meaning: what the stimuli with that text look like, or how they move, "
        "would do, and what is told in other regions as well is divided among them."
    )
    return sentences


def find_map(part: SubjectExplanation, name: str) -> TextMap:
    """The map of a subject that has a name."""
    maps = {"text": part.texts} | {f"word-{word.name}": word for word in part.words}
    return (maps | {f"attribute-{word.name}": word for word in part.attributes})[name]


def smoothing(explanation: Explanation) -> str:
    """How maps were smoothed before they were drawn."""
    if not explanation.smooth_mm:
        return "not smoothed"
    return (
        f"smoothed by {explanation.smooth_mm:.1f} mm (FWHM); tables and the maps of single "
        "subjects are not"
    )


def describe_pattern(explanation: Explanation, name: str, table: pd.DataFrame) -> list[str]:
    """What a map by activation patterns shows and what not."""
    count = int((table["q_value"] < SIGNIFICANT).sum())
    return [
        f"The correlation of each voxel with the evidence for “{name}” over all trials, times "
        "the difference of its betas between the trials whose text names it and the others; "
        f"{smoothing(explanation)}. {count} of {len(table)} regions have more than under "
        f"permutation of texts among trials (q < {SIGNIFICANT}, corrected per atlas).",
        "It shows the signal that the evidence follows, also where others tell the same; the "
        "contributions show what the model made use of. A voxel that varies with others that "
        "speak for the word is in this map too.",
    ]


def sum_sentence(name: str, maps: Sequence[TextMap]) -> str:
    """What the voxels of a map sum to."""
    evidence = float(np.mean([m.evidence for m in maps]))
    at_zero = float(np.mean([m.at_zero for m in maps]))
    n_trials = sum(m.n_trials for m in maps)
    error = max(m.error for m in maps)
    what = "their own text" if name == "text" else f"“{maps[0].name}”"
    return (
        f"{count_of(n_trials, 'trial')} of {count_of(len(maps), 'subject')} have a mean "
        f"evidence of {evidence:+.2f} nats for {what}: {evidence - at_zero:+.2f} contributed by "
        f"voxels and {at_zero:+.2f} that zero activity has already (largest miss of a sum "
        f"{error:.1e} nats)."
    )


def lesion_sentences(explanation: Explanation) -> list[str]:
    """What lesions show and what not, in plain words."""
    table, config = explanation.tables["lesions"], explanation.config
    count = int((table["q_value"] < SIGNIFICANT).sum())
    kind = "patches of neighbors" if config.random_sets == "contiguous" else "scattered voxels"
    return [
        f"The betas of a region are set to 0, their mean, and the evidence for the text of the "
        f"trial, against all other texts, is computed anew. {count} of {len(table)} regions cost "
        f"more than {config.n_random} random {kind} of the same number (q < {SIGNIFICANT}, "
        "corrected per atlas).",
        "A region without which nothing is lost may still tell of the text, if others tell the "
        "same. A lesion of the model's input is not a lesion of the brain.",
    ]


def table_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    """First rows of a table by atlas, as texts."""
    head = table.groupby("atlas", sort=False).head(ROWS)
    return [
        {
            str(name): f"{value:.3g}" if isinstance(value, float) else str(value)
            for name, value in row.items()
        }
        for row in head.to_dict("records")
    ]


def describe_subject(part: SubjectExplanation) -> str:
    """A subject in one line."""
    n_trials = count_of(len(part.data.chosen), "trial")
    return f"{part.masker.subject}: {len(part.masker)} voxels, {n_trials}"


def answer_rows(explanation: Explanation) -> list[dict[str, str]]:
    """Words of the generated answers, with the region that each came from most."""
    rows = []
    for part in explanation.subjects:
        for row, answer in zip(part.data.chosen, part.answers, strict=False):
            for number, word in enumerate(answer.words):
                sums = [answer.voxels[number, r.voxels].sum() for r in part.lesions.regions]
                region = part.lesions.regions[int(np.argmax(sums))]
                change = answer.log_likelihood[number] - answer.at_zero[number]
                rows.append(
                    {
                        "subject": part.masker.subject,
                        "trial": str(part.data.numbers[row]),
                        "text of the trial": part.data.texts[row],
                        "generated word": word,
                        "change in nats": f"{change:+.2f}",
                        "sum misses by": f"{abs(answer.error[number]):.2g}",
                        "most from": f"{region.label} ({max(sums):+.2f})",
                    }
                )
    return rows


def write_summary(explanation: Explanation, folder: Path) -> None:
    """Write explanation.json: options, subjects, and how exactly sums were met."""
    content = {
        "config": json.loads(explanation.config.model_dump_json()),
        "subjects": [
            {
                "subject": part.masker.subject,
                "n_voxels": len(part.masker),
                "trials": [int(part.data.numbers[row]) for row in part.data.chosen],
                "texts_are_known": part.data.texts_are_known,
                "evidence": part.texts.evidence,
                "evidence_at_zero": part.texts.at_zero,
                "largest_error": max([part.texts.error, *(w.error for w in part.words)]),
            }
            for part in explanation.subjects
        ],
    }
    (folder / "explanation.json").write_text(to_json(content) + "\n", encoding="utf-8")
