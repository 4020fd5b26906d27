"""Share a model: save it with its model card, load it again, push it to the Hugging Face hub.

Run `make demo` first. `python examples/10_share_on_the_hub.py lab/name` pushes (after `hf auth
login`); without a name, the model is saved to a folder and loaded from there.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from mindllm import MindLLM

DEMO = Path("runs/demo")
model = MindLLM.from_pretrained(DEMO / "model")
if len(sys.argv) > 1:
    print(model.push_to_hub(sys.argv[1]))
else:
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        print((Path(folder) / "README.md").read_text(encoding="utf-8")[:400])
        again = MindLLM.from_pretrained(folder)
        print(sorted(again.maskers), again.device)
