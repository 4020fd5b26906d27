"""Encoder and loading at full size: speed and memory beside a reference, and how they grow.

    python -m benchmarks.scale [--parts encoder whole-brain growth loading subjects]

Memory is that of a process of its own, above what it holds before the step. The reference of the
encoder computes keys and attention weights for each trial (a B x N x V tensor); both make forward
and backward passes of the encoder with the sizes of the paper. Results are Markdown tables.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch.utils.data import DataLoader

from mindllm.data.dataset import TrialDataset
from mindllm.data.sampler import SubjectBatchSampler
from mindllm.data.store import Store
from mindllm.data.store_writer import conversations_from_captions, write_store
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.configuration import PRESETS
from mindllm.model.encoder import FMRIEncoder, VoxelFeatures

VOXELS, GIB = 15_724, 2**30
HEADER = "| what | reference | ours | ratio | target |\n|---|---|---|---|---|"
BYTES_OF_REFERENCE = 4 * 5  # of a weight of attention: it, its logits, their gradients, copies


def memory(kind: str) -> int:
    """Bytes of this process: VmHWM is the peak so far; RssAnon is what belongs to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


@dataclass(frozen=True)
class Measured:
    """Seconds of a step, and bytes: the peak of the process, and above what was there before."""

    seconds: float
    peak_bytes: int
    added_bytes: int


def in_process(function: Callable[..., object], *arguments: object) -> Any:
    """Result of a call in a process of its own, so that memory is measured apart."""
    receiver, sender = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=send, args=(sender, function, arguments)
    )
    process.start()
    while process.is_alive() and not receiver.poll(1):
        pass
    process.join()
    if not receiver.poll():
        raise SystemExit(f"{function.__name__}{arguments} failed")
    return receiver.recv()


def send(sender: Any, function: Callable[..., object], arguments: Sequence[object]) -> None:
    sender.send(function(*arguments))


def encoder_step(preset: str, batch: int, voxels: int, per_trial: bool) -> Measured:
    """Forward and backward pass of the encoder: the second of two, or the first of the slow way."""
    torch.manual_seed(0)
    encoder = FMRIEncoder(PRESETS[preset], {"atlas": ["left", "right"]})
    features = VoxelFeatures(torch.rand(voxels, 3) * 1.6 - 0.8, torch.randint(3, (voxels, 1)))
    betas = torch.randn(batch, voxels)

    def attend() -> torch.Tensor:
        if not per_trial:
            return encoder.attend(features, betas)
        repeated = VoxelFeatures(
            features.coords.repeat(batch, 1), features.parcel_ids.repeat(batch, 1)
        )
        keys = encoder.compute_keys(repeated).view(batch, voxels, -1)
        weights = torch.softmax(encoder.queries @ keys.mT * encoder.scale, -1)
        return (weights @ betas[..., None])[..., 0]

    def step() -> float:
        start = time.perf_counter()
        encoder.head.tokens(encoder.head.embed(attend())).square().mean().backward()
        return time.perf_counter() - start

    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmHWM")
    seconds = step()
    if seconds < 5:
        seconds = float(np.median([step() for _ in range(3)]))
    return Measured(seconds, memory("VmHWM"), memory("VmHWM") - before)


def affordable_batch(batch: int) -> int:
    """The batch size, halved until the reference fits in the memory that is free."""
    free = psutil.virtual_memory().available
    size = PRESETS["paper"].num_queries * VOXELS * BYTES_OF_REFERENCE
    while batch > 1 and batch * size > 0.8 * free:
        batch //= 2
    return batch


