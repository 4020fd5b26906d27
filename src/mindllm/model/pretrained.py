"""A model on disk and on the Hugging Face hub: from_pretrained, save_pretrained, push_to_hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard as HubModelCard
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn

from mindllm.fmri.masker import VoxelMasker
from mindllm.language.hub import offline, quiet_transformers, why_hub_unreachable
from mindllm.model.checkpoint import (
    LANGUAGE_MODEL_FOLDER,
    REMEDY,
    WHAT,
    CheckpointParts,
    LanguageModelRef,
    check_weights,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
)
from mindllm.model.encoder import FMRIEncoder
from mindllm.model.encoding_model import EncodingModel
from mindllm.model.language_model import (
    FrozenLanguageModel,
    default_device,
    load_language_model,
)
from mindllm.model.model_card import MeasuredScore, ModelCard, render_model_card
from mindllm.model.subject_alignment import SubjectTransform
from mindllm.model.text_reader import TextReader, make_text_reader
from mindllm.utils.errors import InputError
from mindllm.utils.files import describe_read_errors
from mindllm.utils.folders import replace_directory

LANGUAGE_MODEL_PREFIX = "language_model."
logger = logging.getLogger(__name__)


class PretrainedModule(nn.Module, PyTorchModelHubMixin):
    """What lets a `MindLLM` be loaded, saved and shared.

    A checkpoint holds its own weights, maskers and model card; the language model is named in it,
    or beside them if its weights were trained.
    """

    encoder: FMRIEncoder
    projector: nn.Linear
    language_model: FrozenLanguageModel
    chat_template: str | None
    maskers: dict[str, VoxelMasker]
    adaptations: dict[str, SubjectTransform]
    encoding_model: EncodingModel | None
    text_reader: TextReader | None
    sentence_encoder: str | None
    model_card: ModelCard

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        language_model: str | Path | None = None,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        quantization_config: Any = None,
        attn_implementation: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **language_model_kwargs: Any,
    ) -> Self:
        """Load a model from a folder or from the Hugging Face hub.

        Parameters
        ----------
        pretrained_model_name_or_path : str or Path
            A model folder, or a hub id such as "lab/mindllm-nsd".
        language_model : str or Path, optional
            Where the language model is, if not under the name that the model has for it.
        revision : str, optional
            Branch, tag or commit on the hub.
        dtype : str or torch.dtype, optional
            Of the language model; by default float32 on a CPU, bfloat16 elsewhere.
        device_map : str or dict, optional
            Where to put the language model; by default everything goes to the GPU if there is one.
        quantization_config, attn_implementation, **language_model_kwargs
            Passed on to the language model's ``from_pretrained``.
        token, cache_dir, local_files_only, force_download
            As in huggingface_hub.

        Returns
        -------
        MindLLM
            In evaluation mode.

        Raises
        ------
        InputError
            If it is no model, is damaged or has another format, or a model cannot be found.
        """
        folder = resolve_checkpoint(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        parts = load_checkpoint(folder)
        if language_model and parts.trained_language_model:
            raise InputError(
                f"{folder} holds a language model of its own, whose weights were trained; "
                f"{language_model} cannot stand in for it. Leave the language model out."
            )
        loaded = load_language_model(
            language_model or parts.trained_language_model or parts.language_model.name,
            default_device() if device_map is None else None,
            dtype,
            device_map=device_map,
            quantization_config=quantization_config,
            attn_implementation=attn_implementation,
            **language_model_kwargs,
        )
        return cls._from_parts(parts, loaded, folder)

    @classmethod
    def _from_parts(
        cls, parts: CheckpointParts, language_model: FrozenLanguageModel, folder: Path
    ) -> Self:
        """Put a model together from what a folder holds."""
        ref = parts.language_model
        if parts.trained_language_model:
            language_model.name, language_model.is_modified = ref.name, True
        if language_model.fingerprint != ref.fingerprint:
            logger.warning(
                "the language model %s differs from the one %s was trained with "
                "(fingerprint %s, expected %s): expect other text",
                language_model.name,
                folder,
                language_model.fingerprint,
                ref.fingerprint,
            )
        if parts.adapter:
            with offline(), describe_read_errors(parts.adapter, REMEDY):
                language_model.model.load_adapter(str(parts.adapter))
            language_model.model.requires_grad_(False)
        model = cls(parts.config, parts.parcel_names, language_model, ref.chat_template)
        model.encoding_model = parts.encoding_model
        model.sentence_encoder = parts.sentence_encoder
        shape = (parts.config.num_fmri_tokens, parts.config.token_dim)
        device = model.projector.weight.device
        model.text_reader = make_text_reader(parts.text_reader, parts.encoding_model, shape, device)
        check_weights(model.state_dict(), parts.state_dict, folder)
        model.load_state_dict(parts.state_dict)
        model.model_card, model.maskers = parts.model_card, dict(parts.maskers)
        model.adaptations = dict(parts.adaptations)
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write a model folder, completely or not at all.

        Parameters
        ----------
        save_directory : str or Path
            An earlier model in it is replaced.
        **kwargs
            Of `huggingface_hub.ModelHubMixin.save_pretrained`, such as ``push_to_hub=True``.

        Returns
        -------
        str or None
            Of `push_to_hub`, if it was asked for.

        Raises
        ------
        InputError
            If a weight is not finite, another process writes the folder, or the disk is full.
        """
        with replace_directory(Path(save_directory)) as folder:
            result: str | None = super().save_pretrained(folder, **kwargs)
        return result

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write all parts; called by `save_pretrained` and `push_to_hub`."""
        language_model = self.language_model
        if getattr(language_model.model, "peft_config", None):
            with offline():
                language_model.model.save_pretrained(save_directory / "adapter")
        identity = language_model.fingerprint
        if language_model.is_modified:
            identity = fingerprint(language_model.model)
            with offline(), quiet_transformers():
                language_model.model.save_pretrained(save_directory / LANGUAGE_MODEL_FOLDER)
                language_model.tokenizer.save_pretrained(save_directory / LANGUAGE_MODEL_FOLDER)
        ref = LanguageModelRef(language_model.name, identity, self.chat_template)
        parts = CheckpointParts(
            config=self.encoder.config,
            parcel_names=self.encoder.parcel_names,
            language_model=ref,
            state_dict=self.state_dict(),
            maskers=self.maskers,
            model_card=self.model_card,
            sentence_encoder=self.sentence_encoder,
            text_reader=self.text_reader.config if self.text_reader else None,
            adaptations=self.adaptations,
        )
        save_checkpoint(parts, save_directory)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> HubModelCard:
        """Write the README.md of a model folder: what it is, its training, its measured results.

        Parameters
        ----------
        *args, **kwargs
            Of the mixin; not used.

        Returns
        -------
        huggingface_hub.ModelCard
        """
        weights = [*self.encoder.parameters(), *self.projector.parameters()]
        return HubModelCard(
            render_model_card(
                self.model_card,
                language_model=self.language_model.name,
                num_parameters=sum(p.numel() for p in weights),
                subjects=list(self.maskers),
            )
        )

    def add_results(self, rows: Sequence[Any]) -> None:
        """Put measured results into the model card that `save_pretrained` writes.

        Parameters
        ----------
        rows : sequence of MetricRow
            Such as ``evaluate(model, store).scores``: objects with subject, condition, metric,
            value, ci_low, ci_high, chance_level and n_trials.
        """
        names = [field.name for field in fields(MeasuredScore)]
        results = [MeasuredScore(**{name: getattr(row, name) for name in names}) for row in rows]
        self.model_card = replace(self.model_card, results=results)


def drop_language_model(module: nn.Module, state_dict: Any, prefix: str, metadata: Any) -> None:
    """State-dict hook: the language model is named in a checkpoint, not stored."""
    for name in [n for n in state_dict if n.startswith(prefix + LANGUAGE_MODEL_PREFIX)]:
        del state_dict[name]


def ignore_language_model(module: nn.Module, incompatible_keys: Any) -> None:
    """Load hook: a checkpoint without the language model's weights is complete."""
    missing = incompatible_keys.missing_keys
    missing[:] = [n for n in missing if LANGUAGE_MODEL_PREFIX not in n]


