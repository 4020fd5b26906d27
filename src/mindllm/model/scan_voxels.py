"""Voxels of a scan that comes as files: a masker in a model's parcels."""

from collections.abc import Mapping

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import Image
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError


def resolve_masker(
    model: MindLLM, mask_or_masker: Image | VoxelMasker, atlases: Mapping[str, Image]
) -> VoxelMasker:
    """The masker itself, or one of a mask and atlases; InputError for an atlas that is unknown.

    A model may know parcels by number alone; such an atlas needs no lookup table.
    """
    if isinstance(mask_or_masker, VoxelMasker):
        return mask_or_masker
    known = model.encoder.parcel_names
    if unknown := sorted(set(atlases) - set(known)):
        raise InputError(
            f"the model knows no atlas {', '.join(unknown)}; "
            f"it knows {', '.join(known) or 'none'}. "
            "Give these names to your atlases, or leave an atlas out."
        )
    numbered = {
        atlas: {int(name): name for name in names if name.isdecimal()}
        for atlas, names in known.items()
    }
    parcel_names = {atlas: names for atlas, names in numbered.items() if names}
    return VoxelMasker.from_mask_img(mask_or_masker, atlases, parcel_names=parcel_names)