def report_encoder() -> list[str]:
    """Rows of the encoder at batch 64, or the largest whose reference fits in memory."""
    batch = affordable_batch(64)
    ours, slow = (in_process(encoder_step, "paper", batch, VOXELS, flag) for flag in (False, True))
    what = f"encoder, forward and backward, {batch} trials x {VOXELS:,} voxels"
    return [
        f"| {what} | {slow.seconds:.2f} s | {ours.seconds:.2f} s | "
        f"{slow.seconds / ours.seconds:.1f} | >= 20 at 64 trials |",
        f"| its memory | {slow.added_bytes / GIB:.2f} GiB | {ours.added_bytes / GIB:.2f} GiB | "
        f"{ours.added_bytes / slow.added_bytes:.3f} | <= 0.1 at 64 trials |",
    ]


def report_whole_brain() -> list[str]:
    """Row of 200,000 voxels."""
    rows = []
    for preset in ("default", "paper"):
        ours = in_process(encoder_step, preset, 32, 200_000, False)
        rows.append(
            f"| 200,000 voxels x 32 trials, sizes `{preset}`, peak of the process | | "
            f"{ours.peak_bytes / GIB:.2f} GiB, {ours.seconds:.1f} s | | <= 4 GiB |"
        )
    return rows


def report_growth() -> list[str]:
    """Rows of a table of growth: with voxels, and with trials."""
    rows = []
    for voxels in (5_000, VOXELS, 50_000, 100_000):
        ours = in_process(encoder_step, "paper", 8, voxels, False)
        rows.append(
            f"| voxels | {voxels} | {ours.seconds:.3f} | {ours.added_bytes / GIB:.3f} | ours |"
        )
    for batch in (1, 4, 16, 64):
        ours = in_process(encoder_step, "paper", batch, VOXELS, False)
        rows.append(
            f"| trials | {batch} | {ours.seconds:.3f} | {ours.added_bytes / GIB:.3f} | ours |"
        )
    for batch in (1, 4, 16):
        slow = in_process(encoder_step, "paper", batch, VOXELS, True)
        rows.append(
            f"| trials | {batch} | {slow.seconds:.3f} | {slow.added_bytes / GIB:.3f} | reference |"
        )
    return rows


