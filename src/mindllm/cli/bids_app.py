"""The BIDS App: `mindllm-bids-app bids_dir output_dir participant|group`.

References
----------
Gorgolewski et al. 2017, PLOS Computational Biology 13:e1005209 (BIDS Apps).
"""

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mindllm.cli.options import bars, check_model
from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_write, check_name, write_json
from mindllm.utils.sorting import natural_sorted
from mindllm.utils.versions import package_version

if TYPE_CHECKING:
    from mindllm.data.store import Store
    from mindllm.datasets.fmriprep import FMRIPrepReader

LABEL = re.compile(r"(sub-)?([A-Za-z0-9]+)")
logger = logging.getLogger(__name__)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the arguments that every BIDS App has, and of ours."""
    parser = argparse.ArgumentParser(
        prog="mindllm-bids-app",
        description="Single-trial betas of fMRIPrep's derivatives, decoded into text. participant: "
        "a store and its quality page per participant, and with --model decoded texts. group: a "
        "store of all participants, and with --model their evaluation, beside controls.",
    )
    add = parser.add_argument
    add("bids_dir", type=Path, help="the raw BIDS data set, with events")
    add("output_dir", type=Path, help="folder of the outputs; group reads those of participant")
    add("analysis_level", choices=["participant", "group"])
    add(
        *("--participant-label", "--participant_label"),
        nargs="+",
        help="labels with or without sub-, separated by blanks; default: all",
    )
    add("--derivatives", type=Path, help="fMRIPrep's; default: bids_dir/derivatives/fmriprep")
    add("--model", type=Path, help="a model folder, to decode and evaluate with")
    add("--llm", help="folder of its language model, if not found under its name")
    add("--space", help="such as MNI152NLin2009cAsym:res-2, where there are several")
    add("--task", help="label of the task, where there are several")
    add("--single-trial", default="lss", help="lss or lsa")
    add("--confounds", default="simple", help="strategy of nilearn, or none")
    add("--hrf-model", default="glover", help="with nilearn's names")
    add("--stimulus-column", help="column of the events that names the stimulus")
    add("--trial-types", nargs="+", help="values of trial_type that are trials")
    add("--mask", type=Path, help="image in the same template; voxels outside it are left out")
    add("--nan", default="error", help="voxels without a signal in a run: error, or drop")
    add("--n-jobs", type=int, default=1, help="runs read in parallel")
    add(
        *("--skip-bids-validator", "--skip_bids_validator"),
        action="store_true",
        help="taken for compatibility: the validator is not run",
    )
    add(*("-v", "--version"), action="version", version=package_version("mindllm"))
    return parser


def run(arguments: Sequence[str]) -> None:
    """Run the BIDS App.

    Parameters
    ----------
    arguments : sequence of str
        Those of the command line.

    Raises
    ------
    InputError
        If a participant, an input or an option is missing or wrong.
    """
    options = make_parser().parse_args(arguments)
    if options.n_jobs < 1:
        raise InputError(f"--n-jobs is {options.n_jobs}; expected 1 or more.")
    if not options.bids_dir.is_dir():
        raise InputError(f"{options.bids_dir} is no folder; expected a BIDS data set.")
    if options.model is not None:
        check_model(options.model, options.llm)
    labels = parse_labels(options.participant_label)
    describe_outputs(options.output_dir)
    if options.analysis_level == "participant":
        for label in labels or find_participants(options):
            process_participant(label, options)
    else:
        process_group(labels, options)


def parse_labels(labels: Sequence[str] | None) -> list[str]:
    """Bring labels to the form sub-XX.

    Examples
    --------
    >>> parse_labels(["01", "sub-02"])
    ['sub-01', 'sub-02']
    """
    subjects = []
    for label in labels or []:
        match = LABEL.fullmatch(label)
        if match is None:
            raise InputError(
                f"--participant-label {label!r}: expected letters and digits, such as 01."
            )
        subjects.append(check_name(f"sub-{match[2]}", "participant"))
    return natural_sorted(set(subjects))


def make_reader(options: argparse.Namespace, subjects: list[str] | None) -> "FMRIPrepReader":
    """Make the reader of fMRIPrep's derivatives."""
    from mindllm.datasets.events import EventOptions
    from mindllm.datasets.fmriprep import FMRIPrepReader, ModelOptions

    types = options.trial_types
    return FMRIPrepReader(
        options.derivatives or options.bids_dir / "derivatives" / "fmriprep",
        events=options.bids_dir,
        subjects=subjects,
        space=options.space,
        task=options.task,
        model=ModelOptions(
            single_trial=options.single_trial,
            confounds=options.confounds,
            hrf_model=options.hrf_model,
        ),
        event_options=EventOptions(
            stimulus_column=options.stimulus_column,
            trial_types=tuple(types) if types else None,
        ),
        mask=options.mask,
        nan=options.nan,
    )


