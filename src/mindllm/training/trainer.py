"""Training: one loop on Accelerate, two stages.

alignment           fMRI embeddings are drawn to the text about their stimulus, away from others
instruction_tuning  fMRI tokens are tuned so that the frozen language model gives the answer, and
                    a LoRA adapter with them, if one is asked for

All randomness of a step comes from the seed and the step's number, so an interrupted training ends
with the same weights.
"""

import logging
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from rich.progress import Progress
from torch import Tensor, nn

from mindllm.data.sampler import SubjectBatchSampler, iter_eval_batches
from mindllm.data.store import Store
from mindllm.model.language_model import load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.model.receptive_fields import init_queries
from mindllm.training import tuning
from mindllm.training.batches import BatchBuilder, MicroBatch, check_longest_conversations
from mindllm.training.callbacks import (
    EVAL_BATCH_SIZE,
    BestWeights,
    History,
    RetrievalAccuracy,
    TrainerCallback,
)
from mindllm.training.configuration import (
    STAGES,
    Stage,
    TrainConfig,
    check_batch_sizes,
    check_processes,
)
from mindllm.training.encoding import fit_to_training_trials
from mindllm.training.initialization import init_memory_from_text
from mindllm.training.loggers import CSV_NAME, TrainingLog, check_loggers, trackers
from mindllm.training.losses import MindLLMLoss
from mindllm.training.model_card import create_model_card, measure_null_tokens
from mindllm.training.optimization import (
    RunningStatistics,
    cosine_schedule_with_warmup,
    create_optimizer,
)
from mindllm.training.parallel import (
    average_scalar_gradients,
    create_accelerator,
    gather_tensors,
    gathered_weights,
    is_sharded,
    select_share,
    shard,
)
from mindllm.training.resume import (
    Checkpoint,
    HistoryEntry,
    TrainerState,
    check_same_training,
    collect_optimizer_state,
    load_checkpoint,
    restore_optimizer_state,
    run_fingerprint,
    save_checkpoint,
)
from mindllm.training.trials import select_training_data
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_output
from mindllm.utils.folders import recover_directory, remove_folder, replace_directory
from mindllm.utils.locks import lock_output
from mindllm.utils.processes import is_main_process
from mindllm.utils.progress import progress_bar, spinner

CHECKPOINT = Path("training", "state.safetensors")  # in the model folder, until the end
logger = logging.getLogger(__name__)


