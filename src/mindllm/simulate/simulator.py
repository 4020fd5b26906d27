"""A simulator with planted truth: people with real anatomy who look at scenes whose every word is known.

Scenes are combinations of five attributes ("two women running on a beach with a ball"). Each value of an attribute
has one smooth pattern in MNI space, the same in everybody, in the regions that the literature names for it. A person
sees that code through their own anatomy (a smooth displacement and gain), adds patterns of their own, and noise.
Because all of this is known, so is the best that any decoder could do: see `noise_ceiling_identification`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from mindllm.simulate.bids_writer import write_experiment, write_subject, write_tsv
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.ideal_observer import SubjectPrior, ideal_observer_accuracy
from mindllm.simulate.scenes import ATTRIBUTES, TUNINGS
from mindllm.simulate.subject import simulate_subject
from mindllm.simulate.world import build_experiment
from mindllm.utils.files import atomic_directory, check_not_exists, read_json, write_json


def simulate(
    out: Path, config: SimulateConfig | None = None, progress: Callable[[str], None] | None = None
) -> Path:
    """Write a simulated data set as BIDS derivatives to the new folder `out`; `progress` hears one line per step.

    Raises InputError if `out` already holds something, or if the atlases are missing or not as expected.
    """
    config, tell = config or SimulateConfig(), progress or (lambda line: None)
    check_not_exists(out)
    tell("laying out the anatomy, the scenes and the code")
    world = build_experiment(config)
    with atomic_directory(out) as folder:
        write_experiment(folder, world)
        population, truth = SubjectPrior.draw(world), {}
        for index in range(config.n_subjects):
            person = simulate_subject(world, index)
            write_subject(folder, world, person)
            truth[person.subject] = {"voxels": len(person.voxel_indices), "constant_voxels": int((~person.varies).sum()),
                                  "noise_ceiling_90th_percentile": float(np.percentile(person.noise_ceiling, 90)),
                                  "identification": ideal_observer_accuracy(world, person, population)}  # fmt: skip
            tell(
                f"{person.subject}: {len(person.voxel_indices)} voxels, {len(person.betas)} trials"
            )
        write_tsv(
            folder / "participants.tsv",
            pd.DataFrame(
                {"participant_id": list(truth), "n_voxels": [t["voxels"] for t in truth.values()]}
            ),
        )
        ceilings = pd.DataFrame([t["identification"] for t in truth.values()]).mean().to_dict()
        write_json(folder / "truth.json", {
            "seed": config.seed, "config": config.model_dump(), "stimuli": world.stimuli["split"].value_counts().to_dict(),
            "attributes": {name: list(values) for name, values in ATTRIBUTES.items()}, "tunings": [t._asdict() for t in TUNINGS],
            "chance": 1 / config.test_stimuli, "identification": ceilings, "people": truth,
        })  # fmt: skip
    return out


def summary(folder: Path) -> str:
    """One line about a simulated data set, for people."""
    truth = read_json(folder / "truth.json", "a simulated data set")
    voxels, best = [p["voxels"] for p in truth["people"].values()], truth["identification"]
    return (
        f"{len(voxels)} simulated people, {min(voxels):,}-{max(voxels):,} voxels, {sum(truth['stimuli'].values())} scenes ({truth['stimuli']['test']} for the test). "
        f"One trial can name its scene {best['known_person_single_trial']:.0%} of the time at best, {best['unseen_person_single_trial']:.0%} in a person never seen before (chance {truth['chance']:.1%})."
    )
