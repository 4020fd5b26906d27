"""Compare two models on the same trials: paired differences with intervals.

Run `make demo` first. The second model here is the first one with its queries shuffled.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mindllm import MindLLM, Store, evaluate
from mindllm.evaluation.compare import compare

DEMO = Path("runs/demo")
store = Store(DEMO / "store")
with TemporaryDirectory() as folder:
    for name in ("first", "second"):
        model = MindLLM.from_pretrained(DEMO / "model")
        if name == "second":
            order = torch.randperm(len(model.encoder.queries))
            model.encoder.queries.data = model.encoder.queries.data[order]
        result = evaluate(model, store, subjects=store.subjects[-1:], split="train")
        result.save(f"{folder}/{name}")
    comparison = compare(f"{folder}/first", f"{folder}/second")
    for row in comparison.rows:
        print(row.metric, f"{row.first:.3f} {row.second:.3f}", f"difference {row.difference:+.3f}")
