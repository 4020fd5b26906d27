"""Simulated stimuli: scenes of five attributes, their captions, and the parcels that they drive."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

# attribute -> value -> its words; agents have a singular and a plural.
ATTRIBUTES: dict[str, dict[str, str]] = {
    "number": {
        "one": "a",
        "two": "two",
        "three": "three",
        "many": "a group of",
    },
    "agent": {
        "man": "men",
        "woman": "women",
        "child": "children",
        "dog": "dogs",
        "cat": "cats",
        "horse": "horses",
    },
    "action": {
        "standing": "standing",
        "sitting": "sitting",
        "lying": "lying",
        "walking": "walking",
        "running": "running",
        "jumping": "jumping",
    },
    "place": {
        "beach": "on a beach",
        "street": "on a street",
        "bridge": "on a bridge",
        "kitchen": "in a kitchen",
        "bedroom": "in a bedroom",
        "forest": "in a forest",
        "desert": "in a desert",
        "stadium": "in a stadium",
    },
    "object": {
        "pizza": "a pizza",
        "cake": "a cake",
        "banana": "a banana",
        "sandwich": "a sandwich",
        "ball": "a ball",
        "umbrella": "an umbrella",
        "guitar": "a guitar",
        "phone": "a phone",
    },
}
# Where the agent is in the image, with `with_questions` alone; captions do not say it.
POSITIONS: dict[str, dict[str, str]] = {
    "position": {
        "upper_left": "upper left",
        "upper_right": "upper right",
        "lower_left": "lower left",
        "lower_right": "lower right",
    },
}
# The first is the answer that identification compares, so every stimulus has it in the same form.
TEMPLATES = (
    "{agent} {action} {place} with {object}",
    "there {be} {agent} {action} {place} with {object}",
    "{agent} with {object} {action} {place}",
    "{place}, {agent} {be} {action} with {object}",
    "{object} and {agent} {action} {place}",
)


@dataclass(frozen=True)
class Tuning:
    """Values of an attribute that drive parcels.

    The pattern of a value in the parcels is weight x (random field of the value + preference).

    Attributes
    ----------
    attribute : str
        The attribute.
    values : tuple of str
        Its values that drive the parcels; empty: all of them.
    parcels : tuple of str
        HCPEx names without the hemisphere.
    weight : float
        Size of the patterns.
    preference : float
        How much all these values raise the parcels together.
    source : str
        Publications that the tuning is taken from.
    """

    attribute: str
    values: tuple[str, ...]
    parcels: tuple[str, ...]
    weight: float
    preference: float
    source: str


TUNINGS = (
    Tuning(
        attribute="agent",
        values=(),
        parcels=(
            "Fusiform_Face_Complex",
            "Posterior_InferoTemporal_complex",
            "Area_Lateral_Occipital_2",
            "Area_PH",
        ),
        weight=1.0,
        preference=0.0,
        source=(
            "faces and animals differ along the fusiform and lateral occipital "
            "cortex: Konkle & Caramazza 2013"
        ),
    ),
    Tuning(
        attribute="agent",
        values=(
            "man",
            "woman",
            "child",
        ),
        parcels=(
            "Fusiform_Face_Complex",
            "Posterior_InferoTemporal_complex",
        ),
        weight=0.5,
        preference=2.0,
        source="FFA and OFA prefer faces: Kanwisher et al. 1997; Gauthier et al. 2000",
    ),
    Tuning(
        attribute="agent",
        values=(),
        parcels=(
            "Area_V4t",
            "Area_TemporoParietoOccipital_Junction_2",
            "Area_TemporoParietoOccipital_Junction_3",
        ),
        weight=0.7,
        preference=0.0,
        source="EBA tells bodies apart: Downing et al. 2001",
    ),
    Tuning(
        attribute="action",
        values=(),
        parcels=(
            "Middle_Temporal_Area",
            "Medial_Superior_Temporal_Area",
            "Area_FST",
            "Area_V3A",
            "Area_V3B",
        ),
        weight=1.0,
        preference=0.0,
        source="MT and MST carry motion: Tootell et al. 1995; Huk et al. 2002",
    ),
    Tuning(
        attribute="action",
        values=(
            "walking",
            "running",
            "jumping",
        ),
        parcels=(
            "Middle_Temporal_Area",
            "Medial_Superior_Temporal_Area",
            "Area_FST",
        ),
        weight=0.5,
        preference=2.0,
        source="moving more than still: Tootell et al. 1995",
    ),
    Tuning(
        attribute="action",
        values=(),
        parcels=(
            "Area_STSd_posterior",
            "Area_STSv_posterior",
            "Area_TemporoParietoOccipital_Junction_1",
            "Superior_Temporal_Visual_Area",
        ),
        weight=0.8,
        preference=0.0,
        source="posterior STS reads actions: Grossman & Blake 2002",
    ),
    Tuning(
        attribute="place",
        values=(),
        parcels=(
            "ParaHippocampal_Area_1",
            "ParaHippocampal_Area_2",
            "ParaHippocampal_Area_3",
            "VentroMedial_Visual_Area_1",
            "VentroMedial_Visual_Area_2",
            "VentroMedial_Visual_Area_3",
        ),
        weight=1.0,
        preference=0.0,
        source="PPA: Epstein & Kanwisher 1998",
    ),
    Tuning(
        attribute="place",
        values=(),
        parcels=(
            "Parieto-Occipital_Sulcus_Area_1",
            "Dorsal_Transitional_Visual_Area",
            "ProStriate_Area",
            "Area_V3CD",
            "Area_IntraParietal_0",
        ),
        weight=0.8,
        preference=0.0,
        source="RSC and OPA: Epstein 2008; Dilks et al. 2013",
    ),
    Tuning(
        attribute="object",
        values=(),
        parcels=(
            "Area_Lateral_Occipital_1",
            "Area_Lateral_Occipital_3",
            "Area_PH",
            "Eighth_Visual_Area",
            "Ventral_Visual_Complex",
        ),
        weight=1.0,
        preference=0.0,
        source="LOC and ventral cortex tell objects apart: Grill-Spector et al. 2001",
    ),
    Tuning(
        attribute="object",
        values=(
            "pizza",
            "cake",
            "banana",
            "sandwich",
        ),
        parcels=(
            "Ventral_Visual_Complex",
            "Eighth_Visual_Area",
        ),
        weight=0.5,
        preference=2.0,
        source=("food in the ventral visual cortex: Jain et al. 2023; Khosla et al. 2022"),
    ),
    Tuning(
        attribute="object",
        values=(
            "ball",
            "umbrella",
            "guitar",
            "phone",
        ),
        parcels=(
            "Area_PHT",
            "Anterior_IntraParietal_Area",
        ),
        weight=0.7,
        preference=1.0,
        source="things to handle: Chao & Martin 2000",
    ),
    Tuning(
        attribute="number",
        values=(),
        parcels=(
            "IntraParietal_Sulcus_Area_1",
            "Area_IntraParietal_1",
            "Area_IntraParietal_2",
            "Area_Lateral_IntraParietal_dorsal",
            "Area_Lateral_IntraParietal_ventral",
            "Medial_IntraParietal_Area",
            "Ventral_IntraParietal_Complex",
            "Lateral_Area_7P",
        ),
        weight=1.0,
        preference=0.0,
        source="number in the intraparietal sulcus: Harvey et al. 2013",
    ),
    Tuning(
        attribute="number",
        values=(
            "two",
            "three",
            "many",
        ),
        parcels=(
            "Area_STSd_posterior",
            "Superior_Temporal_Visual_Area",
        ),
        weight=0.5,
        preference=1.0,
        source="company in the posterior STS: Isik et al. 2017",
    ),
)
# Visual and visually responsive cortex that is measured but drives nothing.
UNTUNED = (
    "Primary_Visual_Cortex",
    "Second_Visual_Area",
    "Third_Visual_Area",
    "Fourth_Visual_Area",
    "Sixth_Visual_Area",
    "Area_V6A",
    "Seventh_Visual_Area",
    "Area_TE1_posterior",
    "Area_TE2_posterior",
    "Medial_Area_7P",
    "Lateral_Area_7A",
    "Area_PGp",
    "Area_STSd_anterior",
    "Area_STSv_anterior",
)


# Early visual areas are retinotopic: a position in the image is one in the cortex.
POSITION_TUNING = Tuning(
    attribute="position",
    values=(),
    parcels=(
        "Primary_Visual_Cortex",
        "Second_Visual_Area",
        "Third_Visual_Area",
        "Fourth_Visual_Area",
    ),
    weight=1.0,
    preference=0.0,
    source="early visual areas are retinotopic: Engel et al. 1994; Sereno et al. 1995",
)


def draw_positions(rng: np.random.Generator, stimuli: pd.DataFrame) -> pd.Series:
    """Draw the position of each scene's agent, each equally frequent within each split."""
    drawn = pd.Series(index=stimuli.index, dtype=str)
    for _, part in stimuli.groupby("split"):
        values = np.resize(list(POSITIONS["position"]), len(part))
        drawn[part.index] = rng.permutation(values)
    return drawn


