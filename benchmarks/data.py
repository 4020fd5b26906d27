"""Every reader at full size with generated numbers, and how fast training reads a store.

    python benchmarks/data.py [--folder FOLDER] [--only nsd,laion,mosaic,...]

Each reader prepares one session or subject in a process of its own, with one worker: seconds, peak
memory of the process, trials a second. Loading: random trials of 15,724 voxels, standardized, from
a warm cache, and the memory they leave behind. Parts: nsd, laion, mosaic, glmsingle, bids,
official, loading, instructions.
"""

import argparse
import multiprocessing
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generate
import numpy as np
import pandas as pd

from mindllm.data.dataset import TrialDataset
from mindllm.data.sampler import SubjectBatchSampler
from mindllm.data.store_writer import conversations_from_captions, write_store
from mindllm.datasets.base import DatasetReader
from mindllm.datasets.bids import BIDSReader
from mindllm.datasets.glmsingle import GLMsingleReader
from mindllm.datasets.laion_fmri import LAIONReader
from mindllm.datasets.mindllm_release import MindLLMReleaseReader
from mindllm.datasets.mosaic import MOSAICReader
from mindllm.datasets.nsd import NSDReader
from mindllm.fmri.masker import VoxelMasker
from mindllm.instructions import attach_source

VOXELS = 15_724


def run_in_process(work: Callable[[Path], object], folder: Path) -> None:
    """Run in a process of its own, so that memory is measured apart."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=(folder,))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def memory(kind: str) -> float:
    """MiB of this process: VmHWM is the peak so far; RssAnon is what belongs to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 2**10


def prepare_and_send(
    reader: type[DatasetReader], arguments: dict[str, Any], out: Path, pipe: Any
) -> None:
    """Prepare in this process; send seconds, memory, trials and voxels."""
    before, start = memory("VmHWM"), time.perf_counter()
    store = reader(**arguments).prepare(out)
    trials = sum(len(store.trials(s)) for s in store.subjects)
    voxels = len(store.masker(store.subjects[0]))
    pipe.send((time.perf_counter() - start, memory("VmHWM"), before, trials, voxels))


def measure(
    name: str, reader: type[DatasetReader], arguments: dict[str, Any], folder: Path
) -> None:
    """Print one line about one reader."""
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**30
    out, (receiver, sender) = folder.parent / "store", multiprocessing.Pipe()
    shutil.rmtree(out, ignore_errors=True)
    process = multiprocessing.get_context("spawn").Process(
        target=prepare_and_send, args=(reader, arguments, out, sender)
    )
    process.start()
    while process.is_alive() and not receiver.poll(1):
        pass
    process.join()
    if not receiver.poll():
        raise SystemExit(f"{name} failed")
    seconds, peak, before, trials, voxels = receiver.recv()
    print(
        f"{name}: {size:.2f} GiB of files, {trials} trials x {voxels} voxels, {seconds:.1f} s, "
        f"{trials / seconds:.0f} trials/s, peak {peak:.0f} MiB ({before:.0f} before)",
        flush=True,
    )
    shutil.rmtree(out)


def measure_nsd(folder: Path) -> None:
    for name, nifti in (("hdf5", False), ("nii.gz", True)):
        root = folder / "nsd"
        generate.nsd(root, nifti=nifti)
        for mask in ("nsdgeneral", "brain"):
            measure(
                f"NSD session, {name}, {mask}",
                NSDReader,
                {"root": root, "sessions": [1], "mask": mask},
                root,
            )
        shutil.rmtree(root)


def measure_laion(folder: Path) -> None:
    root = generate.laion(folder / "laion")
    measure("LAION-fMRI session", LAIONReader, {"root": root, "sessions": [1]}, root)
    shutil.rmtree(root)


def measure_mosaic(folder: Path) -> None:
    file = generate.mosaic(folder / "mosaic")
    measure("MOSAIC", MOSAICReader, {"files": file}, file.parent)
    shutil.rmtree(file.parent)


def measure_glmsingle(folder: Path) -> None:
    design = generate.glmsingle(folder / "glmsingle")
    measure(
        "GLMsingle session",
        GLMsingleReader,
        {"root": design.parent, "design": design},
        design.parent,
    )
    shutil.rmtree(design.parent)