def train(
    store: Store,
    out: str | Path,
    config: TrainConfig,
    *,
    subjects: Sequence[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> MindLLM:
    """Train a model on the training trials of a store and write it.

    Parameters
    ----------
    store : Store
    out : str or Path
        The model folder; its subfolder `training` holds the checkpoint until the end.
    config : TrainConfig
    subjects : sequence of str, optional
        All subjects by default.
    resume : bool
        Go on from the last checkpoint in `out`, if there is one, to the same weights as without
        the interruption.
    progress : rich.progress.Progress, optional
        Bars to add one per stage to, and those of what comes before and after.
    callbacks : sequence of TrainerCallback

    Returns
    -------
    MindLLM
        The trained model with the best weights, in evaluation mode.

    Raises
    ------
    InputError
        If no trial is left, another process writes `out`, it holds a finished model or an
        unfinished training and `resume` is False, the training was begun or finished with other
        options or data, or it diverges.

    Examples
    --------
    >>> from mindllm import Store
    >>> config = TrainConfig(alignment={"max_steps": 50})
    >>> model = train(Store("store"), "model", config, subjects=["sub-01"])  # doctest: +SKIP
    """
    out, subjects = Path(out), store.select_subjects(subjects)
    store.check_splits(subjects)
    is_main = is_main_process()  # the others neither lock nor write
    with lock_output(out) if is_main else nullcontext():
        if is_main:
            recover_directory(out)
        if (out / "config.json").exists():
            return reload_trained(out, store, subjects, config, resume)
        check_loggers(config.loggers)
        if is_main:
            check_output(out, [store.path], ("training", CSV_NAME))
        check_unfinished(out, resume)
        checkpoint = out / CHECKPOINT
        trainer = Trainer(store, subjects, config, callbacks, out, progress)
        if checkpoint.exists():
            trainer.restore(checkpoint)
            logger.info("going on after step %d", trainer.state.step)
        trainer.run(checkpoint, progress)
        return trainer.finalize(out)


def check_unfinished(out: Path, resume: bool) -> None:
    """Check that a training may begin, or go on, in a folder.

    Parameters
    ----------
    out : Path
    resume : bool
        Whether it may go on.

    Raises
    ------
    InputError
        If it holds a model or an unfinished training, and `resume` is False.
    """
    if resume:
        return
    if (out / "config.json").exists():
        raise InputError(
            f"{out} already holds a trained model. Choose another folder, or remove it."
        )
    if (out / CHECKPOINT).exists():
        raise InputError(
            f"{out} holds an unfinished training. Add --resume to go on with it, "
            "or remove the folder."
        )


def reload_trained(
    out: Path, store: Store, subjects: Sequence[str], config: TrainConfig, resume: bool
) -> MindLLM:
    """Load the finished model in `out`; InputError unless the same training is resumed."""
    check_unfinished(out, resume)
    data = select_training_data(store, subjects, config)
    check_same_training(out, config, store, data.training.subjects)
    logger.info("%s is already trained", out)
    if is_main_process():
        remove_folder(out / "training", within=out)
    return MindLLM.from_pretrained(out)


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step has measured.

    Parameters
    ----------
    loss : float
        Of all its samples, in nats.
    grad_norm : float
        Norm of the gradient, before it is clipped.
    """

    loss: float
    grad_norm: float


class Trainer:
    """A training: the model, its trials, and how far it has come.

    Parameters
    ----------
    store : Store
    subjects : sequence of str
        To train on, and to choose validation subjects among.
    config : TrainConfig
    callbacks : sequence of TrainerCallback
        Called after those that record the history and keep the best weights.
    log_dir : Path, optional
        The model folder, where losses are written as they are measured; None: nowhere.
    progress : rich.progress.Progress, optional
        Bars of what comes before and after the steps.

    Attributes
    ----------
    model : MindLLM
    loss_fn : MindLLMLoss
    data : TrainingData
    batches : BatchBuilder
    state : TrainerState
    """

    def __init__(
        self,
        store: Store,
        subjects: Sequence[str],
        config: TrainConfig,
        callbacks: Sequence[TrainerCallback] = (),
        log_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.store, self.config, self.progress = store, config, progress
        self.accelerator = create_accelerator(
            trackers(config.loggers) if log_dir else None, log_dir and log_dir / "tensorboard"
        )
        check_processes(config, self.accelerator.num_processes)
        self.log = TrainingLog(self.accelerator, log_dir, config) if log_dir else None
        self.data = select_training_data(store, subjects, config)
        self.build()
        self.state = TrainerState()
        self.callbacks = [RetrievalAccuracy(), BestWeights(), History(), *callbacks]
        self.optimizer: torch.optim.Optimizer | None = None
        self.optimizer_state: dict[str, Tensor] = {}  # of a checkpoint, until the stage begins

    def build(self) -> None:
        """Make the model with its first weights, its loss, and what makes its batches."""
        config, conversations = self.config, self.data.conversations
        texts = conversations.texts
        with spinner(self.progress, "loading the language model"):
            self.model, memory_texts = self.build_model()
            tuning.prepare_language_model(self.model.language_model, config)
        check_batch_sizes(config, self.model.encoder.config)
        if config.instruction_tuning.max_steps:
            check_longest_conversations(self.model, conversations)
        with progress_bar(self.progress, "embedding texts", len(texts)) as advance:
            self.loss_fn = MindLLMLoss(self.model, texts, config, advance)
        if memory_texts:
            embeddings = self.loss_fn.text_embeddings[memory_texts]
            init_memory_from_text(self.model, [texts[i] for i in memory_texts], embeddings)
        self.batches = BatchBuilder(self.store, self.model, conversations, config)
        if config.torch_compile:
            tuning.compile_language_model(self.model.language_model)

    def build_model(self) -> tuple[MindLLM, list[int]]:
        """Load the model to start from, or make a new one for the store's parcels and subjects.

        Returns
        -------
        model : MindLLM
        memory_texts : list of int
            Indices of the texts that a new model's memory is initialized with.
        """
        c, device = self.config, self.accelerator.device
        quantization = tuning.quantization_config(c)
        if c.init_from:
            model = MindLLM.from_pretrained(
                c.init_from,
                c.language_model,
                device_map=str(device),
                dtype=c.language_model_dtype(),
                quantization_config=quantization,
            )
            model.text_reader = None  # it reads the encoding model, which is fitted anew
            return model, []
        language_model = load_language_model(
            c.language_model, device, c.language_model_dtype(), quantization_config=quantization
        )
        torch.manual_seed(c.seed)  # after loading, which may draw random numbers the first time
        sizes, training = c.encoder_config(), self.data.training
        parcel_names = {
            atlas: [names[number] for number in sorted(names)]
            for atlas, names in self.store.select_atlases(sizes.atlases).items()
        }
        memory_texts = self.data.conversations.memory_texts(training, sizes.memory_size)
        sizes = sizes.model_copy(update={"memory_size": len(memory_texts)})
        model = MindLLM(sizes, parcel_names, language_model, c.chat_template)
        init_queries(model.encoder, self.store.maskers(training.subjects))
        return model, memory_texts

    def run(self, checkpoint: Path, progress: Progress | None = None) -> None:
        """Take all steps of both stages that are left.

        Parameters
        ----------
        checkpoint : Path
            File to write checkpoints to.
        progress : rich.progress.Progress, optional
        """
        first_step = 0
        try:
            if self.log:
                self.log.begin(self.state.step)
            for stage in STAGES:
                max_steps = self.config.stage(stage).max_steps
                if self.state.step == first_step:
                    self.optimizer_state = {}  # each stage begins with a new optimizer
                if self.state.step < first_step + max_steps:
                    self.run_stage(stage, first_step, checkpoint, progress)
                first_step += max_steps
        finally:
            if self.log:
                self.log.close()

    def run_stage(
        self, stage: Stage, first_step: int, checkpoint: Path, progress: Progress | None
    ) -> None:
        """Take the steps of a stage that are left, with validations and checkpoints between."""
        c, options = self.config, self.config.stage(stage)
        max_steps, n_done = options.max_steps, self.state.step - first_step
        loss_module, optimizer = self.prepare_stage(stage)
        title = f"training: {stage}"
        with progress_bar(progress, title, max_steps, n_done) as advance:
            for stage_step in range(n_done, max_steps):
                factor = cosine_schedule_with_warmup(stage_step, max_steps, c.warmup_ratio)
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * factor
                result = self.take_step(stage, loss_module, optimizer)
                for callback in self.callbacks:
                    callback.on_step_end(self, result.loss)
                is_last = stage_step + 1 == max_steps
                is_validated = is_last or self.state.step % c.eval_steps == 0
                entry = self.validate(stage) if is_validated else None
                self.log_step(stage, result, options.learning_rate * factor, entry)
                if is_last or self.state.step % c.save_steps == 0:
                    self.save(checkpoint)
                advance(1, f"{title} (loss {result.loss:.2f})")

    def prepare_stage(self, stage: Stage) -> tuple[nn.Module, AcceleratedOptimizer]:
        """Put the loss and the stage's optimizer, with a checkpoint's moments, on their devices."""
        is_fsdp2 = self.accelerator.is_fsdp2
        if is_fsdp2 and not is_sharded(self.loss_fn):
            shard(self.accelerator, self.loss_fn, self.model.language_model)
        parameters = self.loss_fn.trainable_parameters(stage)
        for name, parameter in self.loss_fn.named_parameters():
            parameter.requires_grad_(name in parameters)
        rate = tuning.learning_rate(self.config)
        self.optimizer = create_optimizer(parameters, self.config.stage(stage), rate)
        restore_optimizer_state(self.optimizer, parameters, self.optimizer_state)
        self.optimizer_state = {}
        if is_fsdp2:
            return self.loss_fn, self.accelerator.prepare_optimizer(self.optimizer)
        return self.accelerator.prepare(self.loss_fn, self.optimizer)

    def take_step(
        self, stage: Stage, loss_module: nn.Module, optimizer: AcceleratedOptimizer
    ) -> StepResult:
        """Take one optimizer step; InputError if the gradient is not finite."""
        loss_module.train()
        tuning.set_modes(self.model.language_model, self.config)
        loss = self.add_up_gradients(loss_module, self.draw_batch(stage))
        if is_sharded(loss_module):
            average_scalar_gradients(self.accelerator, loss_module)
        norm = self.accelerator.clip_grad_norm_(loss_module.parameters(), self.config.max_grad_norm)
        if not torch.isfinite(norm):
            raise InputError(
                f"training diverged at step {self.state.step} of the stage {stage}: the gradient "
                f"is {norm}. Lower its learning_rate ({self.config.stage(stage).learning_rate})."
            )
        optimizer.step()
        optimizer.zero_grad()
        self.state.step += 1
        return StepResult(loss.item(), float(norm))

    def log_step(
        self, stage: Stage, result: StepResult, learning_rate: float, entry: HistoryEntry | None
    ) -> None:
        """Write what a step, and the validation after it if there was one, have measured."""
        values = {"loss": result.loss, "learning_rate": learning_rate}
        values["grad_norm"] = result.grad_norm
        if entry is not None and entry.val_loss is not None:
            values["val_loss"] = entry.val_loss
        if self.log:
            self.log.write(self.state.step, stage, values | (entry.scores if entry else {}))

    def add_up_gradients(self, loss_module: nn.Module, parts: Sequence[MicroBatch]) -> Tensor:
        """Add up the gradients of a step's micro batches, which processes share.

        Returns the loss of all.
        """
        accelerator = self.accelerator
        num_processes, rank = accelerator.num_processes, accelerator.process_index
        loss = torch.zeros((), device=accelerator.device)
        statistics = RunningStatistics(self.loss_fn)
        for part in select_share(parts, rank, num_processes):
            statistics.begin_micro_batch()
            self.seed_draws(part.index)
            is_last = part.index + num_processes >= len(parts)
            with nullcontext() if is_last else accelerator.no_sync(loss_module):
                part_loss = part.weight * loss_module(self.batches.build_micro_batch(part))
                accelerator.backward(num_processes * part_loss)  # of which the mean is taken
            statistics.end_micro_batch()
            loss += part_loss.detach()
        sums = [accelerator.reduce(total, "sum") for total in statistics.sums]
        statistics.average(sums, len(parts))
        return accelerator.reduce(loss, "sum")

    def seed_draws(self, index: int) -> None:
        """Seed torch for a micro batch, with the seed, the step's number and its own alone."""
        seed = self.config.seed * 1_000_003 + self.state.step
        if index:
            (seed,) = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64).tolist()
        torch.manual_seed(seed)

    def draw_batch(self, stage: Stage) -> list[MicroBatch]:
        """Draw a step's micro batches, from the seed and the step's number alone."""
        c, options = self.config, self.config.stage(stage)
        rng = np.random.default_rng([c.seed, self.state.step, 0])
        sampler = SubjectBatchSampler(
            self.data.trials_for_stage(stage, self.data.training),
            options.batch_size * options.gradient_accumulation_steps,
            options.subjects_per_batch,
            c.voxel_dropout,
            c.mixup_prob,
            c.repetition_noise_scale,
        )
        return self.batches.split(stage, sampler.sample(rng), rng)

    @torch.no_grad()
    def validate(self, stage: Stage) -> HistoryEntry:
        """Measure the loss of the validation trials, if there are any, and call the callbacks."""
        entry = HistoryEntry(self.state.step, stage, float("nan"))
        if self.data.validation:
            self.loss_fn.eval()
            trials = self.data.trials_for_stage(stage, self.data.validation)
            losses = [
                (len(batch.stimuli), self.loss_fn(self.batches.build(stage, batch)).item())
                for batch in iter_eval_batches(trials, EVAL_BATCH_SIZE)
            ]
            entry.val_loss = sum(n * loss for n, loss in losses) / sum(n for n, _ in losses)
        for callback in self.callbacks:
            with gathered_weights(self.loss_fn):
                callback.on_validation_end(self, entry)
        return entry

    def fit_encoding_model(self) -> None:
        """Fit the encoding model to the trained encoder, in place of one that it started from."""
        model, config, encoder = self.model, self.config.encoding_model, None
        model.encoding_model = None
        if config:
            encoder = self.config.sentence_encoder
            model.encoding_model = fit_to_training_trials(
                model, self.data, self.batches, config, encoder, self.progress
            )
        model.sentence_encoder = encoder if model.encoding_model else None

    def save(self, path: Path) -> None:
        """Write a checkpoint, completely or not at all."""
        is_main = self.accelerator.is_main_process
        if self.optimizer is None or not (is_main or is_sharded(self.loss_fn)):
            return  # processes gather together what they share
        parameters = dict(self.loss_fn.named_parameters())
        moments = gather_tensors(collect_optimizer_state(self.optimizer, parameters))
        weights = gather_tensors(self.loss_fn.state_dict())
        if is_main:
            save_checkpoint(path, Checkpoint(self.state, weights, moments), self.fingerprint())

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; InputError if it is damaged or of another training."""
        checkpoint = load_checkpoint(path, self.fingerprint())
        self.loss_fn.load_state_dict(checkpoint.weights)
        self.state, self.optimizer_state = checkpoint.state, checkpoint.optimizer_state

    def fingerprint(self) -> dict[str, object]:
        """What must be the same for this training to be resumed."""
        language_model = self.model.language_model.fingerprint
        return run_fingerprint(self.config, self.store, self.data.training.subjects, language_model)

    def take_best_weights(self) -> None:
        """Give the model the best weights; a sharded one is replaced by one that is complete."""
        weights = self.state.best_state_dict
        if is_sharded(self.loss_fn):
            weights = weights or gather_tensors(self.loss_fn.state_dict())
            self.accelerator.free_memory()
            self.build()
        if weights:
            self.loss_fn.load_state_dict(weights)

    def finalize(self, out: Path) -> MindLLM:
        """Take the best weights, describe the training in the model, and write its folder.

        Parameters
        ----------
        out : Path

        Returns
        -------
        MindLLM
            In evaluation mode.
        """
        self.take_best_weights()
        model = self.model.eval()
        tuning.undo_compilation(model.language_model)
        measure_null_tokens(model, self.data, self.batches)
        self.fit_encoding_model()
        model.model_card = create_model_card(model, self.data, self.config, self.state.step)
        model.maskers |= {s: self.store.masker(s) for s in self.data.training.subjects}
        if self.accelerator.is_main_process:
            with replace_directory(out) as folder:
                for callback in self.callbacks:
                    callback.on_train_end(self, folder)
                if self.log and self.log.path.exists():
                    shutil.copy(self.log.path, folder)
                model.save_pretrained(folder)
            remove_folder(out / "training", within=out)
        self.accelerator.wait_for_everyone()
        return model
