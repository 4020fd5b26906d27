"""Where the fMRI tokens look: the attention A is a map of the brain, the same for every trial of a person."""

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from mindllm.fmri.masker import VoxelMasker
from mindllm.model.encoder import VoxelFeatures
from mindllm.model.modeling import MindLLM

CHUNK_BYTES = 2**26
NOWHERE = "(in no region)"


@torch.inference_mode()
def attention_mass(model: MindLLM, masker: VoxelMasker | VoxelFeatures) -> np.ndarray:
    """The share of the attention that each voxel gets, averaged over the queries: (V,) float64, sums to one.

    A (N, V) is made a few queries at a time, so that 200,000 voxels and 1,024 queries fit in little memory.
    """
    encoder = model.encoder
    voxels = masker if isinstance(masker, VoxelFeatures) else encoder.prepare_voxels(masker)
    keys = encoder.compute_keys(voxels)  # (V, d)
    total = torch.zeros(len(keys), dtype=torch.float32, device=keys.device)
    for queries in encoder.queries.split(max(1, CHUNK_BYTES // (4 * len(keys)))):
        total += torch.softmax(queries @ keys.T * encoder.scale, -1).sum(0)
    mass = total.cpu().double().numpy()
    return mass / mass.sum()


def attention_map(model: MindLLM, masker: VoxelMasker) -> nib.Nifti1Image:
    """Where the tokens look, on the subject's grid: 1 = as much as if every voxel were looked at alike; 0 outside the voxels."""
    return masker.inverse_transform(
        (attention_mass(model, masker) * len(masker)).astype(np.float32)
    )


def attention_by_parcel(model: MindLLM, masker: VoxelMasker) -> pd.DataFrame:
    """Attention per region, most first: `parcellation`, `region`, `voxels`, `attention` (share; sums to one per parcellation),
    `voxel_share`, and `times_uniform` = attention / voxel_share.

    Voxels that a parcellation does not label stand together in one row, so that nothing is left out of the sum.
    """
    mass = attention_mass(model, masker)
    tables = []
    for parcellation, numbers in masker.parcel_labels.items():
        names = {0: NOWHERE} | dict(masker.parcel_names[parcellation])
        found, member = np.unique(numbers, return_inverse=True)
        counts = np.bincount(member)
        table = pd.DataFrame(
            {
                "parcellation": parcellation,
                "region": [names[int(n)] for n in found],
                "voxels": counts,
            }
        )
        table = table.assign(attention=np.bincount(member, mass), voxel_share=counts / len(masker))
        tables.append(table.sort_values("attention", ascending=False, kind="stable"))
    columns = ["parcellation", "region", "voxels", "attention", "voxel_share"]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    return table.assign(times_uniform=table["attention"] / table["voxel_share"])
