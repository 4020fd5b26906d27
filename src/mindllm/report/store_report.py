"""Report about a store: tables, checks, sample conversations and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from rich.progress import Progress

from mindllm.data.quality_control import (
    QCResult,
    check_runs,
    check_store,
    check_subject,
    group_results,
)
from mindllm.data.reliability import Reliability, estimate_reliability
from mindllm.data.splits import SPLITS
from mindllm.data.store import Store
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.noise_ceiling import noise_ceiling_percent
from mindllm.instructions import summary
from mindllm.plotting.brain import plot_brain_slices, plot_voxel_coverage, top_of_scale
from mindllm.plotting.curves import plot_counts
from mindllm.report.pages import load_template
from mindllm.utils.folders import atomic_directory
from mindllm.utils.progress import progress_bar

SAMPLES_PER_SOURCE = 2
SOURCE_FORMATS = {"fraction": "{:.0%}", "words": "{:.1f}"}  # by column
MIN_TOP_CEILING = 5.0  # percent; smallest end of the color scale
TITLES = {"runs.tsv": "Runs of the single-trial models", "reliability.tsv": "Reliability"}
SHORT_NAMES = {
    "n_volumes": "volumes",
    "tr_seconds": "TR",
    "slice_time_ref": "ref",
    "excluded_fraction": "excluded",
    "n_trials": "trials",
    "n_dropped_trials": "dropped",
    "n_confounds": "confounds",
    "condition_number": "condition",
    "mean_efficiency": "efficiency",
    "max_variance_inflation": "inflation",
    "max_correlation_of_trials": "max r",
    "max_r2_with_nuisance": "max R2",
    "n_stimuli": "stimuli",
    "ncsnr_median": "ncsnr",
    "ncsnr_95th_percentile": "95th percentile",
    "ceiling_median": "ceiling",
    "ceiling_95th_percentile": "95th percentile",
    "split_half_mean": "split half",
}
NOTES = {
    "runs.tsv": (
        "TR in seconds; ref: time of the slices, in TR; excluded: fraction of volumes that were "
        "scrubbed or before the steady state; dropped: trials of which less than half of the "
        "response is in the volumes that are left; condition: number of the design matrix with a "
        "regressor per trial; efficiency: 1 / variance of a beta, mean; inflation: by how much "
        "the other regressors increase it, largest; max r: of the responses to two trials; max "
        "R2: of a response, explained by drift and confounds; numbers in runs.tsv"
    ),
    "reliability.tsv": (
        "of the standardized betas of repeated stimuli, estimated from this store; ncsnr: standard "
        "deviation of signal over noise, single trials; ceiling: noise ceiling in percent; split "
        "half: correlation over stimuli, mean over voxels; numbers in reliability.tsv"
    ),
}


@dataclass(frozen=True, slots=True)
class TextTable:
    """Table of texts under a title, with a note about its columns."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class SubjectOverview:
    """Counts of one subject, as texts.

    shown is the number of trials per stimulus; split the trials of train/val/test, and unused ones
    where there are any; ceiling the noise ceiling of the median voxel, single trials.
    """

    subject: str
    voxels: str
    trials: str
    sessions: str
    stimuli: str
    shown: str
    split: str
    betas: str
    ceiling: str


@dataclass(frozen=True, slots=True)
class AtlasOverview:
    """One atlas over the subjects that have it: range of the number of parcels and of the coverage.

    coverage is the percent of a subject's voxels that are in a parcel.
    """

    atlas: str
    subjects: str
    parcels: str
    coverage: str


@dataclass(frozen=True, slots=True)
class ConversationSample:
    """One conversation: what it is about (a stimulus or trial), its source, and its turns."""

    about: str
    source: str
    turns: Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class StoreReport:
    """Report about a store.

    Parameters
    ----------
    name : str
        Name of the store.
    info : mapping of str to str
        Label to text: where the store is from, and how it was made.
    subjects : list of SubjectOverview
        One per subject.
    atlases : list of AtlasOverview
        One per atlas.
    sources : TextTable
        Conversations per instruction source.
    checks : list of QCResult
        Checks that did not pass first.
    samples : list of ConversationSample
        A few conversations of every source.
    reliability : dict of str to Reliability
        Of the subjects with enough repeated stimuli.
    runs : DataFrame or None
        One row per run of which `prepare` estimated the betas; see `Store.runs`.
    """

    name: str
    info: Mapping[str, str]
    subjects: list[SubjectOverview]
    atlases: list[AtlasOverview]
    sources: TextTable
    checks: list[QCResult]
    samples: list[ConversationSample]
    reliability: Mapping[str, Reliability]
    runs: pd.DataFrame | None

    @property
    def numbers(self) -> dict[str, pd.DataFrame]:
        """Tables of numbers that are written beside the page, by name of the file."""
        tables = {"reliability.tsv": summarize_reliability(self.reliability)}
        if self.runs is not None:
            tables["runs.tsv"] = self.runs
        return {name: table for name, table in tables.items() if len(table)}

    @property
    def tables(self) -> list[TextTable]:
        """Subjects, atlases, runs, reliability and sources, to be shown in this order."""
        split_note = (
            "split: trials of train/val/test, and unused ones; "
            "ceiling: noise ceiling of the median voxel, single trials"
        )
        coverage_note = "coverage: percent of the voxels in a parcel"
        return [
            _to_table("Subjects", split_note, SubjectOverview, self.subjects),
            _to_table("Atlases", coverage_note, AtlasOverview, self.atlases),
            *(
                to_text_table(table, title, NOTES[name])
                for name, title in TITLES.items()
                if (table := self.numbers.get(name)) is not None
            ),
            self.sources,
        ]