def check_model_name(path: Path) -> None:
    """Check that a path is a model folder or can be a hub id, which takes no time.

    Parameters
    ----------
    path : Path
        A model folder, or a hub id such as "lab/mindllm-nsd".

    Raises
    ------
    InputError
        If there is no such folder and it is no hub id, or the folder holds no model.
    """
    if path.exists():
        if not (path / "config.json").is_file():
            raise InputError(f"{path} is not {WHAT}: it has no config.json.")
        return
    # A hub id is "owner/name"; anything else, or what lies in a folder that exists, is a path.
    is_id = len(path.parts) == 2 and path.parts[0] not in ("..", "~", path.anchor)
    if not is_id or path.parent.is_dir():
        raise InputError(f"there is no folder {path}: expected {WHAT}.")


def resolve_checkpoint(name: str | Path, **options: Any) -> Path:
    """The folder of a checkpoint: itself, or a snapshot of a hub repository.

    Raises
    ------
    InputError
        If there is no such folder or repository, or the hub cannot be reached.
    """
    path = Path(name)
    check_model_name(path)
    if path.exists():
        return path
    unreachable = why_hub_unreachable()
    if unreachable:
        options["local_files_only"] = True
    try:
        return Path(snapshot_download(str(name), **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = unreachable or type(error).__name__
        raise InputError(
            f"there is no folder {name}, and no model of that name that can be fetched from the "
            f"hub ({reason}). Give a folder made by `mindllm train`, or check the hub id and the "
            "connection."
        ) from error
