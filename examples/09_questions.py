"""Ask questions: add a source of your own captions to a store, and ask for it about trials.

Run `make demo` first: it leaves a store and a model in runs/demo.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from mindllm import MindLLM, Store
from mindllm.evaluation.question_answering import evaluate_qa

DEMO = Path("runs/demo")
store = Store(DEMO / "store")
print("sources:", sorted(set(store.conversations["source"])))
model = MindLLM.from_pretrained(DEMO / "model")
left_out = store.subjects[-1]
betas = store.betas(left_out, [0, 1], standardize=True)
print(model.decode(betas, store.masker(left_out), question="Is there an animal?"))
with TemporaryDirectory() as folder:
    source = str(store.conversations["source"].iloc[0])
    result = evaluate_qa(model, store, source, f"{folder}/answers", subjects=[left_out])
    print(result.to_frame())