def _to_table(
    title: str,
    note: str,
    row_type: type[SubjectOverview | AtlasOverview],
    rows: Sequence[SubjectOverview | AtlasOverview],
) -> TextTable:
    """Return rows of one type as a table, a column per field."""
    columns = [field.name for field in fields(row_type)]
    return TextTable(title, note, columns, [[getattr(r, name) for name in columns] for r in rows])


def inspect_store(store: Store, seed: int = 0, progress: Progress | None = None) -> StoreReport:
    """Check a store and collect what it holds.

    Parameters
    ----------
    store : Store
        A prepared store.
    seed : int
        Of the trials that are checked and of the sample conversations.
    progress : Progress, optional
        Shows the time left.

    Returns
    -------
    StoreReport
        Made from all tables and a sample of the betas.
    """
    rng = np.random.default_rng(seed)
    checks: list[QCResult] = []
    reliability: dict[str, Reliability] = {}
    with progress_bar(progress, "checking", len(store.subjects)) as advance:
        for subject in store.subjects:
            advance(0, f"checking {subject}")
            checks += check_subject(store, subject, rng)
            if (estimate := estimate_reliability(store, subject, rng)) is not None:
                reliability[subject] = estimate
            advance(1)
    checks += [*check_store(store), *check_runs(store.runs)]
    return StoreReport(
        name=store.meta["name"],
        info=describe_store(store),
        subjects=[describe_subject(store, subject) for subject in store.subjects],
        atlases=describe_atlases([store.masker(subject) for subject in store.subjects]),
        sources=describe_sources(store),
        checks=group_results(checks),
        samples=sample_conversations(store, rng),
        reliability=reliability,
        runs=store.runs,
    )


def summarize_reliability(reliability: Mapping[str, Reliability]) -> pd.DataFrame:
    """Summarize reliabilities over voxels, a row per subject."""
    rows = []
    for subject, estimate in reliability.items():
        ceiling = noise_ceiling_percent(estimate.ncsnr)
        rows.append(
            {
                "subject": subject,
                "n_stimuli": estimate.n_stimuli,
                "n_trials": estimate.n_trials,
                "ncsnr_median": np.median(estimate.ncsnr),
                "ncsnr_95th_percentile": np.percentile(estimate.ncsnr, 95),
                "ceiling_median": np.median(ceiling),
                "ceiling_95th_percentile": np.percentile(ceiling, 95),
                "split_half_mean": np.nanmean(estimate.split_half),
            }
        )
    return pd.DataFrame(rows)