def draw_stimuli(rng: np.random.Generator, counts: Mapping[str, int]) -> pd.DataFrame:
    """Draw distinct scenes; the values of each attribute are equally frequent within each split.

    Parameters
    ----------
    rng : np.random.Generator
        Source of randomness.
    counts : mapping of str to int
        How many scenes each split has.

    Returns
    -------
    pd.DataFrame
        Columns `stimulus`, `split` and one per attribute.
    """
    parts = []
    for split, count in counts.items():
        columns = {
            name: rng.permutation(np.resize(list(values), count))
            for name, values in ATTRIBUTES.items()
        }
        parts.append(pd.DataFrame({"split": split, **columns}))
    stimuli = pd.concat(parts, ignore_index=True)
    attributes = list(ATTRIBUTES)
    while (repeated := stimuli.duplicated(attributes, keep=False)).any():
        row = int(rng.choice(np.flatnonzero(repeated)))
        other = int(rng.choice(np.flatnonzero(stimuli["split"] == stimuli.at[row, "split"])))
        # Swapping one value between two scenes keeps the values equally frequent.
        attribute = rng.choice(attributes)
        stimuli.loc[[row, other], attribute] = stimuli.loc[[other, row], attribute].to_numpy()
    order = rng.permutation(len(stimuli))  # a stimulus's name says nothing about its split
    stimuli.insert(0, "stimulus", [f"scene{number + 1:04d}" for number in order])
    return stimuli.sort_values("stimulus", ignore_index=True)


