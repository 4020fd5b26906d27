"""Speed of the encoder and of scoring, as ratios within one run, and the memory of a large scan.

    python benchmarks/speed.py [--llm NAME]

1. attention once per subject (the batch as the value dimension) against once per trial (a B x N x V
   tensor)
2. candidates scored as one trie against one by one
3. peak memory and time to decode a scan of 200,000 voxels, beyond the model itself
"""

import argparse
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from mindllm.language.conversation import QUESTION, build_conversation
from mindllm.model.candidates import prompt_log_likelihood
from mindllm.model.configuration import PRESETS
from mindllm.model.decode import decode
from mindllm.model.encoder import FMRIEncoder, VoxelFeatures
from mindllm.model.language_model import load_language_model
from mindllm.model.modeling import MindLLM


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Median time of a call, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


@torch.no_grad()
def attention(batch: int = 32, voxels: int = 15_724) -> None:
    encoder = FMRIEncoder(PRESETS["default"], {})
    voxels_of_subject = VoxelFeatures(
        torch.rand(voxels, 3) * 1.6 - 0.8, torch.zeros(voxels, 0, dtype=torch.int64)
    )
    values = torch.randn(batch, voxels)

    def per_trial() -> torch.Tensor:
        rows = []
        for (
            row
        ) in values:  # keys and weights anew for every trial, as when they are part of the batch
            rows.append(encoder.attention_weights(voxels_of_subject) @ row)
        return torch.stack(rows)

    torch.testing.assert_close(
        per_trial(), encoder.attend(voxels_of_subject, values), rtol=1e-3, atol=1e-4
    )
    slow, fast = seconds(per_trial), seconds(lambda: encoder.attend(voxels_of_subject, values))
    print(
        f"attention, {batch} trials x {voxels} voxels: per trial {slow:.2f} s, once per subject "
        f"{fast:.3f} s, ratio {slow / fast:.1f}"
    )


@torch.no_grad()
def scoring(model: MindLLM, scans: int = 4, candidates: int = 60) -> tuple[float, float]:
    """Seconds of candidates one by one and as a tree."""
    tokens = (
        torch.randn(scans, model.encoder.config.num_fmri_tokens, model.encoder.config.token_dim)
        * 0.1
    )
    verbs, objects = (
        ("holding", "painting", "washing", "watching", "carrying", "dropping"),
        (
            "a cup",
            "a car",
            "a dog",
            "the floor",
            "a book",
            "dishes",
            "a bike",
            "a plant",
            "food",
            "a ball",
        ),
    )
    answers = [f"a person {verb} {item}" for verb in verbs for item in objects][:candidates]

    def one_by_one():
        prompts = [model.processor(build_conversation(QUESTION, answer)) for answer in answers]
        return [prompt_log_likelihood(model, tokens, [prompt] * scans)[0] for prompt in prompts]

    slow, fast = seconds(one_by_one, 1), seconds(lambda: model.score_candidates(tokens, answers), 1)
    print(
        f"scoring {candidates} candidates for {scans} scans: one by one {slow:.1f} s, as a trie "
        f"{fast:.1f} s, ratio {slow / fast:.1f}"
    )
    return slow, fast


def large_scan(model: MindLLM, side: int = 59, volumes: int = 12) -> None:
    rng = np.random.default_rng(0)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -side
    with tempfile.TemporaryDirectory() as folder:
        scan, mask = Path(folder) / "scan.nii", Path(folder) / "mask.nii"
        nib.save(
            nib.Nifti1Image(
                rng.normal(size=(side, side, side, volumes)).astype(np.float32), affine
            ),
            scan,
        )
        inside = np.zeros(side**3, np.uint8)
        inside[:200_000] = 1
        nib.save(nib.Nifti1Image(inside.reshape(side, side, side), affine), mask)
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        decode(model, scan, mask, volumes=[0, 3, 5], max_new_tokens=8)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
        print(
            f"a scan of 200,000 voxels x {volumes} volumes, 3 decoded: "
            f"{time.perf_counter() - start:.1f} s, peak memory {grown:.2f} GiB above the loaded "
            "model"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", default=None, help="a language model; default: the small one")
    llm = load_language_model(parser.parse_args().llm)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{llm.name}"
    )
    torch.manual_seed(0)
    model = MindLLM(PRESETS["default"], {}, llm).eval()
    large_scan(model)  # first: the peak of the process so far must be the model's own
    attention()
    scoring(model)


if __name__ == "__main__":
    main()
