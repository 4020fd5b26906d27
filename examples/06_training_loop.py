"""Write your own training loop: TrialDataset in a DataLoader, `model(**batch).loss`.

Run `make demo` first: it leaves a store and a model in runs/demo.
"""

from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from mindllm import MindLLM, Store, TrialDataset

DEMO = Path("runs/demo")
model = MindLLM.from_pretrained(DEMO / "model")
store = Store(DEMO / "store")
dataset = TrialDataset(store, split="train", processor=model.processor)
loader = DataLoader(dataset, batch_size=8, shuffle=True, collate_fn=dataset.collate_fn)
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-4)
for step, batch in enumerate(islice(loader, 3)):
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.3f}")