def make_store(
    folder: Path, n_subjects: int, n_trials: int, n_voxels: int, n_sessions: int
) -> Store:
    """Write a store of random betas, float16."""
    rng = np.random.default_rng(0)
    side = int(np.ceil(n_voxels ** (1 / 3)))
    indices = np.stack(np.unravel_index(np.arange(n_voxels), (side,) * 3), 1).astype(np.int32)
    coords = (indices * 2.0 - side).astype(np.float32)
    stimuli = np.arange(n_trials) % max(1, n_trials // 3)
    table = pd.DataFrame({"stimulus": stimuli, "session": np.arange(n_trials) % n_sessions})
    affine = np.diag([2.0, 2, 2, 1])
    values = rng.normal(size=(n_trials, n_voxels)).astype(np.float16)

    def subjects() -> Any:
        for n in range(n_subjects):
            name = f"sub-{n + 1:03d}"
            yield VoxelMasker(name, (side,) * 3, affine, indices, coords, {}, {}), values, table

    captions = pd.DataFrame({"stimulus": np.unique(stimuli)})
    captions["caption"] = [f"caption {n}" for n in captions["stimulus"]]
    texts = conversations_from_captions(captions)
    return write_store(folder, subjects(), texts, name="made up", dtype="float16")


def load_random(folder: Path, n_steps: int, batch: int = 16) -> tuple[float, int]:
    """Trials a second of random reads, and bytes that 10,000 steps leave behind."""
    store, rng = Store(folder), np.random.default_rng(0)
    (subject,) = store.subjects
    n_trials = len(store.trials(subject))

    def load(count: int) -> None:
        for _ in range(count):
            store.betas(subject, rng.integers(n_trials, size=batch), standardize=True)

    load(1 + 2 * n_trials // batch)  # into the cache
    before, start = memory("RssAnon"), time.perf_counter()
    load(n_steps)
    return n_steps * batch / (time.perf_counter() - start), memory("RssAnon") - before


def read_samples(samples: Sequence[Any]) -> torch.Tensor:
    """Betas (n_trials, n_voxels) of samples."""
    return torch.from_numpy(np.stack([sample.betas for sample in samples]))


def load_by_workers(folder: Path, n_workers: int) -> float:
    """Trials a second through a DataLoader, after its workers have started."""
    dataset = TrialDataset(Store(folder))
    loader = DataLoader(
        dataset, 128, shuffle=True, num_workers=n_workers, collate_fn=read_samples,
        persistent_workers=True,
    )  # fmt: skip
    for _ in loader:  # starts the workers, fills the cache
        pass
    start, count = time.perf_counter(), 0
    for _ in range(2):
        for betas in loader:
            count += len(betas)
    return count / (time.perf_counter() - start)


def report_loading() -> list[str]:
    """Rows of loading 15,724 voxels from a warm cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        in_process(write_loading_store, path)
        rate, growth = in_process(load_random, path, 10_000)
        by_workers = load_by_workers(path, 2)
    return [
        f"| loading, random trials of {VOXELS:,} voxels, standardized | | {rate:,.0f} trials/s | "
        f"| >= 8,000 |",
        f"| memory left behind by 10,000 steps of it | | {growth / 2**20:+.0f} MiB | | flat |",
        f"| loading by a `DataLoader` with 2 workers | | {by_workers:,.0f} trials/s | | >= 8,000 |",
    ]


def write_loading_store(path: Path) -> None:
    make_store(path, n_subjects=1, n_trials=6000, n_voxels=VOXELS, n_sessions=8)


def draw_batches(folder: Path, n_steps: int) -> tuple[float, list[int]]:
    """Seconds of a step of loading as training draws it, and memory after each fifth of them."""
    store = Store(folder)
    dataset, growth = TrialDataset(store), []
    sampler = SubjectBatchSampler(dataset, 32, 4, (0.1, 0.6), 0.5, 2.0)
    rng = np.random.default_rng(0)
    before, start = memory("RssAnon"), time.perf_counter()
    for step in range(n_steps):
        for part in sampler.sample(rng).subjects:
            betas = store.betas(part.subject, part.trial_indices, standardize=True)
            assert len(store.masker(part.subject)) == betas.shape[1]
        if (step + 1) % (n_steps // 5) == 0:
            growth.append(memory("RssAnon") - before)
    return (time.perf_counter() - start) / n_steps, growth


def report_subjects() -> list[str]:
    """Row of many subjects: memory as training draws batches of them."""
    rows = []
    for n_subjects in (30, 300):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store"
            in_process(write_subjects_store, path, n_subjects)
            size = sum(file.stat().st_size for file in path.rglob("*.npy")) / GIB
            seconds, growth = in_process(draw_batches, path, 500)
        text = ", ".join(f"{n / 2**20:+.0f}" for n in growth)
        rows.append(
            f"| {n_subjects} subjects x 20,000 voxels x 3 sessions ({size:.2f} GiB of betas), "
            f"500 steps of loading | | {seconds * 1000:.0f} ms a step, {text} MiB | | flat |"
        )
    return rows


def write_subjects_store(path: Path, n_subjects: int) -> None:
    make_store(path, n_subjects, n_trials=30, n_voxels=20_000, n_sessions=3)


PARTS: dict[str, Callable[[], list[str]]] = {
    "encoder": report_encoder,
    "whole-brain": report_whole_brain,
    "loading": report_loading,
    "subjects": report_subjects,
    "growth": report_growth,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args(arguments)
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    print(f"threads: {threads}, {psutil.virtual_memory().available / GIB:.1f} GiB free")
    rows = [part for part in options.parts if part != "growth"]
    if rows:
        print(f"\n{HEADER}")
    for part in rows:
        print("\n".join(PARTS[part]()), flush=True)
    if "growth" in options.parts:
        print("\n| with | number | seconds | GiB | way |\n|---|---|---|---|---|")
        print("\n".join(report_growth()), flush=True)


if __name__ == "__main__":
    main()
