"""Let a serving engine write the texts: fMRI tokens as prompt embeddings for vLLM.

Run `make demo` first: it leaves a model and simulated subjects in runs/demo. Then serve the model's
language model, here on the same machine, and run this script with the address:

    mindllm export-language-model runs/demo/model --out runs/demo/language-model
    vllm serve runs/demo/language-model --served-model-name demo --enable-prompt-embeds
    ENGINE=http://localhost:8000 python examples/11_serve_with_vllm.py
"""

import json
import os
from pathlib import Path
from urllib.request import Request, urlopen

from mindllm import MindLLM
from mindllm.model.prompt_export import RequestOptions, embed_scan, write_prompts

DEMO = Path("runs/demo")
subject = sorted((DEMO / "bids").glob("sub-*"))[-1]  # left out of training
scan = next(subject.rglob("*_desc-SingletrialBetas_statmap.nii.gz"))
mask = next(subject.rglob("*_desc-brain_mask.nii.gz"))
atlas = next((DEMO / "bids").glob("atlas-HCPEx_*_dseg.nii.gz"))

model = MindLLM.from_pretrained(DEMO / "model")
atlases = {"HCPEx": atlas} if "HCPEx" in model.encoder.parcel_names else None
prompts = embed_scan(model, scan, mask, atlases, volumes=[0, 1, 2])

out = DEMO / "prompts.jsonl"
out.unlink(missing_ok=True)
write_prompts(model, prompts, out, RequestOptions("demo", "completions", max_tokens=16))
print(f"{out}: {len(prompts)} requests, prompts of {len(prompts[0].prompt)} tokens")

engine = os.environ.get("ENGINE")
for line in out.read_text(encoding="utf-8").splitlines() if engine else []:
    request = json.loads(line)
    body = json.dumps(request["body"]).encode()
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(engine + request["url"], body, headers)) as response:
        answer = json.load(response)
    print(request["custom_id"], answer["choices"][0]["text"].strip())
