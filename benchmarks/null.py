"""Check the p-values of a report in whole experiments in which scans hold no information.

Each experiment simulates subjects with no signal (`signal=0`: everything else of the simulator,
such as smooth noise, run offsets and dead voxels, is there), prepares a store, trains on two of
them, trains again on permuted pairs, and evaluates the third with all controls. Under this null,
every p-value should be uniform, and at most the nominal fraction below 0.05.

    python benchmarks/null.py --experiments 200 --out runs/null

This takes half an hour on two cores, or 16 minutes in two processes with --first. Experiments that
are already in the output are not done again. The language model is a tiny random one: what is
tested is the statistics, with everything that feeds them, and not how well a language model writes.
"""

import argparse
import json
import logging
import shutil
import tempfile
from pathlib import Path

import numpy as np
from rich.progress import track
from scipy.stats import kstest
from tiny_llm import save_tiny_llm

from mindllm.datasets.bids import BIDSReader
from mindllm.evaluation.evaluator import evaluate
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.simulator import simulate
from mindllm.training.configuration import StageConfig, TrainConfig
from mindllm.training.trainer import train

LEVELS = (0.01, 0.05, 0.1, 0.2)
CONTINUOUS = "identification_2way"  # hits are few and whole numbers; this score has hardly any ties


def main() -> None:
    """Run the experiments that are missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument(
        "--first", type=int, default=0, help="the first seed: two processes may share the work"
    )
    parser.add_argument(
        "--signal",
        type=float,
        default=0.0,
        help="0: the null; 1: the simulator's default",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/null"))
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    options.out.mkdir(parents=True, exist_ok=True)
    llm, lines = options.out / "llm", options.out / f"signal-{options.signal:g}.jsonl"
    if not llm.exists():
        tiny_llm(llm)
    done = (
        {json.loads(line)["seed"] for line in lines.read_text().splitlines()}
        if lines.exists()
        else set()
    )
    for seed in track(
        [s for s in range(options.first, options.experiments) if s not in done],
        description="experiments",
    ):
        p_values = experiment(seed, options.signal, llm)
        with lines.open("a") as file:
            file.write(json.dumps({"seed": seed, "p": p_values}) + "\n")
    records = [json.loads(line)["p"] for line in lines.read_text().splitlines()][
        : options.experiments
    ]
    print(summary(records, options.signal))


def experiment(seed: int, signal: float, llm: Path) -> dict[str, float]:
    """Run one experiment: `condition|metric` -> p-value of the subject left out."""
    simulation = SimulateConfig(
        n_subjects=3,
        resolution_mm=10,
        train_stimuli=30,
        val_stimuli=1,
        test_stimuli=24,
        n_repetitions=1,
        runs_per_session=2,
        signal=signal,
        seed=seed,
    )
    config = TrainConfig(
        language_model=str(llm),
        seed=seed,
        save_steps=1000,
        eval_steps=1000,
        encoder={
            "num_queries": 32,
            "hidden_size": 64,
            "num_fmri_tokens": 4,
            "token_dim": 32,
            "embedding_dim": 32,
        },
        alignment=StageConfig(max_steps=30, batch_size=60, subjects_per_batch=2),
        instruction_tuning=StageConfig(max_steps=10, batch_size=8, subjects_per_batch=2),
    )
    folder = Path(tempfile.mkdtemp(prefix="null-"))
    try:
        simulate(folder / "bids", simulation)
        store = BIDSReader(folder / "bids").prepare(folder / "store")
        *trained, left_out = store.subjects
        model = train(store, folder / "model", config, subjects=trained).eval()
        result = evaluate(
            model,
            store,
            [left_out],
            controls="all",
            seed=seed,
            cache_dir=folder / "report",
            progress=False,
            max_new_tokens=8,
        )
    finally:
        shutil.rmtree(folder)
    return {
        f"{row.condition}|{row.metric}": row.p_value
        for row in result.scores
        if row.subject == left_out and row.p_value is not None
    }


def summary(records: list[dict[str, float]], signal: float) -> str:
    """Tabulate per condition the fraction of p-values below each level, and their uniformity."""
    lines = [
        f"{len(records)} experiments, signal {signal:g}",
        "",
        "| fMRI above | "
        + " | ".join(f"p < {level}" for level in LEVELS)
        + " | uniform (KS) | largest percentage p < 0.05 of any score |",
    ]
    lines.append("|---" * (len(LEVELS) + 3) + "|")
    names = [
        name for name in dict.fromkeys(key.split("|")[0] for key in records[0]) if name != "fmri"
    ]
    for name in names:
        p = np.array([record[f"{name}|{CONTINUOUS}"] for record in records])
        percentages = " | ".join(f"{100 * (p < level).mean():.1f} %" for level in LEVELS)
        metrics = [key for key in records[0] if key.split("|")[0] == name]
        worst = max(np.mean([record[key] < 0.05 for record in records]) for key in metrics)
        uniform = kstest(
            p + np.random.default_rng(0).uniform(-0.5, 0.5, len(p)) / 2001, "uniform"
        ).pvalue
        lines.append(f"| {name} | {percentages} | p = {uniform:.2f} | {100 * worst:.1f} % |")
    error = 100 * (0.05 * 0.95 / len(records)) ** 0.5
    return "\n".join([*lines, "", f"Standard error of a fraction of 5 %: {error:.1f} points."])


def tiny_llm(folder: Path) -> None:
    """Save the tiny random language model."""
    texts = [
        "two women jumping on a beach with an umbrella",
        "a dog running in a park",
        "What is this person seeing?",
    ]
    save_tiny_llm(folder, texts, vocab_size=400, hidden_size=64, max_length=512)


if __name__ == "__main__":
    main()
