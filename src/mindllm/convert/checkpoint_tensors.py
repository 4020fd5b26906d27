"""A published checkpoint's tensors: read without running anything, measured, and checked to be all there."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindllm.model.configuration import MindLLMConfig
from mindllm.utils.errors import InputError

# What Lightning writes beside the weights: settings of these packages. Stand-ins take their place, so none of their code runs.
HOLDERS = (
    "omegaconf.",
    "transformers.",
    "tokenizers.",
    "peft.",
    "lightning.",
    "pytorch_lightning.",
)
PLAIN = {
    "typing.Any",
    "collections.defaultdict",
    *(f"builtins.{t.__name__}" for t in (dict, list, tuple, int, float, str, bool)),
}
KEY_LAYERS = 3  # of the position's way to the key, in every published checkpoint
State = Mapping[str, Tensor]


class PlaceholderObject(dict):
    """Takes the place of a settings object in a checkpoint: it holds nothing and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "PlaceholderObject":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def read_checkpoint(file: Path) -> dict[str, Any]:
    """The checkpoint's content, without running anything in it. Raises InputError where that is impossible."""
    if not file.is_file():
        raise InputError(f"there is no file {file}: expected a Lightning checkpoint (.ckpt).")
    try:
        needed = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # not a zip file, or a damaged one: loading says which
        needed = []
    code = sorted(name for name in needed if name not in PLAIN and not name.startswith(HOLDERS))
    if code:
        raise InputError(
            f"{file} is refused: reading it would run code ({', '.join(code[:5])}), and only plain tensors are read. Save its `state_dict` (and `peft_model`) alone, on a machine where you trust it."
        )
    try:
        with torch.serialization.safe_globals([(PlaceholderObject, name) for name in needed]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own error for a damaged file
        reason = next(iter(str(error).splitlines()), "no more is known")
        raise InputError(
            f"{file} is refused: it is damaged or truncated, or no plain checkpoint of tensors ({type(error).__name__}: {reason}). Fetch it again."
        ) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(tensor, Tensor) for tensor in state.values()
    ):
        keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise InputError(
            f"{file} holds no `state_dict` of tensors, as Lightning writes it; found {keys}."
        )
    return content


@dataclass(frozen=True)
class CheckpointDims:
    """What the tensors say: numbers of queries, and so on; `rows` per parcellation (region 0 is one); grid per person's number."""

    queries: int
    rank: int
    frequencies: int
    layers: int
    tokens: int
    token_width: int
    llm_width: int
    region_width: int
    rows: Mapping[str, int]
    grids: Mapping[int, tuple[int, ...]]

    def config(self) -> MindLLMConfig:
        """The encoder's options that make it the published one."""
        return MindLLMConfig(
            num_queries=self.queries, key_dim=self.rank, num_key_layers=KEY_LAYERS, coordinate_system="voxel", fourier_features="gaussian",
            num_frequencies=self.frequencies, receptive_field_sd_mm=None, parcel_embedding_dim=self.region_width, token_head_norm="layer",
            token_head_input_layer=False, hidden_size=self.queries, num_residual_layers=self.layers, dropout=0.5, residual_dropout=0.15,
            embedding_dim=None, memory_size=0, num_fmri_tokens=self.tokens, token_dim=self.token_width,
        )  # fmt: skip


