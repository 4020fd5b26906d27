"""Training: one loop on Accelerate, two stages.

align      the code of a trial is drawn to the text about its stimulus, and away from other text
language   the tokens made from the code stand before the frozen language model, which is to give the answer

All randomness of a step comes from the seed and the step's number, so an interrupted training ends with the same weights.
"""

import json
import logging
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mindllm.data.conversations import ConversationDataset
from mindllm.data.dataset import TrialDataset
from mindllm.data.sampler import SubjectBatch, SubjectBatchSampler, TrialBatch, iter_eval_batches
from mindllm.data.store import Store
from mindllm.model.encoder import SCALE_MM, VoxelFeatures
from mindllm.model.language_model import load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.plotting.curves import plot_training_curve
from mindllm.training.configuration import StageConfig, TrainConfig
from mindllm.training.losses import MindLLMLoss, Stage
from mindllm.training.optimization import ADAM_BETAS, cosine_schedule_with_warmup
from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_write, disk_errors, write_json
from mindllm.utils.versions import package_version

STAGES: tuple[Stage, ...] = ("alignment", "instruction_tuning")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
EVAL_BATCH_SIZE = 256  # validation trials read at once
logger = logging.getLogger(__name__)


def train(
    store: Store,
    out: str | Path,
    config: TrainConfig,
    *,
    subjects: Sequence[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> MindLLM:
    """Train a model on the training trials of some people and write the model folder `out`.

    resume: go on from the last checkpoint in `out`, to the same weights as without the interruption.
    Raises InputError for an empty split, a finished model in `out`, or other options than those it was begun with.
    """
    out = Path(out)
    if (out / "config.json").exists():
        if resume:
            logger.info("%s is already trained", out)
            return MindLLM.from_pretrained(out)
        raise InputError(
            f"{out} already holds a trained model. Choose another folder, or remove it."
        )
    with disk_errors(out):  # a place that cannot be written is told before anything is loaded
        empty = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        if empty:
            out.rmdir()
    experiment = Trainer(store, store.select_subjects(subjects), config)
    state = out / "training" / "state.safetensors"
    if state.exists() and not resume:
        raise InputError(
            f"{out} holds an unfinished training. Add --resume to go on with it, or remove the folder."
        )
    if state.exists():
        experiment.restore(state)
        logger.info("going on after step %d", experiment.step)
    experiment.run(state, progress)
    return experiment.finalize(out)


class Trainer:
    """A training under way: what is trained, on which trials, and how far it has come."""

    def __init__(self, store: Store, subjects: Sequence[str], config: TrainConfig) -> None:
        self.store, self.config = store, config
        self.accelerator = Accelerator(
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
        )
        self.device = self.accelerator.device
        self.trials, self.validation = choose_trials(store, subjects, config)
        if (
            config.permute_pairs
        ):  # also what chooses the checkpoint, or the truth would come in again
            for number, some in enumerate(filter(None, (self.trials, self.validation))):
                some.permute_pairs(config.seed + number)
        self.conversations = ConversationDataset(
            store,
            [self.trials] + ([self.validation] if self.validation else []),
            config.source_weights,
        )
        if not self.conversations.texts:
            raise InputError(
                f"{store.path} has conversations about single trials only; a training needs text about stimuli. Add captions: mindllm prepare instructions."
            )
        self.model, remembered = self.build_model()
        self.loss_fn = MindLLMLoss(self.model, self.conversations.texts, config)
        if remembered:
            self.loss_fn.init_memory_from_text(remembered, self.conversations.texts)
        self.voxels = {s: self.model.encoder.prepare_voxels(store.masker(s)) for s in subjects}
        self.stage_datasets: dict[tuple[Stage, int], TrialDataset] = {}
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.best_val_loss: dict[str, float] = {}  # stage -> lowest validation loss
        self.optimizer_state: dict[
            str, Tensor
        ] = {}  # of the optimizer, on their way from a checkpoint
        self.best_state_dict: dict[str, Tensor] = {}  # the weights with the best validation
        self.optimizer: torch.optim.Optimizer | None = None

    def build_model(self) -> tuple[MindLLM, list[int]]:
        """The model to go on from, or a new one for this store's regions and people, and the texts its memory begins as."""
        c, store = self.config, self.store
        if c.init_from:
            return MindLLM.from_pretrained(
                c.init_from, c.language_model, device_map=str(self.device), dtype=c.dtype
            ), []
        llm = load_language_model(c.language_model, self.device, c.dtype)
        torch.manual_seed(c.seed)  # after loading, which may draw random numbers the first time
        regions = {p: [names[n] for n in sorted(names)] for p, names in store.parcel_names.items()}
        sizes = c.encoder_config()
        remembered = self.conversations.memory_texts(self.trials, sizes.memory_size)
        model = MindLLM(
            sizes.model_copy(update={"memory_size": len(remembered)}), regions, llm, c.chat_template
        )
        model.encoder.init_queries([store.masker(s) for s in self.trials.subjects])
        return model, remembered

    def run(self, state: Path, progress: Progress | None) -> None:
        """The loop: every stage from where it stands to its end."""
        c, start = self.config, 0
        for stage in STAGES:
            settings: StageConfig = getattr(c, stage)
            task = (
                progress.add_task(
                    f"training: {stage}",
                    total=settings.max_steps,
                    completed=min(max(self.step - start, 0), settings.max_steps),
                )
                if progress
                else None
            )
            if self.step == start:
                self.optimizer_state = {}  # a stage begins with an optimizer of its own, also after an interruption
            if self.step < start + settings.max_steps:
                objective, optimizer = self.prepare_stage(stage, settings)
                recent: list[float] = []
                for step in range(self.step - start, settings.max_steps):
                    for group in optimizer.param_groups:
                        group["lr"] = settings.learning_rate * cosine_schedule_with_warmup(
                            step, settings.max_steps, c.warmup_ratio
                        )
                    objective.train()
                    self.model.language_model.eval()  # frozen: its dropout stays off
                    loss = objective(stage, *self.batch(stage, settings))
                    self.accelerator.backward(loss)
                    norm = self.accelerator.clip_grad_norm_(objective.parameters(), c.max_grad_norm)
                    if not torch.isfinite(norm):
                        raise InputError(
                            f"training diverged at step {self.step} of the stage {stage}: the gradient is {norm}. Lower its learning_rate ({settings.learning_rate})."
                        )
                    optimizer.step()
                    optimizer.zero_grad()
                    self.step += 1
                    recent.append(loss.item())
                    last = step + 1 == settings.max_steps
                    if last or self.step % c.eval_steps == 0:
                        self.validate(stage, float(np.mean(recent)))
                        recent = []
                    if last or self.step % c.save_steps == 0:
                        self.save(state)
                    if progress and task is not None:
                        progress.update(
                            task,
                            advance=1,
                            description=f"training: {stage} (loss {loss.item():.2f})",
                        )
            start += settings.max_steps

    def prepare_stage(self, stage: Stage, settings: StageConfig) -> tuple[Any, Any]:
        """The objective and a stage's optimizer on their devices; in mid-stage the optimizer gets its moments back."""
        trained = self.loss_fn.trainable_parameters(stage)
        for name, parameter in self.loss_fn.named_parameters():
            parameter.requires_grad_(name in trained)
        # Weight decay is for the head's matrices; what places a query or a region is not drawn to zero.
        heavy = [p for n, p in trained.items() if ".head." in n or ".projector." in n]
        light = [p for n, p in trained.items() if not (".head." in n or ".projector." in n)]
        groups = [
            {"params": heavy, "weight_decay": settings.weight_decay},
            {"params": light, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=ADAM_BETAS)
        for name, parameter in trained.items():
            if f"exp_avg/{name}" in self.optimizer_state:
                self.optimizer.state[parameter] = {
                    part: self.optimizer_state[f"{part}/{name}"] for part in MOMENTS
                }
        self.optimizer_state = {}
        return self.accelerator.prepare(self.loss_fn, self.optimizer)

    def batch(self, stage: Stage, settings: StageConfig) -> tuple[Any, ...]:
        """A step's batch, drawn from the seed and the step's number alone."""
        c = self.config
        torch.manual_seed(c.seed * 1_000_003 + self.step)
        rng = np.random.default_rng([c.seed, self.step, self.accelerator.process_index])
        pool = self.trials_for_stage(stage, self.trials)
        sampler = SubjectBatchSampler(
            pool,
            settings.batch_size,
            settings.subjects_per_batch,
            c.voxel_dropout,
            c.mixup_prob,
            c.repetition_noise_scale,
        )
        batch = sampler.sample(rng)
        return self.loss_inputs(stage, batch, rng)

    def trials_for_stage(self, stage: Stage, trials: TrialDataset) -> TrialDataset:
        """The trials that a stage can learn from: to align a code, there must be a text about what was shown."""
        if (stage, id(trials)) not in self.stage_datasets:
            self.stage_datasets[stage, id(trials)] = (
                trials.filter_stimuli(self.conversations.text_indices)
                if stage == "alignment"
                else trials
            )
        return self.stage_datasets[stage, id(trials)]

    def loss_inputs(
        self, stage: Stage, batch: TrialBatch, rng: np.random.Generator | None
    ) -> tuple[Any, ...]:
        """What the stage's loss takes. Without `rng`, nothing is random: each stimulus speaks through its first text."""
        people = [
            (self.jitter_coordinates(person, jitter=rng is not None), self.betas(person))
            for person in batch.subjects
        ]
        mix = batch.mixing_weights.to(self.device)
        if stage == "instruction_tuning":
            return (
                people,
                mix,
                [
                    self.model.processor(turns)
                    for turns in self.conversations.sample_conversations(batch, rng)
                ],
            )
        candidates, right = self.conversations.candidate_texts(
            batch.stimuli, self.config.max_negatives
        )
        return people, mix, candidates.to(self.device), right.to(self.device)

    def betas(self, subject_batch: SubjectBatch) -> Tensor:
        """Normalized values (b, V) of a person's share of a batch."""
        return torch.from_numpy(
            self.store.betas(subject_batch.subject, subject_batch.trial_indices, standardize=True)[
                :, subject_batch.voxel_indices
            ]
        ).to(self.device)

    def jitter_coordinates(self, subject_batch: SubjectBatch, jitter: bool) -> VoxelFeatures:
        """A person's kept voxels, in training a little shifted and stretched, as other people's brains are."""
        voxels = self.voxels[subject_batch.subject][
            torch.from_numpy(subject_batch.voxel_indices).to(self.device)
        ]
        if (
            not jitter or self.model.encoder.config.coordinate_system == "voxel"
        ):  # an index has no neighbours to move to
            return voxels
        stretch = torch.eye(3) + self.config.affine_jitter_sd * torch.randn(3, 3)
        shift = self.config.coord_jitter_mm / SCALE_MM * torch.randn(3)
        return VoxelFeatures(
            voxels.coords @ stretch.to(self.device) + shift.to(self.device), voxels.parcel_ids
        )

    @torch.no_grad()
    def validate(self, stage: Stage, loss: float) -> None:
        """Note the loss since the last check, and the loss on the validation trials; keep the best weights."""
        row: dict[str, Any] = {"step": self.step, "stage": stage, "loss": loss}
        if self.validation:
            self.loss_fn.eval()
            found = [
                (len(b.stimuli), self.loss_fn(stage, *self.loss_inputs(stage, b, None)).item())
                for b in iter_eval_batches(
                    self.trials_for_stage(stage, self.validation), EVAL_BATCH_SIZE
                )
            ]
            row["val_loss"] = sum(n * value for n, value in found) / sum(n for n, _ in found)
            if stage == "alignment":
                row["val_top1"] = self.retrieval_accuracy()
            if row["val_loss"] < self.best_val_loss.get(stage, math.inf):
                self.best_val_loss[stage] = row["val_loss"]
                self.best_state_dict = {
                    name: tensor.detach().cpu().clone()
                    for name, tensor in self.loss_fn.state_dict().items()
                }
        self.history.append(row)
        told = ", ".join(
            f"{name} {value:.3f}" for name, value in row.items() if name not in ("step", "stage")
        )
        logger.info("%s, step %d: %s", stage, self.step, told)

    def retrieval_accuracy(self) -> float:
        """Share of validation trials whose code is nearest to a text about its stimulus, among all texts about them."""
        hits, count = 0.0, 0
        assert self.validation is not None
        for batch in iter_eval_batches(
            self.trials_for_stage("alignment", self.validation), EVAL_BATCH_SIZE
        ):
            people, mix, _, _ = self.loss_inputs("alignment", batch, None)
            candidates, right = self.conversations.candidate_texts(batch.stimuli, limit=0)
            best = (
                self.loss_fn.similarity(self.loss_fn.embed(people, mix), candidates.to(self.device))
                .argmax(1)
                .cpu()
            )
            hits, count = (
                hits + right[torch.arange(len(best)), best].sum().item(),
                count + len(best),
            )
        return hits / count

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all: weights, the optimizer's moments, the best weights, the history."""
        if not self.accelerator.is_main_process or self.optimizer is None:
            return
        names = {id(p): name for name, p in self.loss_fn.named_parameters()}
        tensors = {f"weights/{name}": tensor for name, tensor in self.loss_fn.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best_state_dict.items()}
        for parameter, state in self.optimizer.state.items():
            tensors |= {f"{part}/{names[id(parameter)]}": state[part] for part in MOMENTS}
        content = {
            "step": self.step,
            "history": self.history,
            "best": self.best_val_loss,
            "identity": self.run_fingerprint(),
        }
        with atomic_write(path) as temporary:
            save_file(
                {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()},
                temporary,
                {"experiment": json.dumps(content)},
            )

    def restore(self, path: Path) -> None:
        """Take up a checkpoint. Raises InputError if it is damaged or was made with other options, people or data."""
        try:
            with safe_open(path, "pt") as file:
                content = json.loads(file.metadata()["experiment"])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise InputError(
                f"{path} is damaged ({error}). Remove {path.parent.parent} and train anew."
            ) from error
        mine, theirs = self.run_fingerprint(), content["identity"]
        differ = sorted(
            key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)
        )
        if differ:
            raise InputError(
                f"this training was begun with other options: {'; '.join(f'{k}: {theirs.get(k)!r} then, {mine.get(k)!r} now' for k in differ)}. Repeat them, or train into another folder."
            )
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            if part in parts:
                parts[part][rest] = tensor
            else:
                self.optimizer_state[name] = tensor
        self.loss_fn.load_state_dict(parts["weights"])
        self.best_state_dict, self.step, self.history, self.best_val_loss = (
            parts["best"],
            content["step"],
            content["history"],
            content["best"],
        )

    def run_fingerprint(self) -> dict[str, Any]:
        """What must be the same for a training to be gone on with."""
        sizes = {s: self.store.betas(s).shape for s in self.trials.subjects}
        return self.config.model_dump(mode="json") | {
            "store": self.store.meta["name"],
            "split": self.store.split["name"],
            "subjects": {s: list(shape) for s, shape in sizes.items()},
            "llm": self.model.language_model.fingerprint,
        }

    def finalize(self, out: Path) -> MindLLM:
        """Take the best weights, measure the mean token, and write the model folder with the report of its training."""
        if self.best_state_dict:
            self.loss_fn.load_state_dict(self.best_state_dict)
        model = self.model.eval()
        with torch.no_grad():
            sums = [
                model.encoder([(self.voxels[p.subject], self.betas(p))]).sum(0)
                for b in iter_eval_batches(self.trials, EVAL_BATCH_SIZE)
                for p in b.subjects
            ]
            model.null_tokens.copy_(torch.stack(sums).sum(0) / len(self.trials))
        before, stimuli = model.model_card, set(self.trials.table["stimulus"])
        asked, first = self.conversations.questions(stimuli), self.conversations.first_answer
        model.model_card = {
            "subjects": sorted({*self.trials.subjects, *before.get("subjects", [])}),
            "validation_subjects": self.validation.subjects if self.validation else [],
            "stimuli": sorted(stimuli.union(before.get("stimuli", []))),
            "answers": dict(
                Counter(first[s] for s in self.trials.table["stimulus"] if s in first).most_common()
            ),
            "question": asked.pop() if len(asked) == 1 else None,
            "sources": sorted({*self.conversations.sources, *before.get("sources", [])}),
            "store": self.store.meta["name"],
            "split": self.store.split,
            "seed": self.config.seed,
            "steps": self.step,
            "normalization": {s: self.store.standardized_with(s) for s in self.trials.subjects},
            "started_from": before or None,
            "versions": {
                "mindllm": package_version("mindllm"),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "config": self.config.model_dump(mode="json"),
        }
        if before and "stimuli" not in before:
            del model.model_card[
                "stimuli"
            ]  # what the earlier training showed is unknown, so is the whole
        if self.accelerator.is_main_process:
            write_json(out / "training.json", {"history": self.history, "best": self.best_val_loss})
            plot_training_curve(self.history, out / "training.png")
            model.save_pretrained(out)
            shutil.rmtree(out / "training", ignore_errors=True)
        return model


def choose_trials(
    store: Store, subjects: Sequence[str], config: TrainConfig
) -> tuple[TrialDataset, TrialDataset | None]:
    """Trials to train on, and to choose the checkpoint with: the split `val`, or all training trials of some people."""
    sources = list(config.source_weights)
    learners, choosers, split = list(subjects), list(subjects), "val"
    if not any((store.trials(s)["split"] == "val").any() for s in subjects):
        if not config.num_validation_subjects:
            return TrialDataset(store, subjects, "train", sources), None
        if config.num_validation_subjects >= len(subjects):
            raise InputError(
                f"num_validation_subjects={config.num_validation_subjects} leaves none of {len(subjects)} subjects to train on."
            )
        choosers = (
            np.random.default_rng(config.seed)
            .choice(subjects, config.num_validation_subjects, replace=False)
            .tolist()
        )
        learners, split = [s for s in subjects if s not in choosers], "train"
    return TrialDataset(store, learners, "train", sources), TrialDataset(
        store, choosers, split, sources
    )
