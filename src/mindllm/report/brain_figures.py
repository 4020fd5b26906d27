"""The report's pictures, each for light and dark pages, and where the tokens look in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mindllm.fmri.masker import VoxelMasker
from mindllm.model.attention_maps import NOWHERE, attention_by_parcel, attention_mass
from mindllm.model.modeling import MindLLM
from mindllm.plotting.brain import plot_attention, plot_voxel_coverage
from mindllm.report.figures import calibration_figure, confusion_figure, interval_figure

EACH = 6  # up to this many people have brain pictures of their own
REGIONS = 10


def draw_figures(
    model: MindLLM, spaces: Sequence[VoxelMasker], content: Mapping[str, Any]
) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """PNG bytes under `<kind>|<whose>|<light or dark>`, and the regions looked at most per parcellation."""
    looked = [attention_mass(model, space) * len(space) for space in spaces]
    groups = [("all", list(range(len(spaces))))]
    if 1 < len(spaces) <= EACH:
        groups += [(space.subject, [i]) for i, space in enumerate(spaces)]
    pictures: dict[str, bytes] = {}
    for dark, theme in ((False, "light"), (True, "dark")):
        pictures[f"intervals|all|{theme}"] = interval_figure(content["rows"], dark=dark)
        pictures[f"calibration|all|{theme}"] = calibration_figure(
            content["meta"]["calibration"], dark
        )
        if content["meta"]["confusion"]:
            pictures[f"confusion|all|{theme}"] = confusion_figure(
                content["meta"]["confusion"], dark
            )
        for name, members in groups:
            some = [spaces[i] for i in members]
            pictures[f"voxels|{name}|{theme}"] = plot_voxel_coverage(some, dark)
            pictures[f"attention|{name}|{theme}"] = plot_attention(
                some, [looked[i] for i in members], dark
            )
    return pictures, top_parcels([attention_by_parcel(model, space) for space in spaces])


def top_parcels(tables: Sequence[pd.DataFrame]) -> list[dict[str, Any]]:
    """The regions with the most attention, per parcellation: shares averaged over people, 0 for who lacks the region."""
    table = pd.concat(tables)
    table = table[table["region"] != NOWHERE]
    if not len(table):
        return []
    shares = table.groupby(["parcellation", "region"])[["attention", "voxel_share"]].sum() / len(
        tables
    )
    shares = shares.assign(times_uniform=shares["attention"] / shares["voxel_share"]).reset_index()
    top = (
        shares.sort_values("attention", ascending=False)
        .groupby("parcellation", sort=True)
        .head(REGIONS)
    )
    return [
        {str(k): float(v) if isinstance(v, (float, np.floating)) else v for k, v in row.items()}
        for row in top.sort_values(["parcellation", "attention"], ascending=[True, False]).to_dict(
            "records"
        )
    ]
