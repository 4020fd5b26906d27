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

from mindllm.simulate.bids_writer import write_person, write_tsv, write_world
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.ideal_observer import Population, noise_ceiling_identification
from mindllm.simulate.scenes import ATTRIBUTES, TUNINGS
from mindllm.simulate.subject import simulate_person
from mindllm.simulate.world import build_world
from mindllm.utils.files import read_json, refuse_existing, whole_folder, write_json


def simulate(out: Path, config: SimulateConfig | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """Write a simulated data set as BIDS derivatives to the new folder `out`; `progress` hears one line per step.

    Raises InputError if `out` already holds something, or if the atlases are missing or not as expected.
    """
    config, tell = config or SimulateConfig(), progress or (lambda line: None)
    refuse_existing(out)
    tell("laying out the anatomy, the scenes and the code")
    world = build_world(config)
    with whole_folder(out) as folder:
        write_world(folder, world)
        population, truth = Population.draw(world), {}
        for index in range(config.people):
            person = simulate_person(world, index)
            write_person(folder, world, person)
            truth[person.name] = {"voxels": len(person.ijk), "constant_voxels": int((~person.varies).sum()),
                                  "noise_ceiling_90th_percentile": float(np.percentile(person.noise_ceiling, 90)),
                                  "identification": noise_ceiling_identification(world, person, population)}  # fmt: skip
            tell(f"{person.name}: {len(person.ijk)} voxels, {len(person.values)} trials")
        write_tsv(
            folder / "participants.tsv",
            pd.DataFrame({"participant_id": list(truth), "n_voxels": [t["voxels"] for t in truth.values()]}),
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
