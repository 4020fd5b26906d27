"""What simulated people look at: scenes made of five attributes, their captions, and the regions that each drives."""

from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

# attribute -> value -> its words; agents have a singular and a plural.
ATTRIBUTES: dict[str, dict[str, str]] = {
    "number": {"one": "a", "two": "two", "three": "three", "many": "a group of"},
    "agent": {"man": "men", "woman": "women", "child": "children", "dog": "dogs", "cat": "cats", "horse": "horses"},
    "action": {name: name for name in ("standing", "sitting", "lying", "walking", "running", "jumping")},
    "place": {"beach": "on a beach", "street": "on a street", "bridge": "on a bridge", "kitchen": "in a kitchen",
              "bedroom": "in a bedroom", "forest": "in a forest", "desert": "in a desert", "stadium": "in a stadium"},
    "object": {"pizza": "a pizza", "cake": "a cake", "banana": "a banana", "sandwich": "a sandwich",
               "ball": "a ball", "umbrella": "an umbrella", "guitar": "a guitar", "phone": "a phone"},
}  # fmt: skip
# The first is the answer that identification compares, so every stimulus has it in the same form.
TEMPLATES = (
    "{agent} {action} {place} with {object}",
    "there {be} {agent} {action} {place} with {object}",
    "{agent} with {object} {action} {place}",
    "{place}, {agent} {be} {action} with {object}",
    "{object} and {agent} {action} {place}",
)


class Tuning(NamedTuple):
    """Some values of an attribute drive some regions: pattern = weight x (field of the value + preference)."""

    attribute: str
    values: tuple[str, ...]  # () = all of them
    regions: tuple[str, ...]  # HCPEx names without the hemisphere
    weight: float
    preference: float  # how much all these values raise the regions together
    source: str


TUNINGS = (
    Tuning("agent", (), ("Fusiform_Face_Complex", "Posterior_InferoTemporal_complex", "Area_Lateral_Occipital_2", "Area_PH"), 1.0, 0.0, "faces and animals differ along the fusiform and lateral occipital cortex: Konkle & Caramazza 2013"),
    Tuning("agent", ("man", "woman", "child"), ("Fusiform_Face_Complex", "Posterior_InferoTemporal_complex"), 0.5, 2.0, "FFA and OFA prefer faces: Kanwisher et al. 1997; Gauthier et al. 2000"),
    Tuning("agent", (), ("Area_V4t", "Area_TemporoParietoOccipital_Junction_2", "Area_TemporoParietoOccipital_Junction_3"), 0.7, 0.0, "EBA tells bodies apart: Downing et al. 2001"),
    Tuning("action", (), ("Middle_Temporal_Area", "Medial_Superior_Temporal_Area", "Area_FST", "Area_V3A", "Area_V3B"), 1.0, 0.0, "MT and MST carry motion: Tootell et al. 1995; Huk et al. 2002"),
    Tuning("action", ("walking", "running", "jumping"), ("Middle_Temporal_Area", "Medial_Superior_Temporal_Area", "Area_FST"), 0.5, 2.0, "moving more than still: Tootell et al. 1995"),
    Tuning("action", (), ("Area_STSd_posterior", "Area_STSv_posterior", "Area_TemporoParietoOccipital_Junction_1", "Superior_Temporal_Visual_Area"), 0.8, 0.0, "posterior STS reads actions: Grossman & Blake 2002"),
    Tuning("place", (), ("ParaHippocampal_Area_1", "ParaHippocampal_Area_2", "ParaHippocampal_Area_3", "VentroMedial_Visual_Area_1", "VentroMedial_Visual_Area_2", "VentroMedial_Visual_Area_3"), 1.0, 0.0, "PPA: Epstein & Kanwisher 1998"),
    Tuning("place", (), ("Parieto-Occipital_Sulcus_Area_1", "Dorsal_Transitional_Visual_Area", "ProStriate_Area", "Area_V3CD", "Area_IntraParietal_0"), 0.8, 0.0, "RSC and OPA: Epstein 2008; Dilks et al. 2013"),
    Tuning("object", (), ("Area_Lateral_Occipital_1", "Area_Lateral_Occipital_3", "Area_PH", "Eighth_Visual_Area", "Ventral_Visual_Complex"), 1.0, 0.0, "LOC and ventral cortex tell objects apart: Grill-Spector et al. 2001"),
    Tuning("object", ("pizza", "cake", "banana", "sandwich"), ("Ventral_Visual_Complex", "Eighth_Visual_Area"), 0.5, 2.0, "food in the ventral visual cortex: Jain et al. 2023; Khosla et al. 2022"),
    Tuning("object", ("ball", "umbrella", "guitar", "phone"), ("Area_PHT", "Anterior_IntraParietal_Area"), 0.7, 1.0, "things to handle: Chao & Martin 2000"),
    Tuning("number", (), ("IntraParietal_Sulcus_Area_1", "Area_IntraParietal_1", "Area_IntraParietal_2", "Area_Lateral_IntraParietal_dorsal", "Area_Lateral_IntraParietal_ventral", "Medial_IntraParietal_Area", "Ventral_IntraParietal_Complex", "Lateral_Area_7P"), 1.0, 0.0, "number in the intraparietal sulcus: Harvey et al. 2013"),
    Tuning("number", ("two", "three", "many"), ("Area_STSd_posterior", "Superior_Temporal_Visual_Area"), 0.5, 1.0, "company in the posterior STS: Isik et al. 2017"),
)  # fmt: skip
# Visual and visually responsive cortex that is measured but carries no planted code.
UNTUNED = (
    "Primary_Visual_Cortex", "Second_Visual_Area", "Third_Visual_Area", "Fourth_Visual_Area", "Sixth_Visual_Area",
    "Area_V6A", "Seventh_Visual_Area", "Area_TE1_posterior", "Area_TE2_posterior", "Medial_Area_7P", "Lateral_Area_7A",
    "Area_PGp", "Area_STSd_anterior", "Area_STSv_anterior",
)  # fmt: skip