def find_participants(options: argparse.Namespace) -> list[str]:
    """List all participants of the derivatives."""
    return make_reader(options, None).find_subjects()


def describe_outputs(folder: Path) -> None:
    """Write dataset_description.json of the outputs, which are BIDS derivatives."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "dataset_description.json"
    if not file.exists():
        program = {"Name": "mindllm", "Version": package_version("mindllm")}
        content = {"Name": "mindllm", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
        write_json(file, {**content, "GeneratedBy": [program]})


def process_participant(subject: str, options: argparse.Namespace) -> None:
    """Make the store of a participant and its quality page, and decode its trials."""
    from mindllm.data.store import Store

    folder = options.output_dir / subject
    path = folder / "store"
    folder.mkdir(exist_ok=True)
    if path.exists():
        logger.info("%s: %s exists and is taken as it is", subject, path)
        store = Store(path)
    else:
        with bars() as progress:
            reader = make_reader(options, [subject])
            store = reader.prepare(path, n_jobs=options.n_jobs, progress=progress)
    write_quality_page(store, folder / "qc")
    if options.model is not None:
        decode_store(store, options, folder / f"{subject}_desc-decoded_trials.tsv")


def write_quality_page(store: "Store", out: Path) -> None:
    """Check a store and write its page, unless it is there."""
    from mindllm.report.store_report import inspect_store, write_store_report

    if not out.exists():
        with bars() as progress:
            report = inspect_store(store, progress=progress)
        write_store_report(report, store, out)


def decode_store(store: "Store", options: argparse.Namespace, out: Path) -> None:
    """Decode all trials of a store of one participant into a table beside what was shown."""
    from mindllm.model.modeling import MindLLM

    if out.exists():
        raise InputError(f"{out} already exists; remove it, or choose another output_dir.")
    (subject,) = store.subjects
    model = MindLLM.from_pretrained(options.model, language_model=options.llm)
    betas = store.betas(subject, standardize=True)
    texts = model.decode(betas, store.masker(subject))
    table = store.trials(subject).assign(text=[" ".join(text.split()) for text in texts])
    with atomic_write(out) as path:
        table.to_csv(path, sep="\t", index=False, na_rep="n/a")


def process_group(subjects: list[str], options: argparse.Namespace) -> None:
    """Join the stores of participants, and evaluate the model on all of them."""
    from mindllm.cli.evaluate import evaluate

    out = options.output_dir / "store"
    if out.exists():
        raise InputError(f"{out} already exists; remove it, or choose another output_dir.")
    store = join_stores(options.output_dir, subjects, out)
    write_quality_page(store, options.output_dir / "qc")
    if options.model is not None:
        evaluate(options.model, out, out=options.output_dir / "report", llm=options.llm)


def join_stores(folder: Path, subjects: list[str], out: Path) -> "Store":
    """Join the stores of participants, which must have been prepared alike.

    Raises
    ------
    InputError
        If one is missing, or was prepared with other options.
    """
    import pandas as pd

    from mindllm.data.store import Store
    from mindllm.data.store_writer import write_store

    present = natural_sorted(path.parent.name for path in folder.glob("sub-*/store"))
    missing = [subject for subject in subjects if subject not in present]
    if missing or not present:
        raise InputError(
            f"{folder} holds no store of {', '.join(missing) or 'any participant'}; expected "
            "those of the participant level. Run it first."
        )
    stores = [Store(folder / subject / "store") for subject in subjects or present]
    first = stores[0]
    options = [{**s.meta["options"], "subjects": None} for s in stores]
    for store, used in zip(stores, options, strict=True):
        differing = sorted(key for key in used if used[key] != options[0].get(key))
        if differing:
            raise InputError(
                f"{store.path} and {first.path} were prepared with different options "
                f"({', '.join(differing)}); expected equal ones. Prepare one of them anew."
            )
    conversations = pd.concat([store.conversations for store in stores], ignore_index=True)
    keys = conversations[["stimulus", "source", "turns"]].astype(str)
    runs = [store.runs for store in stores if store.runs is not None]
    return write_store(
        out,
        (
            (store.masker(subject), store.betas(subject), store.trials(subject))
            for store in stores
            for subject in store.subjects
        ),
        conversations[~keys.duplicated()].reset_index(drop=True),
        name=first.meta["name"],
        source=first.meta["source"],
        license=first.meta["license"],
        runs=pd.concat(runs, ignore_index=True) if len(runs) == len(stores) else None,
    )