def to_text_table(table: pd.DataFrame, title: str, note: str) -> TextTable:
    """Return a table of numbers as texts, with three digits and short names of columns."""
    rows = [
        [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        for row in table.itertuples(index=False)
    ]
    columns = [SHORT_NAMES.get(str(name), str(name)) for name in table]
    return TextTable(title, note, columns, rows)


def describe_store(store: Store) -> dict[str, str]:
    """Return label to text: where a store is from, and how it was made."""
    meta = store.meta
    stimuli = {name for subject in store.subjects for name in store.trials(subject)["stimulus"]}
    options = ", ".join(f"{key}={value}" for key, value in meta["options"].items())
    stimulus_sets = [
        f"{name} ({len(stimuli.intersection(members)):,} of {len(members):,} stimuli here)"
        for name, members in store.stimulus_sets.items()
    ]
    standardized = "standardized already"
    raw = "as measured, standardized when read"
    return {
        "store": str(store.path),
        "name": meta["name"],
        "source": meta["source"],
        "license": meta["license"],
        "made by": f"mindllm {meta['version']}, prepared by {meta['prepared_by']}, {options}",
        "betas": standardized if meta.get("standardized") else raw,
        "split": f"{store.split['name']} (others: {', '.join(store.splits) or 'none'})",
        "stimulus sets": ", ".join(stimulus_sets) or "none",
    }


def describe_subject(store: Store, subject: str) -> SubjectOverview:
    """Return the counts of one subject."""
    trials, ncsnr = store.trials(subject), store.ncsnr(subject)
    n_shown = trials["stimulus"].value_counts()
    n_trials = trials["split"].value_counts().to_dict()
    low, high = n_shown.min(), n_shown.max()
    shown_splits = [split for split in SPLITS if n_trials.get(split) or split != "unused"]
    ceiling = "-" if ncsnr is None else f"{np.nanmedian(noise_ceiling_percent(ncsnr)):.0f} %"
    return SubjectOverview(
        subject=subject,
        voxels=f"{len(store.masker(subject)):,}",
        trials=f"{len(trials):,}",
        sessions=str(trials["session"].nunique()),
        stimuli=f"{len(n_shown):,}",
        shown=f"{low}-{high}x" if low < high else f"{high}x",
        split="/".join(str(n_trials.get(split, 0)) for split in shown_splits),
        betas=f"{store.betas(subject).nbytes / 2**20:,.0f} MiB",
        ceiling=ceiling,
    )


def describe_atlases(maskers: Sequence[VoxelMasker]) -> list[AtlasOverview]:
    """Return every atlas in the order of the first subjects that have it."""
    labels = [(atlas, a) for masker in maskers for atlas, a in masker.parcel_labels.items()]
    return [
        AtlasOverview(
            atlas=atlas,
            subjects=str(len(arrays)),
            parcels=_format_range([len(np.setdiff1d(array, 0)) for array in arrays]),
            coverage=_format_range([100 * float((array > 0).mean()) for array in arrays]),
        )
        for atlas in dict.fromkeys(name for name, _ in labels)
        if (arrays := [array for name, array in labels if name == atlas])
    ]


def _format_range(values: Sequence[float]) -> str:
    """Return "low-high" in whole numbers, or one number where they are equal."""
    low, high = min(values), max(values)
    return f"{low:.0f}-{high:.0f}" if round(low) < round(high) else f"{low:.0f}"


def describe_sources(store: Store) -> TextTable:
    """Return the conversations per instruction source."""
    table = summary(store)
    columns = [str(name) for name in table.columns]
    rows = [
        [SOURCE_FORMATS.get(name, "{}").format(cell) for name, cell in zip(columns, row)]
        for row in table.itertuples(index=False)
    ]
    return TextTable("Text", "", columns, rows)


def sample_conversations(store: Store, rng: np.random.Generator) -> list[ConversationSample]:
    """Return two conversations of every source, drawn at random."""
    table, samples = store.conversations, []
    for source, rows in table.groupby("source", sort=False).indices.items():
        for row in rng.permutation(rows)[:SAMPLES_PER_SOURCE]:
            conversation = table.iloc[row]
            stimulus = conversation["stimulus"]
            trial = f"trial {conversation['trial_index']} of {conversation['subject']}"
            about = stimulus if isinstance(stimulus, str) else trial
            samples.append(ConversationSample(about, str(source), list(conversation["turns"])))
    return samples


@dataclass(frozen=True, slots=True)
class StoreFigure:
    """A figure: name of its file without suffix, caption, and PNG bytes."""

    name: str
    caption: str
    png: bytes


def draw_store_figures(store: Store, reliability: Mapping[str, Reliability]) -> list[StoreFigure]:
    """Draw where voxels are, noise ceilings as published or estimated, and trials per split."""
    maskers = [store.masker(subject) for subject in store.subjects]
    coverage = "Where the voxels are; color: mm of voxels along the line of sight, mean of subjects"
    figures = [StoreFigure("coverage", coverage, plot_voxel_coverage(maskers))]
    ceilings = {
        masker.subject: np.nan_to_num(noise_ceiling_percent(ncsnr))
        for masker in maskers
        if (ncsnr := store.ncsnr(masker.subject)) is not None
    }
    origin = "as published with the data"
    if not ceilings:
        origin = "estimated from the repeated stimuli of this store"
        ceilings = {s: noise_ceiling_percent(r.ncsnr) for s, r in reliability.items()}
    if ceilings:
        caption = (
            f"Noise ceiling of single trials {origin}: percent of the variance that a perfect "
            "model could explain"
        )
        values = list(ceilings.values())
        measured = [masker for masker in maskers if masker.subject in ceilings]
        png = plot_brain_slices(measured, values, top_of_scale(values, MIN_TOP_CEILING))
        figures.append(StoreFigure("noise-ceiling", caption, png))
    counts = pd.DataFrame({s: store.trials(s)["split"].value_counts() for s in store.subjects})
    png = plot_counts(counts.T.reindex(columns=list(SPLITS)).fillna(0))
    return [*figures, StoreFigure("trials", "Trials per subject and split", png)]


def write_store_report(report: StoreReport, store: Store, out: str | Path) -> Path:
    """Write a report about a store as a page with figures.

    Parameters
    ----------
    report : StoreReport
        As `inspect_store` returns it.
    store : Store
        The same store, for the figures.
    out : str or Path
        New folder for index.html, PNG files and tables of numbers (TSV).

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        If `out` exists.
    """
    figures = draw_store_figures(store, report.reliability)
    html = load_template("store.html.jinja").render(report=report, figures=figures)
    with atomic_directory(Path(out)) as folder:
        for figure in figures:
            (folder / f"{figure.name}.png").write_bytes(figure.png)
        for name, table in report.numbers.items():
            table.to_csv(folder / name, sep="\t", index=False, na_rep="n/a")
        (folder / "index.html").write_text(html, encoding="utf-8")
    return Path(out) / "index.html"
