"""Map where the model attends: a NIfTI image per subject, and a table of parcels.

Run `make demo` first: it leaves a model and a store in runs/demo.
"""

from pathlib import Path

import nibabel as nib

from mindllm import MindLLM, Store
from mindllm.model.attention_maps import attention_by_parcel, attention_map

DEMO = Path("runs/demo")
model, store = MindLLM.from_pretrained(DEMO / "model"), Store(DEMO / "store")
masker = store.masker(store.subjects[-1])
img = attention_map(model, masker)
nib.save(img, DEMO / "attention.nii.gz")
print(f"{DEMO / 'attention.nii.gz'}: {img.shape}, open it in any viewer")
table = attention_by_parcel(model, masker)
print(table.sort_values("relative_attention", ascending=False).head(10).to_string(index=False))
