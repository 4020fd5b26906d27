"""Prepare BIDS derivatives: single-trial betas, masks, atlases and captions become a store.

Run `make demo` first: it leaves simulated BIDS derivatives in runs/demo/bids.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from mindllm.datasets.bids import BIDSReader
from mindllm.report.store_report import inspect_store

DEMO = Path("runs/demo")
with TemporaryDirectory() as folder:
    store = BIDSReader(DEMO / "bids").prepare(f"{folder}/store", val_fraction=0.0)
    for subject in store.subjects:
        print(subject, store.masker(subject), f"{len(store.trials(subject))} trials")
    for check in inspect_store(store).checks:
        print("pass" if check.passed else "WARN", check.name, "-", check.message)