def draw_stimuli(rng: np.random.Generator, counts: Mapping[str, int]) -> pd.DataFrame:
    """Distinct scenes; within each split the values of each attribute are equally frequent, so none is new in the test."""
    parts = []
    for split, count in counts.items():
        columns = {
            name: rng.permutation(np.resize(list(values), count))
            for name, values in ATTRIBUTES.items()
        }
        parts.append(pd.DataFrame({"split": split, **columns}))
    stimuli = pd.concat(parts, ignore_index=True)
    attributes = list(ATTRIBUTES)
    while (again := stimuli.duplicated(attributes, keep=False)).any():
        row = int(rng.choice(np.flatnonzero(again)))
        other = int(rng.choice(np.flatnonzero(stimuli["split"] == stimuli.at[row, "split"])))
        attribute = rng.choice(
            attributes
        )  # swapping one value between two scenes keeps the balance
        stimuli.loc[[row, other], attribute] = stimuli.loc[[other, row], attribute].to_numpy()
    order = rng.permutation(len(stimuli))  # a stimulus's name says nothing about its split
    stimuli.insert(0, "stimulus", [f"scene{number + 1:04d}" for number in order])
    return stimuli.sort_values("stimulus", ignore_index=True)


def captions_of(scene: Mapping[Hashable, str]) -> list[str]:
    """The ways to say what a scene (attribute -> value) shows; the first is the same form for every scene."""
    words = {name: values[scene[name]] for name, values in ATTRIBUTES.items()}
    one = scene["number"] == "one"
    agent = f"{words['number']} {scene['agent'] if one else words['agent']}"
    be = "is" if one or scene["number"] == "many" else "are"
    return [
        t.format(
            agent=agent, be=be, action=words["action"], place=words["place"], object=words["object"]
        )
        for t in TEMPLATES
    ]
