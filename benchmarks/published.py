"""Time and memory of a published checkpoint and its prepared data at real size, random numbers.

    python benchmarks/published.py [--subjects 8] [--trials 9841] [--folder FOLDER]

Sizes: 1,024 queries of 128, four residual layers, 128 tokens of 1,024, five atlases, NSD's grid for
each subject, a language model of Vicuna's hidden size (two layers of it); and one subject's HDF5
file with `trials` trials of 15,724 voxels.
"""

import argparse
import json
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mindllm.convert.mindllm_checkpoint import convert_checkpoint
from mindllm.datasets.mindllm_release import MindLLMReleaseReader
from mindllm.model.encoder import FMRIEncoder
from mindllm.model.modeling import MindLLM

GRID, VOXELS = (81, 104, 83), 15_724
REGIONS = {
    "HCP_MMP1": 180,
    "Kastner2015": 25,
    "prf-visualrois": 7,
    "floc-faces": 5,
    "floc-places": 3,
}
QUERIES, RANK, FREQUENCIES, TOKENS, WIDTH, LLM = 1024, 128, 192, 128, 1024, 4096


def timed(what: str, function: Callable[[], Any]) -> Any:
    """Run, and print how long it took and the highest memory of the process until now."""
    start = time.perf_counter()
    out = function()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{what}: {time.perf_counter() - start:.1f} s, peak memory of the process {peak:.1f} GiB",
        flush=True,
    )
    return out


def make_checkpoint(folder: Path, subjects: int) -> None:
    rng, state = np.random.default_rng(0), {}
    for n in range(1, subjects + 1):
        mask = np.zeros(GRID, np.int64)
        mask.ravel()[rng.choice(mask.size, VOXELS, replace=False)] = 1
        volumes = {"nsdgeneral": mask} | {
            p: rng.integers(0, count + 1, GRID) for p, count in REGIONS.items()
        }
        (folder / "data" / "roi" / f"subj{n:02d}").mkdir(parents=True)
        for name, volume in volumes.items():
            image = nib.Nifti1Image(volume.astype(np.int16), np.diag([1.8, 1.8, 1.8, 1]))
            nib.save(image, folder / "data" / "roi" / f"subj{n:02d}" / f"{name}.nii.gz")
            buffer = "visual_mask" if name == "nsdgeneral" else f"roi_{name}"
            state[f"{buffer}_subject_{n}"] = torch.from_numpy(
                volume > 0 if name == "nsdgeneral" else volume
            )
    state |= {
        "neuro_informed_attn.query_embeddings": torch.randn(1, QUERIES, RANK),
        "coords_encoding.b": 5 * torch.randn(FREQUENCIES, 3),
    }
    layers = {f"coords_transform.{i}": (RANK, RANK if i else 2 * FREQUENCIES) for i in (0, 2, 4)}
    layers |= {
        "region_feature_project": (RANK, RANK + 32 * len(REGIONS)),
        "head": (TOKENS * WIDTH, QUERIES),
    }
    layers |= {f"mlp.{i}.0": (QUERIES, QUERIES) for i in range(4)}
    for name, shape in layers.items():
        state |= {
            f"{name}.weight": torch.randn(shape) * shape[1] ** -0.5,
            f"{name}.bias": torch.randn(shape[0]),
        }
    for name in ("neuro_informed_attn_post.0", *(f"mlp.{i}.1" for i in range(4))):
        state |= {f"{name}.weight": torch.randn(QUERIES), f"{name}.bias": torch.randn(QUERIES)}
    state |= {f"roi_embeds.{p}": torch.randn(count + 1, 32) for p, count in REGIONS.items()}
    tensors = {f"fmri_encoder.{name}": tensor for name, tensor in state.items()}
    tensors |= {
        "projector.weight": torch.randn(LLM, WIDTH) * WIDTH**-0.5,
        "projector.bias": torch.randn(LLM),
    }
    torch.save({"state_dict": tensors}, folder / "model.ckpt")


def make_llm(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["a"], trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=LLM,
        intermediate_size=11008,
        num_hidden_layers=2,
        num_attention_heads=32,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_trials(folder: Path, trials: int) -> None:
    """Write one subject's file and as many captions as COCO has for the images."""
    (folder / "data" / "nsd0").mkdir()
    block = np.random.default_rng(0).normal(size=(64, VOXELS)).astype(np.float32)
    with h5py.File(folder / "data" / "nsd0" / "subject_1.h5", "w") as file:
        for n in range(trials):
            trial = file.create_group(f"{'test' if n // 3 % 9 == 0 else 'train'}/{n}")
            trial["visual_voxels"], trial["coco_id"], trial["prev_coco_id"] = (
                block[n % 64],
                n // 3,
                n // 3 - 1,
            )
    (folder / "data" / "cache").mkdir()
    question = [
        {"role": "user", "content": "<fMRI>\nPlease describe the fMRI as simply as possible."}
    ]
    samples = [
        {
            "coco_id": n // 5,
            "from": "coco-caption",
            "split": "train",
            "unique_key": n // 5,
            "answers": [f"caption {n}"],
            "chat": [*question, {"role": "assistant", "content": f"caption {n}"}],
        }
        for n in range(600_000)
    ]
    (folder / "data" / "cache" / "coco-caption.json").write_text(json.dumps(samples))


@torch.no_grad()
def per_trial(encoder: FMRIEncoder, masker: Any, values: torch.Tensor) -> torch.Tensor:
    """As the published code has it: keys and weights anew for each trial."""
    return torch.cat([encoder([(encoder.prepare_voxels(masker), row[None])]) for row in values])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--trials", type=int, default=9841 * 3)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    print(f"{platform.platform()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        make_checkpoint(folder, options.subjects)
        make_llm(folder / "llm")
        print(
            f"checkpoint of {(folder / 'model.ckpt').stat().st_size / 2**30:.2f} GiB, "
            f"{options.subjects} subjects"
        )
        timed(
            "convert",
            lambda: convert_checkpoint(
                folder / "model.ckpt",
                folder / "data" / "roi",
                str(folder / "llm"),
                folder / "model",
            ),
        )
        model = timed("load", lambda: MindLLM.from_pretrained(folder / "model"))
        masker, values = model.maskers["subj01"], torch.randn(16, VOXELS)
        once = timed("encode 16 trials, keys once", lambda: model.encode(values, masker))
        repeated = timed(
            "encode 16 trials, keys for each",
            lambda: per_trial(model.encoder, masker, values),
        )
        torch.testing.assert_close(once, repeated, rtol=1e-3, atol=1e-3)
        make_trials(folder, options.trials)
        size = (folder / "data" / "nsd0" / "subject_1.h5").stat().st_size / 2**30
        print(f"prepared data of {size:.2f} GiB, {options.trials} trials, 600,000 captions")
        store = timed(
            "prepare official",
            lambda: MindLLMReleaseReader(folder).prepare(folder / "store", progress=None),
        )
        rows = np.random.default_rng(1).integers(0, len(store.trials("subj01")), 2048)
        timed("read 2,048 random trials", lambda: store.betas("subj01", rows, standardize=True))


if __name__ == "__main__":
    main()
