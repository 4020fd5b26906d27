"""TextDecoder: fit, predict and score on images and captions, as a scikit-learn estimator.

Run `make demo` first: it leaves simulated subjects in runs/demo/bids.
"""

from pathlib import Path

import pandas as pd

from mindllm import MindLLM, Store, TextDecoder

DEMO = Path("runs/demo")
store = Store(DEMO / "store")
first, second = store.subjects[:2]
texts = store.conversations.drop_duplicates("stimulus").set_index("stimulus")["answers"]


def load(subject: str) -> tuple[object, list[str]]:
    """Image and captions of a subject's trials that have a caption."""
    trials: pd.DataFrame = store.trials(subject)
    rows = trials.index[trials["stimulus"].isin(texts.index)].to_numpy()
    img = store.masker(subject).inverse_transform(store.betas(subject, rows))
    return img, [str(texts[s][0]) for s in trials["stimulus"].iloc[rows]]


decoder = TextDecoder(
    language_model=MindLLM.from_pretrained(DEMO / "model").language_model.name,
    training_options={"alignment": {"max_steps": 20}, "instruction_tuning": {"max_steps": 5}},
)
img, captions = load(first)
decoder.fit([img], [captions], subjects=[first])
img, captions = load(second)
print(decoder.predict([img], [second])[:3])
print(decoder.identify([img], [captions], [second]))
