"""Speed of an evaluation's parts, as ratios within one run, and time of a complete evaluation.

    python -m benchmarks.evaluation [--llm NAME] [--preset paper] [--complete FOLDER]
    [--dtype bfloat16]

1. 60 candidates scored as trees after a shared prompt, against one by one
2. texts of 64 trials generated at once, against one at a time: the same greedy texts
3. ten questions about one scan asked at once, so that its tokens are read once, against one at a
   time: the same greedy texts
4. positions that the language model reads of a trial with 60 simulated candidates: one by one, in
   trees of neighbours in the order of the stimuli and in sorted order (as `score_candidates` does),
   in a single tree; and the floating-point operations of a trial
5. with --complete: `mindllm evaluate` of 240 simulated trials and 60 candidates, in that folder,
   with the language model in the precision --dtype
"""

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed import scoring
from mindllm.cli.evaluate import DType, load_in_precision
from mindllm.data.store import Store
from mindllm.datasets.bids import BIDSReader
from mindllm.evaluation.evaluator import evaluate
from mindllm.language.conversation import build_conversation
from mindllm.model.candidates import (
    answer_tokens,
    context_length,
    count_shared_tokens,
    plan_trees,
)
from mindllm.model.configuration import PRESETS
from mindllm.model.language_model import load_language_model
from mindllm.model.logits import TokenTrie
from mindllm.model.modeling import MindLLM
from mindllm.report.write import write_report
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.scenes import draw_stimuli, write_captions
from mindllm.simulate.simulator import simulate
from mindllm.training.configuration import StageConfig, TrainConfig
from mindllm.training.trainer import train

MAX_NEW_TOKENS = 16
HEADER = "| what | reference | ours | ratio | target |\n|---|---|---|---|---|"
ASKED = ["Who is there", "What do they do", "Where are they", "What is held", "Is it day or night"]
QUESTIONS = [f"<fMRI>\n{asked}{end}" for asked in ASKED for end in ("?", ", in one word?")]


def generation(
    model: MindLLM, what: str, tokens: torch.Tensor, questions: list[str]
) -> tuple[float, float]:
    """Seconds of texts generated one at a time and all at once."""
    conversations = [build_conversation(question) for question in questions]
    start = time.perf_counter()
    together = model.generate(tokens, conversations, max_new_tokens=MAX_NEW_TOKENS)
    middle = time.perf_counter()
    apart = [
        model.generate(row[None], [turns], max_new_tokens=MAX_NEW_TOKENS)[0]
        for row, turns in zip(tokens, conversations, strict=True)
    ]
    slow, fast = time.perf_counter() - middle, middle - start
    assert together == apart, "texts differ"
    print(
        f"{what}: one at a time {slow:.1f} s, at once {fast:.1f} s, ratio {slow / fast:.1f}",
        flush=True,
    )
    return slow, fast


def row(what: str, times: tuple[float, float], target: str) -> str:
    """Row of the table."""
    slow, fast = times
    return f"| {what} | {slow:.1f} s | {fast:.1f} s | {slow / fast:.1f} | {target} |"


def count_positions(model: MindLLM, n_candidates: int = 60) -> None:
    """Print how many positions are read of a trial; only they, not the machine, decide the cost."""
    scenes = draw_stimuli(np.random.default_rng(0), {"test": n_candidates}).to_dict("records")
    texts = [write_captions(scene)[0] for scene in scenes]
    prompts = [model.processor(model.build_conversation(None, text)) for text in texts]
    length = count_shared_tokens(prompts, min(map(context_length, prompts)))
    prompt = length - int(prompts[0].fmri_token_positions[0])  # behind what all trials share
    in_order = sorted(prompts, key=lambda encoded: encoded.input_ids.tolist())
    one = [TokenTrie([answer_tokens(p, length)[0] for p in prompts])]
    trees = {
        "in the order of stimuli": [
            trie for trie, _ in plan_trees(model, prompts, length, 16) or []
        ],
        "sorted": [trie for trie, _ in plan_trees(model, in_order, length, 16) or []],
        "in one tree": one,
    }
    read = sum(len(p.input_ids) - len(prompts[0].input_ids[:length]) + prompt - 1 for p in prompts)
    print(f"positions of a trial x {n_candidates} candidates: one by one {read}")
    weights = sum(p.numel() for p in model.language_model.model.parameters())
    head = model.language_model.model.get_input_embeddings().weight.numel()  # tied
    for name, tries in trees.items():
        inner = sum(len(trie.parents.clamp(min=0).unique()) for trie in tries)
        flops = 2 * (weights - head) * (prompt + inner) + 2 * head * (inner + 1)
        print(f"  {name}: {prompt} + {inner}, {flops / 1e9:.0f} GFLOP")


def complete(folder: Path, llm: str | None, dtype: DType) -> None:
    """Print the time of an evaluation of two simulated subjects by a model trained briefly."""
    if not (folder / "store").exists():
        simulate(folder / "bids", SimulateConfig(n_subjects=4))
        BIDSReader(folder / "bids").prepare(folder / "store", progress=None)
    store = Store(folder / "store")
    config = TrainConfig(
        alignment=StageConfig(max_steps=20, batch_size=480),
        instruction_tuning=StageConfig(max_steps=8, batch_size=16),
        language_model=llm,
    )
    trained, tested = store.subjects[:2], store.subjects[2:]
    if not (folder / "model").exists():
        train(store, folder / "model", config, subjects=trained, progress=None)
    model = load_in_precision(folder / "model", None, dtype)
    start, cpu = time.perf_counter(), time.process_time()
    result = evaluate(model, store, tested, split="test", progress=False)
    write_report(result, folder / "report", model=model, store=store)
    print(
        f"evaluation of {len(result.predictions)} trials x {len(result.run_info.candidates)} "
        f"candidates, {dtype}: {time.perf_counter() - start:.0f} s, "
        f"{time.process_time() - cpu:.0f} s of CPU"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", default=None, help="a language model; default: the small one")
    parser.add_argument("--preset", default="default", help="sizes of the encoder")
    parser.add_argument("--complete", type=Path, default=None, help="a folder for 5.")
    parser.add_argument("--dtype", default="auto", help="of 5.: auto, float32 or bfloat16")
    options = parser.parse_args()
    llm = load_language_model(options.llm)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{llm.name}"
    )
    torch.manual_seed(0)
    model = MindLLM(PRESETS[options.preset], {}, llm).eval()
    config = model.encoder.config
    tokens = 0.1 * torch.randn(64, config.num_fmri_tokens, config.token_dim)
    question = model.build_conversation()[0]["content"]
    rows = [HEADER]
    times = generation(model, "texts of 64 trials", tokens, [question] * 64)
    rows.append(row("texts of 64 trials, one at a time or at once", times, ">= 5"))
    scan = tokens[:1].expand(len(QUESTIONS), -1, -1)
    times = generation(model, "10 questions about one scan", scan, QUESTIONS)
    rows.append(row("10 questions about one scan", times, ">= 3"))
    count_positions(model)
    for n_answers in (15, 60):  # how it grows with answers
        times = scoring(model, scans=2, candidates=n_answers)
        target = ">= 12" if n_answers == 60 else ""
        rows.append(row(f"{n_answers} candidates for 2 scans, one by one or a tree", times, target))
    print("\n".join(["", *rows]))
    if options.complete:
        complete(options.complete, options.llm, options.dtype)


if __name__ == "__main__":
    main()
