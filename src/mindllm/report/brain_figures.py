"""The report's pictures, each for light and dark pages, and where the tokens look in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mindllm.fmri.masker import VoxelSpace
from mindllm.model.attention_maps import NOWHERE, attention_by_region, attention_mass
from mindllm.model.modeling import MindLLM
from mindllm.plotting.brain import attention_picture, voxel_picture
from mindllm.report.figures import calibration_figure, confusion_figure, interval_figure

EACH = 6  # up to this many people have brain pictures of their own
REGIONS = 10


def draw(
    model: MindLLM, spaces: Sequence[VoxelSpace], content: Mapping[str, Any]
) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """PNG bytes under `<kind>|<whose>|<light or dark>`, and the regions looked at most per parcellation."""
    looked = [attention_mass(model, space) * len(space) for space in spaces]
    groups = [("all", list(range(len(spaces))))]
    if 1 < len(spaces) <= EACH:
        groups += [(space.name, [i]) for i, space in enumerate(spaces)]
    pictures: dict[str, bytes] = {}
    for dark, theme in ((False, "light"), (True, "dark")):
        pictures[f"intervals|all|{theme}"] = interval_figure(content["rows"], dark=dark)
        pictures[f"calibration|all|{theme}"] = calibration_figure(content["meta"]["calibration"], dark)
        if content["meta"]["confusion"]:
            pictures[f"confusion|all|{theme}"] = confusion_figure(content["meta"]["confusion"], dark)
        for name, members in groups:
            some = [spaces[i] for i in members]
            pictures[f"voxels|{name}|{theme}"] = voxel_picture(some, dark)
            pictures[f"attention|{name}|{theme}"] = attention_picture(some, [looked[i] for i in members], dark)
    return pictures, top_regions([attention_by_region(model, space) for space in spaces])


def top_regions(tables: Sequence[pd.DataFrame]) -> list[dict[str, Any]]:
    """The regions with the most attention, per parcellation: shares averaged over people, 0 for who lacks the region."""
    table = pd.concat(tables)
    table = table[table["region"] != NOWHERE]
    if not len(table):
        return []
    shares = table.groupby(["parcellation", "region"])[["attention", "voxel_share"]].sum() / len(tables)
    shares = shares.assign(times_uniform=shares["attention"] / shares["voxel_share"]).reset_index()
    top = shares.sort_values("attention", ascending=False).groupby("parcellation", sort=True).head(REGIONS)
    return [
        {str(k): float(v) if isinstance(v, (float, np.floating)) else v for k, v in row.items()}
        for row in top.sort_values(["parcellation", "attention"], ascending=[True, False]).to_dict("records")
    ]
