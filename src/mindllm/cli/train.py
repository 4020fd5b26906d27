"""The commands train and config, and the demo."""

from __future__ import annotations

from dataclasses import fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mindllm.cli.options import (
    NewModel,
    Seed,
    SplitScheme,
    StoreFolder,
    Subjects,
    bars,
    claim_output,
    console,
    parse_list,
)
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_output
from mindllm.utils.processes import is_main_process
from mindllm.utils.seeds import MAX_SEED

if TYPE_CHECKING:
    from mindllm.training.cluster import Cluster, JobResources, TrainingJob

app = typer.Typer()

LanguageModel = Annotated[
    str | None,
    typer.Option(
        help="Hub id, folder or .gguf file of a causal language model. "
        "Default: SmolLM2-135M-Instruct."
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(help="Encoder sizes: default, walkthrough (tiny) or paper (139 M weights)."),
]
ConfigFile = Annotated[
    Path | None, typer.Option(help="YAML or JSON file of training options; see `mindllm config`.")
]
TrainingSeed = Annotated[
    int | None, typer.Option(min=0, max=MAX_SEED, help="Seed of all random draws.")
]
InitFrom = Annotated[
    str | None,
    typer.Option(help="A model to train further, with its own encoder, instead of a new one."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue an interrupted training, or begin one.")
]
RESUMABLE = ("config.json", "training", "training.csv")


class ClusterChoice(StrEnum):
    """Where a job runs."""

    SLURM = "slurm"
    LOCAL = "local"


ClusterName = Annotated[
    ClusterChoice | None,
    typer.Option(help="Submit the training as a job: to Slurm, or to this machine (local)."),
]
Partition = Annotated[str | None, typer.Option(help="Partition of Slurm. Default: its own.")]
TimeMinutes = Annotated[
    int,
    typer.Option(min=1, help="Time limit of a job, which is then requeued and goes on."),
]
Nodes = Annotated[int, typer.Option(min=1, help="Machines of a job.")]
GpusPerNode = Annotated[
    int, typer.Option(min=0, help="GPUs on each machine of a job, a process for each.")
]
TasksPerNode = Annotated[
    int | None,
    typer.Option(min=1, help="Processes on each machine of a job. Default: one for each GPU."),
]
CpusPerTask = Annotated[int, typer.Option(min=1, help="Cores of each process of a job.")]
MaxRequeues = Annotated[
    int, typer.Option(min=0, help="How often a job may reach its time limit and go on.")
]
SlurmOption = Annotated[
    list[str] | None,
    typer.Option(help="Further options of sbatch, e.g. account=lab; may be repeated."),
]
LogDir = Annotated[
    Path | None, typer.Option(help="Folder of a job's logs. Default: OUT-jobs, beside the model.")
]


@app.command()
def train(
    store: StoreFolder,
    out: NewModel,
    subjects: Subjects = None,
    llm: LanguageModel = None,
    preset: Preset = None,
    config: ConfigFile = None,
    seed: TrainingSeed = None,
    split_scheme: SplitScheme = None,
    init_from: InitFrom = None,
    resume: Resume = False,
    cluster: ClusterName = None,
    partition: Partition = None,
    time_minutes: TimeMinutes = 60,
    nodes: Nodes = 1,
    gpus_per_node: GpusPerNode = 0,
    tasks_per_node: TasksPerNode = None,
    cpus_per_task: CpusPerTask = 1,
    max_requeues: MaxRequeues = 3,
    slurm_option: SlurmOption = None,
    log_dir: LogDir = None,
) -> None:
    """Train a model: align the encoder to text, then tune it through the language model.

    Trials of the split `val` choose the checkpoint, or subjects held out with the option
    num_validation_subjects. Options on the command line win over those of --config.
    """
    from mindllm.training.cluster import JobResources, TrainingJob, parse_slurm_options
    from mindllm.training.configuration import read_config

    resources = JobResources(
        partition,
        time_minutes,
        nodes,
        gpus_per_node,
        tasks_per_node,
        cpus_per_task,
        max_requeues,
        parse_slurm_options(slurm_option or []),
    )
    inputs = list_inputs(store, init_from, llm)
    if cluster is None:
        check_no_resources(resources)
        claim_output(out, inputs=inputs, resumable=RESUMABLE)
    else:
        check_output(out, inputs, RESUMABLE)  # the job locks it
    options = {"language_model": llm, "preset": preset, "seed": seed, "init_from": init_from}
    settings = read_config(config, {k: v for k, v in options.items() if v is not None})
    job = TrainingJob(store, out, split_scheme, settings, parse_list(subjects))
    if cluster is None:
        train_here(job, resume)
    else:
        submit_job(job, cluster.value, resources, log_dir, resume)


def train_here(job: TrainingJob, resume: bool) -> None:
    """Train in this process and those that a launcher has started with it."""
    with bars() as progress:
        job.run(progress, resume)
    if is_main_process():
        console.print(f"{job.out}: trained; curves in {job.out / 'training.png'}")


def list_inputs(store: Path, init_from: str | None, llm: str | None) -> list[Path]:
    """Paths that a training reads; InputError if the language model is none."""
    from mindllm.language.hub import check_path

    if llm is not None:
        check_path(llm)
    return [store, *(Path(name) for name in (init_from, llm) if name)]


def check_no_resources(resources: JobResources) -> None:
    """Raise InputError if resources are asked for without a cluster to ask."""
    default = type(resources)()
    changed = [
        f.name for f in fields(resources) if getattr(resources, f.name) != getattr(default, f.name)
    ]
    if changed:
        raise InputError(
            f"{', '.join(changed)}: options of --cluster, which is missing. Add --cluster slurm, "
            "or leave them out."
        )


def submit_job(
    job: TrainingJob, cluster: Cluster, resources: JobResources, log_dir: Path | None, resume: bool
) -> None:
    """Check what can be checked before a job is queued, submit it, and print where its log is."""
    from mindllm.data.store import Store
    from mindllm.training.cluster import submit
    from mindllm.training.configuration import check_processes
    from mindllm.training.trainer import check_unfinished

    check_unfinished(job.out, resume)
    store = Store(job.store, job.split_scheme)
    store.check_splits(store.select_subjects(job.subjects))
    check_processes(job.config, resources.num_processes)
    job = replace(job, store=job.store.resolve(), out=job.out.resolve())
    submitted = submit(
        job, cluster, resources, log_dir or job.out.with_name(f"{job.out.name}-jobs")
    )
    console.print(f"job {submitted.job_id} submitted", highlight=False)
    console.print(f"log: {submitted.stderr}", highlight=False, soft_wrap=True)


@app.command("config")
def show_config() -> None:
    """Print every training option with its default, as YAML for `train --config`."""
    import yaml

    from mindllm.training.configuration import TrainConfig

    print(yaml.safe_dump(TrainConfig().model_dump(mode="json"), sort_keys=False), end="")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the simulated data, the store, the model, the report.")
    ] = Path("runs/demo"),
    n_subjects: Annotated[
        int,
        typer.Option(
            min=3, max=1000, help="Subjects to simulate; the last one is left out of training."
        ),
    ] = 8,
    seed: Seed = 0,
    llm: LanguageModel = None,
) -> None:
    """Simulate subjects, train, and evaluate on one left out: the whole pipeline, on a CPU."""
    from mindllm.cli.demo import demo as run

    claim_output(out, inputs=[Path(llm)] if llm else [], resumable=("bids", "bids.partial"))
    run(out, console, bars, n_subjects, seed, llm)