def infer_dims(state: State, file: Path) -> CheckpointDims:
    """All sizes, from the tensors."""

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        found = tuple(state[name].shape) if name in state else None
        if found is None or len(found) != dimensions:
            raise InputError(
                f"{file} {'lacks the tensor' if found is None else f'has a tensor of shape {found}, where {dimensions} dimensions are expected:'} {name}. Is it a MindLLM checkpoint of the authors' format (position encoding `gauss`)?"
            )
        return found

    def numbers(pattern: str) -> list[int]:
        return sorted({int(found[1]) for name in state if (found := re.search(pattern, name))})

    _, queries, rank = shape("fmri_encoder.neuro_informed_attn.query_embeddings", 3)
    llm_width, token_width = shape("projector.weight", 2)
    wide, _ = shape("fmri_encoder.head.weight", 2)
    if wide % token_width:
        raise InputError(
            f"{file}: fmri_encoder.head.weight makes {wide} numbers, which is no multiple of the {token_width} per token that projector.weight takes."
        )
    # torch sorts the names when it is given a plain dict of parameters, so the tables are joined in this order
    prefix = "fmri_encoder.roi_embeds."
    tables = sorted(name.removeprefix(prefix) for name in state if name.startswith(prefix))
    if not tables:
        raise InputError(
            f"{file} lacks the tensors {prefix}*, the embeddings of its parcellations' regions."
        )
    found = {name: shape(f"fmri_encoder.roi_embeds.{name}", 2) for name in tables}
    return CheckpointDims(
        queries, rank, shape("fmri_encoder.coords_encoding.b", 2)[0],
        len(numbers(r"fmri_encoder\.mlp\.(\d+)\.")),
        wide // token_width, token_width, llm_width, next((w for _, w in found.values()), 1),
        {name: rows for name, (rows, _) in found.items()},
        {n: shape(f"fmri_encoder.visual_mask_subject_{n}", 3) for n in numbers(r"_subject_(\d+)$")},
    )  # fmt: skip


def check_tensors(state: State, s: CheckpointDims, file: Path) -> None:
    """Raise InputError unless the checkpoint holds exactly the tensors that these sizes ask for, all finite."""
    expected: dict[str, tuple[int, ...]] = {
        "neuro_informed_attn.query_embeddings": (1, s.queries, s.rank),
        "coords_encoding.b": (s.frequencies, 3),
        "region_feature_project.weight": (s.rank, s.rank + s.region_width * len(s.rows)),
        "region_feature_project.bias": (s.rank,),
        "neuro_informed_attn_post.0.weight": (s.queries,),
        "neuro_informed_attn_post.0.bias": (s.queries,),
        "head.weight": (s.tokens * s.token_width, s.queries),
        "head.bias": (s.tokens * s.token_width,),
    }
    for i in range(KEY_LAYERS):
        expected[f"coords_transform.{2 * i}.weight"] = (s.rank, s.rank if i else 2 * s.frequencies)
        expected[f"coords_transform.{2 * i}.bias"] = (s.rank,)
    for i in range(s.layers):
        expected |= {f"mlp.{i}.0.weight": (s.queries, s.queries)}
        expected |= {f"mlp.{i}.{part}": (s.queries,) for part in ("0.bias", "1.weight", "1.bias")}
    expected |= {f"roi_embeds.{p}": (rows, s.region_width) for p, rows in s.rows.items()}
    for n, grid in s.grids.items():
        expected |= dict.fromkeys(
            (f"visual_mask_subject_{n}", *(f"roi_{p}_subject_{n}" for p in s.rows)), grid
        )
    whole = {f"fmri_encoder.{name}": shape for name, shape in expected.items()}
    whole |= {"projector.weight": (s.llm_width, s.token_width), "projector.bias": (s.llm_width,)}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problems = {
        "lacks": sorted(whole.keys() - found.keys()),
        "has left over": sorted(found.keys() - whole.keys()),
        "has in another shape": [
            f"{name} (expected {whole[name]}, found {found[name]})"
            for name in sorted(whole.keys() & found.keys())
            if whole[name] != found[name]
        ],
        "has NaN or infinity in": [
            n for n in sorted(whole.keys() & found.keys()) if not state[n].isfinite().all()
        ],
    }
    told = [
        f"{what} {', '.join(names[:5])}{f' and {len(names) - 5} more' * (len(names) > 5)}"
        for what, names in problems.items()
        if names
    ]
    if told:
        raise InputError(
            f"{file} {'; '.join(told)}. It is not a whole MindLLM checkpoint; fetch it again."
        )
