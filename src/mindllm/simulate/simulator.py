"""Simulated fMRI of subjects with real anatomy who look at scenes with known captions.

Scenes are combinations of five attributes ("two women running on a beach with a ball"). Each value
of an attribute has one smooth pattern in MNI space, the same in all subjects, in the parcels that
the literature names for it. A subject has these patterns displaced and scaled by the subject's own
anatomy, has patterns of its own, and noise. Because all of this is known, so is the best that any
decoder could do: see `ideal_observer_accuracy`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mindllm.simulate.bids_writer import write_experiment, write_subject, write_tsv
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.ideal_observer import SubjectPrior, ideal_observer_accuracy
from mindllm.simulate.subject import SimulatedSubject, simulate_subject
from mindllm.simulate.world import SimulatedExperiment, build_experiment
from mindllm.utils.files import check_not_exists, read_json, write_json
from mindllm.utils.folders import atomic_directory


@dataclass(frozen=True, slots=True)
class SubjectTruth:
    """What truth.json says about a subject.

    Attributes
    ----------
    voxels : int
        Number of voxels.
    constant_voxels : int
        Number of voxels that never vary.
    noise_ceiling_90th_percentile : float
        In percent, over voxels.
    identification : dict of str to float
        Accuracy of the ideal observers.
    """

    voxels: int
    constant_voxels: int
    noise_ceiling_90th_percentile: float
    identification: dict[str, float]


def simulate(
    out: str | Path,
    config: SimulateConfig | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Path:
    """Write a simulated data set as BIDS derivatives to a new folder.

    Parameters
    ----------
    out : str or Path
        The folder to make.
    config : SimulateConfig, optional
        What to simulate.
    on_step : callable, optional
        Called with one line of text per step.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        If `out` already holds something, or if the atlases are missing or not as expected.
    """
    out, config = Path(out), config or SimulateConfig()
    report = on_step or (lambda line: None)
    check_not_exists(out)
    report("building the anatomy, the scenes and the patterns")
    experiment = build_experiment(config)
    with atomic_directory(out) as folder:
        write_experiment(folder, experiment)
        prior, truths = SubjectPrior.draw(experiment), {}
        for index in range(config.n_subjects):
            subject = simulate_subject(experiment, index)
            write_subject(folder, experiment, subject)
            truths[subject.subject] = describe_subject(experiment, subject, prior)
            n_voxels, n_trials = len(subject.voxel_indices), len(subject.betas)
            report(f"{subject.subject}: {n_voxels} voxels, {n_trials} trials")
        write_truth(folder, experiment, truths)
    return out


def describe_subject(
    experiment: SimulatedExperiment, subject: SimulatedSubject, prior: SubjectPrior
) -> SubjectTruth:
    """Describe a subject for truth.json."""
    return SubjectTruth(
        voxels=len(subject.voxel_indices),
        constant_voxels=int((~subject.varies).sum()),
        noise_ceiling_90th_percentile=float(np.percentile(subject.noise_ceiling, 90)),
        identification=ideal_observer_accuracy(experiment, subject, prior),
    )


def write_truth(
    folder: Path, experiment: SimulatedExperiment, truths: dict[str, SubjectTruth]
) -> None:
    """Write participants.tsv and truth.json, which says what was simulated."""
    n_voxels = [truth.voxels for truth in truths.values()]
    participants = pd.DataFrame({"participant_id": list(truths), "n_voxels": n_voxels})
    write_tsv(folder / "participants.tsv", participants)
    accuracies = pd.DataFrame([truth.identification for truth in truths.values()])
    config = experiment.config
    content = {
        "seed": config.seed,
        "config": config.model_dump(),
        "stimuli": experiment.stimuli["split"].value_counts().to_dict(),
        "attributes": {name: list(values) for name, values in config.attributes.items()},
        "tunings": [asdict(tuning) for tuning in config.tunings],
        "chance_level": 1 / config.test_stimuli,
        "identification": accuracies.mean().to_dict(),
        "subjects": {subject: asdict(truth) for subject, truth in truths.items()},
    }
    write_json(folder / "truth.json", content)


def summary(folder: str | Path) -> str:
    """Summarize a simulated data set in two sentences."""
    truth = read_json(Path(folder) / "truth.json", "a simulated data set")
    n_voxels = [subject["voxels"] for subject in truth["subjects"].values()]
    accuracy, stimuli = truth["identification"], truth["stimuli"]
    return (
        f"{len(n_voxels)} simulated subjects, {min(n_voxels):,}-{max(n_voxels):,} voxels, "
        f"{sum(stimuli.values())} scenes ({stimuli['test']} for the test). An ideal observer "
        f"identifies {accuracy['known_subject_single_trial']:.0%} of the scenes from one trial of "
        f"a known subject, {accuracy['unseen_subject_single_trial']:.0%} of an unseen subject "
        f"(chance {truth['chance_level']:.1%})."
    )
