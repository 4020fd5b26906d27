"""Checkpoints in the authors' format: random ones with a slow reference, and relabelled ones."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy.special import erf, softmax
from torch import Tensor

AFFINE = np.diag([1.8, 1.8, 1.8, 1.0])
ENCODER = "fmri_encoder."


@dataclass
class Sizes:
    """Of a random checkpoint."""

    queries: int = 20
    rank: int = 8
    frequencies: int = 12
    layers: int = 2
    tokens: int = 3
    token_width: int = 10
    llm_width: int = 32
    region_width: int = 5


def write_volume(file: Path, values: np.ndarray) -> None:
    """A NIfTI file on an unremarkable grid."""
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.int16), AFFINE), file)


def make_published(
    folder: Path,
    subjects: list[int],
    regions: dict[str, int],
    sizes: Sizes,
    seed: int = 0,
    outside: float = 0.1,
) -> dict[str, Tensor]:
    """Write model.ckpt and roi/ of random people, grids and weights; the state dict is returned."""
    rng = np.random.default_rng(seed)
    s, state = sizes, {}

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape) * scale).float()

    for number in subjects:
        grid = tuple(rng.integers(6, 14, 3).tolist())
        mask = rng.choice([-1, 0, 1], grid, p=[0.2, 0.5, 0.3])
        write_volume(folder / "roi" / f"subj{number:02d}" / "nsdgeneral.nii.gz", mask)
        state[f"{ENCODER}visual_mask_subject_{number}"] = torch.from_numpy(mask > 0)
        for name, count in regions.items():
            labels = rng.integers(0, count + 1, grid)
            labels[rng.random(grid) < outside] = -1
            write_volume(folder / "roi" / f"subj{number:02d}" / f"{name}.nii.gz", labels)
            state[f"{ENCODER}roi_{name}_subject_{number}"] = torch.from_numpy(labels)
    encoder = {
        "neuro_informed_attn.query_embeddings": random(1, s.queries, s.rank),
        "coords_encoding.b": random(s.frequencies, 3, scale=5),
        "region_feature_project.weight": random(
            s.rank, s.rank + s.region_width * len(regions), scale=0.3
        ),
        "region_feature_project.bias": random(s.rank),
        "neuro_informed_attn_post.0.weight": random(s.queries),
        "neuro_informed_attn_post.0.bias": random(s.queries),
        "head.weight": random(s.tokens * s.token_width, s.queries, scale=0.2),
        "head.bias": random(s.tokens * s.token_width),
    }
    for i, width in enumerate((2 * s.frequencies, s.rank, s.rank)):
        encoder |= {f"coords_transform.{2 * i}.weight": random(s.rank, width, scale=width**-0.5)}
        encoder |= {f"coords_transform.{2 * i}.bias": random(s.rank)}
    for i in range(s.layers):
        encoder |= {
            f"mlp.{i}.0.weight": random(s.queries, s.queries, scale=0.2),
            f"mlp.{i}.0.bias": random(s.queries),
        }
        encoder |= {f"mlp.{i}.1.weight": random(s.queries), f"mlp.{i}.1.bias": random(s.queries)}
    encoder |= {
        f"roi_embeds.{name}": random(count + 1, s.region_width) for name, count in regions.items()
    }
    state |= {ENCODER + name: tensor for name, tensor in encoder.items()}
    state |= {
        "projector.weight": random(s.llm_width, s.token_width),
        "projector.bias": random(s.llm_width),
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.4.0"}, folder / "model.ckpt")
    return state


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + erf(x / 2**0.5))


def normalize(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + 1e-5
    ) * weight + bias


def reference_tokens(
    state: dict[str, Tensor], number: int, values: np.ndarray, sizes: Sizes
) -> np.ndarray:
    """fMRI tokens (B, T, width) of the published model in double precision, trial by trial."""
    w = {
        name.removeprefix(ENCODER): tensor.double().numpy()
        for name, tensor in state.items()
        if "subject" not in name
    }
    mask = state[f"{ENCODER}visual_mask_subject_{number}"].numpy()
    keys = []
    for place in zip(*np.nonzero(mask), strict=True):
        phase = 2 * np.pi * (w["coords_encoding.b"] @ np.array(place, float))
        x = np.concatenate([np.cos(phase), np.sin(phase)])
        for i in (0, 2, 4):
            x = w[f"coords_transform.{i}.weight"] @ x + w[f"coords_transform.{i}.bias"]
            x = gelu(x) if i < 4 else x
        found = [x]
        for name in sorted(n.removeprefix("roi_embeds.") for n in w if n.startswith("roi_embeds.")):
            label = state[f"{ENCODER}roi_{name}_subject_{number}"].numpy()[place]
            found.append(w[f"roi_embeds.{name}"][label])  # -1 takes the last row
        keys.append(
            w["region_feature_project.weight"] @ np.concatenate(found)
            + w["region_feature_project.bias"]
        )
    attention = softmax(w["neuro_informed_attn.query_embeddings"][0] @ np.array(keys).T, axis=1)
    out = []
    for trial in values:
        x = gelu(
            normalize(
                attention @ trial,
                w["neuro_informed_attn_post.0.weight"],
                w["neuro_informed_attn_post.0.bias"],
            )
        )
        for i in range(sizes.layers):
            inner = w[f"mlp.{i}.0.weight"] @ x + w[f"mlp.{i}.0.bias"]
            x = x + gelu(normalize(inner, w[f"mlp.{i}.1.weight"], w[f"mlp.{i}.1.bias"]))
        out.append((w["head.weight"] @ x + w["head.bias"]).reshape(sizes.tokens, -1))
    return np.array(out)


def relabel(source: Path, rois: Path, folder: Path, people: dict[int, int], seed: int = 0) -> None:
    """The same model: people renamed or left out, regions renumbered, hidden units reordered."""
    rng = np.random.default_rng(seed)
    content = torch.load(source, weights_only=True)
    state = {name.removeprefix(ENCODER): tensor for name, tensor in content["state_dict"].items()}
    new = {name: tensor for name, tensor in state.items() if "_subject_" not in name}
    names = [name.removeprefix("roi_embeds.") for name in state if name.startswith("roi_embeds.")]
    number = {}
    for name in names:
        rows = len(state[f"roi_embeds.{name}"])
        number[name] = torch.from_numpy(
            rng.permutation(rows)
        )  # old -> new, "in no region" among them
        spare = torch.randn(3, state[f"roi_embeds.{name}"].shape[1])  # regions that nobody has
        new[f"roi_embeds.{name}"] = torch.cat(
            [state[f"roi_embeds.{name}"][number[name].argsort()], spare]
        )
    for old, now in people.items():
        new[f"visual_mask_subject_{now}"] = mask = state[f"visual_mask_subject_{old}"]
        write_volume(folder / "roi" / f"subj{now:02d}" / "nsdgeneral.nii.gz", mask.numpy())
        for name in names:
            labels = number[name][state[f"roi_{name}_subject_{old}"]]
            new[f"roi_{name}_subject_{now}"] = labels
            write_volume(folder / "roi" / f"subj{now:02d}" / f"{name}.nii.gz", labels.numpy())
    _, queries, rank = state["neuro_informed_attn.query_embeddings"].shape
    q, k = torch.from_numpy(rng.permutation(queries)), torch.from_numpy(rng.permutation(rank))
    new["neuro_informed_attn.query_embeddings"] = state["neuro_informed_attn.query_embeddings"][
        :, q
    ][:, :, k]
    for part in ("weight", "bias"):
        new[f"region_feature_project.{part}"] = state[f"region_feature_project.{part}"][k]
        new[f"neuro_informed_attn_post.0.{part}"] = state[f"neuro_informed_attn_post.0.{part}"][q]
        for i in range(len([n for n in state if n.startswith("mlp.") and n.endswith("0.bias")])):
            for layer in (f"mlp.{i}.0", f"mlp.{i}.1"):
                new[f"{layer}.{part}"] = state[f"{layer}.{part}"][q]
            new[f"mlp.{i}.0.weight"] = state[f"mlp.{i}.0.weight"][q][:, q]
    new["head.weight"] = state["head.weight"][:, q]
    whole = {
        name if name.startswith("projector.") else ENCODER + name: tensor
        for name, tensor in new.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": whole}, folder / "model.ckpt")
