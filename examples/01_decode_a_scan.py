"""Decode a scan: NIfTI image, mask and model in, one text per volume out.

Run `make demo` first: it leaves a model and simulated subjects in runs/demo.
"""

from pathlib import Path

from mindllm import MindLLM
from mindllm.model.decode import decode

DEMO = Path("runs/demo")
subject = sorted((DEMO / "bids").glob("sub-*"))[-1]  # left out of training
scan = next(subject.rglob("*_desc-SingletrialBetas_statmap.nii.gz"))
mask = next(subject.rglob("*_desc-brain_mask.nii.gz"))
atlas = next((DEMO / "bids").glob("atlas-HCPEx_*_dseg.nii.gz"))

model = MindLLM.from_pretrained(DEMO / "model")
atlases = {"HCPEx": atlas} if "HCPEx" in model.encoder.parcel_names else None
for volume in decode(model, scan, mask, atlases, volumes=[0, 1, 2]):
    print(volume.volume, volume.text, f"({volume.log_likelihood_ratio:+.1f} nats)")
