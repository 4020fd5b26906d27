"""Train on some subjects, evaluate on one that was left out, beside its controls.

Run `make demo` first: it leaves a store in runs/demo/store. A few steps only, to show the calls.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from mindllm import MindLLM, Store, evaluate
from mindllm.report.write import write_report
from mindllm.training.configuration import TrainConfig
from mindllm.training.trainer import train

DEMO = Path("runs/demo")
store = Store(DEMO / "store")
*training_subjects, left_out = store.subjects
config = TrainConfig(
    language_model=MindLLM.from_pretrained(DEMO / "model").language_model.name,
    alignment={"max_steps": 20},
    instruction_tuning={"max_steps": 5},
)
with TemporaryDirectory() as folder:
    model = train(store, f"{folder}/model", config, subjects=training_subjects)
    result = evaluate(model, store, subjects=[left_out], split="train")
    for row in result.scores:
        if row.metric == "identification_top1" and row.value is not None:
            print(f"{row.condition:24s} {row.value:.3f}  chance {row.chance_level}")
    write_report(result, f"{folder}/report", model=model, store=store)
    print(sorted(path.name for path in Path(f"{folder}/report").iterdir()))
