"""Several processes of one training: the Accelerator, and parameters sharded over processes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
)
from torch import Tensor, nn

from mindllm.model.language_model import FrozenLanguageModel, default_device
from mindllm.utils.errors import InputError
from mindllm.utils.processes import num_launched_processes

T = TypeVar("T")
FSDP_VARIABLE = "ACCELERATE_USE_FSDP"  # set by `accelerate launch --use_fsdp`


def create_accelerator(trackers: list[str] | None, project_dir: Path | None) -> Accelerator:
    """Connect the processes that a launcher has started.

    Parameters
    ----------
    trackers : list of str or None
        Names of Accelerate's trackers.
    project_dir : Path or None
        Where those write.

    Returns
    -------
    Accelerator
        On CPUs through gloo where there is no GPU, or ACCELERATE_USE_CPU is set.

    Raises
    ------
    InputError
        If processes were launched that it does not connect, or FSDP of version 1 is asked for.
    """
    num_launched, plugin = num_launched_processes(), sharding_plugin()
    accelerator = Accelerator(
        cpu=num_launched > 1 and default_device() == "cpu",
        log_with=trackers or None,
        project_dir=project_dir,
        fsdp_plugin=plugin,
        # Micro batches are weighted here, whatever the launcher's options.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
        ],
    )
    if accelerator.num_processes != num_launched:
        raise InputError(
            f"{num_launched} processes were launched, but Accelerate connects "
            f"{accelerator.num_processes}; each would train alone. Set ACCELERATE_USE_CPU=true to "
            "train on CPUs, or launch one process."
        )
    state = accelerator.state
    if plugin and state.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate takes the plugin where there are GPUs alone; what it does then runs on CPUs.
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
    return accelerator


def sharding_plugin() -> FullyShardedDataParallelPlugin | None:
    """Options of FSDP2, if the launcher asks for it.

    Raises
    ------
    InputError
        If FSDP of version 1 is asked for.
    """
    if os.environ.get(FSDP_VARIABLE, "false").lower() != "true" or num_launched_processes() == 1:
        return None
    # Each process loads the language model, which is tried out before a training.
    plugin = FullyShardedDataParallelPlugin(cpu_ram_efficient_loading=False)
    if plugin.fsdp_version != 2:
        raise InputError(
            f"FSDP of version {plugin.fsdp_version} is asked for; parameters are sharded by "
            "version 2. Add --fsdp_version 2 to `accelerate launch`, or set FSDP_VERSION=2."
        )
    return plugin


def shard(accelerator: Accelerator, module: nn.Module, language_model: FrozenLanguageModel) -> None:
    """Shard the parameters of a module over the processes, in place.

    Parameters
    ----------
    accelerator : Accelerator
        With `is_fsdp2`.
    module : Module
    language_model : FrozenLanguageModel
        In the module. Its layers are gathered one at a time, if the launcher names no others. It
        reads every batch in one pass, because processes gather a layer as often as each other.
    """
    language_model.shortcuts = replace(language_model.shortcuts, prefix_cache=False)
    plugin = accelerator.state.fsdp_plugin
    if plugin.auto_wrap_policy is None:
        wrap = {"auto_wrap_policy": "transformer_based_wrap", "fsdp_version": 2}
        plugin.auto_wrap_policy = FullyShardedDataParallelPlugin(**wrap).auto_wrap_policy
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = list(language_model.model._no_split_modules or [])
    # Single numbers cannot be sharded.
    plugin.ignored_modules = [nn.ParameterList(scalar_parameters(module))]
    # Accelerate takes no module without an optimizer; those of the stages are made after this.
    accelerator.prepare(module, torch.optim.SGD(module.parameters(), lr=0.0))


def select_share(parts: Sequence[T], index: int, num_processes: int) -> Sequence[T]:
    """Select the micro batches of a step that a process reads.

    Parameters
    ----------
    parts : sequence
        Of all processes.
    index : int
        Of the process, from 0.
    num_processes : int

    Returns
    -------
    sequence
        As many for each process; every one is of one process.

    Raises
    ------
    InputError
        If their number is no multiple of that of the processes.

    Examples
    --------
    >>> select_share("abcdef", 1, 3)
    'be'
    """
    if len(parts) % num_processes:
        raise InputError(
            f"a step has {len(parts)} micro batches, which {num_processes} processes cannot "
            "share alike: there are too few trials. Choose a smaller batch_size, more "
            "subjects_per_batch, or fewer processes."
        )
    return parts[index::num_processes]


def scalar_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that are single numbers, which every process holds."""
    return [parameter for parameter in module.parameters() if not parameter.ndim]


def average_scalar_gradients(accelerator: Accelerator, module: nn.Module) -> None:
    """Average the gradients of what a sharded module does not shard over the processes."""
    for parameter in scalar_parameters(module):
        if parameter.grad is not None:
            parameter.grad = accelerator.reduce(parameter.grad, "mean")


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters of a module are sharded over processes."""
    return hasattr(module, "unshard")


@contextmanager
def gathered_weights(module: nn.Module) -> Iterator[None]:
    """Gather what a sharded module holds outside its layers, for calls beside its `forward`.

    Parameters
    ----------
    module : Module
        Sharded or not.
    """
    if not is_sharded(module):
        yield
        return
    sharded: Any = module
    sharded.unshard()
    try:
        yield
    finally:
        sharded.reshard()


def gather_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Complete tensors on the CPU, whether or not they are sharded; all processes call it.

    Parameters
    ----------
    tensors : mapping from str to Tensor
        With the same names in the same order in all processes.

    Returns
    -------
    dict of str to Tensor
        Copies.

    Examples
    --------
    >>> gather_tensors({"weight": torch.ones(2)})
    {'weight': tensor([1., 1.])}
    """
    return {
        name: getattr(tensor, "full_tensor", lambda tensor=tensor: tensor)().detach().cpu().clone()
        for name, tensor in tensors.items()
    }


def shard_like(tensor: Tensor, parameter: Any) -> Tensor:
    """A complete tensor, sharded as a parameter of its shape is; all processes call it.

    Parameters
    ----------
    tensor : Tensor
    parameter : Parameter
        Sharded or not.

    Returns
    -------
    Tensor
    """
    if not hasattr(parameter, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh = parameter.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, parameter.placements)