def measure_bids(folder: Path) -> None:
    root = generate.bids(folder / "bids")
    measure("BIDS derivatives, a subject", BIDSReader, {"root": root}, root)
    shutil.rmtree(root)


def measure_official(folder: Path) -> None:
    root = generate.official(folder / "official")
    measure("the authors' prepared data", MindLLMReleaseReader, {"root": root}, root)
    shutil.rmtree(root)


def measure_instructions(folder: Path) -> None:
    files = folder / "vqa"
    run_in_process(generate.vqa, files)
    images = np.unique(np.loadtxt(files / "images.txt", int))
    voxel_indices = np.argwhere(np.ones((2, 2, 2))).astype(np.int32)
    table = pd.DataFrame({"stimulus": images, "coco_id": images})
    no_conversations = pd.DataFrame({"stimulus": [], "source": [], "turns": [], "answers": []})
    masker = VoxelMasker(
        "subj01", (2, 2, 2), np.eye(4), voxel_indices, voxel_indices.astype(np.float32), {}, {}
    )
    store = write_store(
        folder / "asked",
        [(masker, np.zeros((len(images), 8), np.float32), table)],
        no_conversations,
        name="asked",
    )
    before, start = memory("VmHWM"), time.perf_counter()
    added = attach_source(store, "vqa-v2", sorted(files.glob("*.json")))
    print(
        f"{added}: {time.perf_counter() - start:.1f} s, peak {memory('VmHWM'):.0f} MiB "
        f"({before:.0f} before)",
        flush=True,
    )
    shutil.rmtree(files)
    shutil.rmtree(store.path)


def measure_loading(folder: Path, trials: int = 9000, batch: int = 128) -> None:
    rng = np.random.default_rng(0)
    voxel_indices = np.stack(np.unravel_index(np.arange(VOXELS), (30, 30, 30)), 1)
    masker = VoxelMasker(
        "subj01", (30, 30, 30), np.diag([2.0, 2, 2, 1]), voxel_indices, voxel_indices * 2.0, {}, {}
    )
    table = pd.DataFrame(
        {"stimulus": np.arange(trials) % 3000, "session": np.arange(trials) // 750}
    )
    texts = conversations_from_captions(
        pd.DataFrame({"stimulus": range(3000), "caption": [f"caption {n}" for n in range(3000)]})
    )
    betas = rng.normal(size=(trials, VOXELS)).astype(np.float16)
    store = write_store(
        folder / "loading", [(masker, betas, table)], texts, name="loading", dtype="float16"
    )
    del betas
    for rows in np.array_split(rng.permutation(trials), 50):  # warm
        store.betas("subj01", rows, standardize=True)
    before, start, count = memory("RssAnon"), time.perf_counter(), 0

    def memory_growth() -> float:
        return memory("RssAnon") - before

    while time.perf_counter() - start < 20:
        store.betas("subj01", rng.integers(trials, size=batch), standardize=True)
        count += batch
    print(
        f"loading: {count / (time.perf_counter() - start):.0f} random trials/s of {VOXELS} "
        f"voxels in batches of {batch}, memory {memory_growth():+.0f} MiB after {count} trials",
        flush=True,
    )
    dataset, start, count = TrialDataset(store, ["subj01"]), time.perf_counter(), 0
    while time.perf_counter() - start < 20:
        for subject_batch in (
            SubjectBatchSampler(dataset, batch, 4, (0.1, 0.6)).sample(rng).subjects
        ):
            count += len(
                store.betas(subject_batch.subject, subject_batch.trial_indices, standardize=True)[
                    :, subject_batch.voxel_indices
                ]
            )
    print(
        f"loading, as training draws them: {count / (time.perf_counter() - start):.0f} trials/s, "
        f"memory {memory_growth():+.0f} MiB",
        flush=True,
    )
    shutil.rmtree(store.path)


PARTS = {
    "nsd": measure_nsd,
    "laion": measure_laion,
    "mosaic": measure_mosaic,
    "glmsingle": measure_glmsingle,
    "bids": measure_bids,
    "official": measure_official,
    "loading": measure_loading,
    "instructions": measure_instructions,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the generated files go (some GiB); default: a temporary folder",
    )
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated")
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {multiprocessing.cpu_count()} cores, Python "
        f"{platform.python_version()}"
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for part in options.only.split(","):
            run_in_process(PARTS[part], Path(folder))


if __name__ == "__main__":
    main()