def write_captions(scene: Mapping[Hashable, str]) -> list[str]:
    """Write the captions of a scene (attribute -> value); the first has the same form for all.

    Examples
    --------
    >>> scene = {"number": "two", "agent": "dog", "action": "running", "place": "beach"}
    >>> write_captions(scene | {"object": "ball"})[0]
    'two dogs running on a beach with a ball'
    """
    words = {name: values[scene[name]] for name, values in ATTRIBUTES.items()}
    singular = scene["number"] == "one"
    agent = f"{words['number']} {scene['agent'] if singular else words['agent']}"
    be = "is" if singular or scene["number"] == "many" else "are"
    return [template.format(**(words | {"agent": agent, "be": be})) for template in TEMPLATES]


def draw_captions(count: int, seed: int) -> list[str]:
    """Draw scenes at random and write the first caption of each; equal ones once.

    Examples
    --------
    >>> len(draw_captions(3, seed=0))
    3
    """
    rng = np.random.default_rng(seed)
    columns = {name: rng.choice(list(values), count) for name, values in ATTRIBUTES.items()}
    scenes = pd.DataFrame(columns).to_dict("records")
    return list(dict.fromkeys(write_captions(scene)[0] for scene in scenes))


def name_values(attribute: str) -> list[list[str]]:
    """Words that name each value of an attribute in captions, singular and plural.

    Examples
    --------
    >>> name_values("agent")[0], name_values("place")[0]
    (['man', 'men'], ['beach'])
    """
    values = ATTRIBUTES[attribute]
    if attribute == "agent":
        return [[singular, plural] for singular, plural in values.items()]
    if attribute == "number":
        return [[f"{words} {agent}" for agent in agents(words)] for words in values.values()]
    return [[value] for value in values]


def agents(number_words: str) -> list[str]:
    """Words for agents after a number."""
    forms = ATTRIBUTES["agent"].items()
    return [singular if number_words == "a" else plural for singular, plural in forms]
