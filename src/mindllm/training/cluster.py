"""A training as a job of a cluster, through submitit: submitted, preempted, requeued, resumed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.training.configuration import TrainConfig
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError
from mindllm.utils.processes import is_main_process
from mindllm.utils.progress import make_progress

if TYPE_CHECKING:
    from submitit import AutoExecutor

Cluster = Literal["slurm", "local"]


@dataclass(frozen=True)
class JobResources:
    """What a job asks of a cluster.

    Parameters
    ----------
    partition : str, optional
        Of Slurm; None: its default.
    time_minutes : int
        Time limit. A job that reaches it is requeued and goes on, as a preempted one does.
    nodes : int
        Machines.
    gpus_per_node : int
        Each has a process of its own.
    tasks_per_node : int, optional
        Processes on each machine; None: one for each GPU, and at least one.
    cpus_per_task : int
        Cores of each process.
    max_requeues : int
        How often a job may reach its time limit and be requeued. Preemptions are not counted.
    slurm_options : mapping from str to str
        Further options of sbatch, such as ``{"account": "lab"}``.

    Examples
    --------
    >>> JobResources(nodes=2, gpus_per_node=4).num_processes
    8
    """

    partition: str | None = None
    time_minutes: int = 60
    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int | None = None
    cpus_per_task: int = 1
    max_requeues: int = 3
    slurm_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_processes(self) -> int:
        """Processes of the training."""
        return self.nodes * (self.tasks_per_node or max(1, self.gpus_per_node))


@dataclass(frozen=True)
class SubmittedJob:
    """A job that was submitted.

    Parameters
    ----------
    job_id : str
    stdout, stderr : Path
        What its first process prints; losses, warnings and errors go to `stderr`.
    """

    job_id: str
    stdout: Path
    stderr: Path


@dataclass(frozen=True)
class TrainingJob:
    """A training as it is asked for; submitit pickles it for the processes of a cluster.

    Parameters
    ----------
    store, out : Path
    split_scheme : str or None
    config : TrainConfig
    subjects : list of str or None
    """

    store: Path
    out: Path
    split_scheme: str | None
    config: TrainConfig
    subjects: list[str] | None

    def __call__(self) -> None:
        """Train, with the other processes of the job; go on if the job has run before."""
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        if JobEnvironment().num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        level = logging.INFO if is_main_process() else logging.WARNING
        logging.basicConfig(level=level, format="%(message)s")
        with make_progress(Console(stderr=True)) as progress:
            self.run(progress, resume=True)

    def run(self, progress: Progress, resume: bool) -> None:
        """Train in this process, with the others that were started with it.

        Parameters
        ----------
        progress : rich.progress.Progress
            Where the first process draws bars.
        resume : bool
            As for `train`.
        """
        train(
            Store(self.store, self.split_scheme),
            self.out,
            self.config,
            subjects=self.subjects,
            resume=resume,
            progress=progress if is_main_process() else None,
        )

    def checkpoint(self) -> Any:
        """Called by submitit when the job is preempted or out of time: what is queued instead."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    job: TrainingJob, cluster: Cluster, resources: JobResources, log_dir: Path
) -> SubmittedJob:
    """Submit a training to a cluster.

    Parameters
    ----------
    job : TrainingJob
    cluster : {"slurm", "local"}
        local: processes of this machine that outlive this one.
    resources : JobResources
    log_dir : Path
        Folder of logs, which all machines see.

    Returns
    -------
    SubmittedJob

    Raises
    ------
    InputError
        If submitit is not installed, there is no Slurm here or it refuses the job, or options of
        Slurm are for this machine.
    """
    try:
        from submitit import AutoExecutor
        from submitit.core.utils import FailedSubmissionError
    except ImportError as error:
        raise InputError(
            "--cluster needs the package submitit: pip install 'mindllm[slurm]'."
        ) from error
    is_slurms = resources.partition or resources.slurm_options or resources.nodes > 1
    if cluster == "local" and is_slurms:
        raise InputError(
            "--partition, --slurm-option and --nodes are of --cluster slurm; --cluster local "
            "is this machine alone. Leave them out."
        )
    log_dir.mkdir(parents=True, exist_ok=True)
    try:
        requeues = {f"{cluster}_max_num_timeout": resources.max_requeues}
        executor = AutoExecutor(log_dir, cluster=cluster, **requeues)
        configure(executor, job, cluster, resources)
        submitted = executor.submit(job)
    except (RuntimeError, FailedSubmissionError, OSError) as error:
        raise InputError(
            f"{cluster} did not take the job ({error}). Run the command where jobs are submitted, "
            "and check partition, time and GPUs; or train without --cluster."
        ) from error
    paths = submitted.paths
    return SubmittedJob(str(submitted.job_id), Path(paths.stdout), Path(paths.stderr))


def configure(
    executor: AutoExecutor, job: TrainingJob, cluster: Cluster, resources: JobResources
) -> None:
    """Tell submitit's executor what a job asks for."""
    executor.update_parameters(
        timeout_min=resources.time_minutes,
        nodes=resources.nodes,
        gpus_per_node=resources.gpus_per_node,
        tasks_per_node=resources.num_processes // resources.nodes,
        cpus_per_task=resources.cpus_per_task,
    )
    if cluster == "slurm":
        executor.update_parameters(slurm_job_name=f"mindllm-{job.out.name}")
        if resources.partition:
            executor.update_parameters(slurm_partition=resources.partition)
        if resources.slurm_options:
            options = dict(resources.slurm_options)
            executor.update_parameters(slurm_additional_parameters=options)


def parse_slurm_options(options: Sequence[str]) -> dict[str, str]:
    """Read options of sbatch, such as `account=lab`.

    Raises
    ------
    InputError
        If one has no name or value.

    Examples
    --------
    >>> parse_slurm_options(["account=lab", "qos=long"])
    {'account': 'lab', 'qos': 'long'}
    """
    pairs = {}
    for option in options:
        name, separator, value = option.lstrip("-").partition("=")
        if not (name and separator and value):
            raise InputError(
                f"--slurm-option {option!r} has no name or value; expected e.g. account=lab."
            )
        pairs[name] = value
    return pairs
