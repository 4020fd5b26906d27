"""What happens beside the optimizer's steps: history, best weights, retrieval accuracy, curve."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mindllm.data.sampler import iter_eval_batches
from mindllm.plotting.curves import plot_training_curve
from mindllm.training.parallel import gather_tensors
from mindllm.training.resume import HistoryEntry
from mindllm.utils.files import write_json

if TYPE_CHECKING:
    from mindllm.training.trainer import Trainer

EVAL_BATCH_SIZE = 256  # trials that are read at once without gradients
RETRIEVAL_ACCURACY = "val_retrieval_top1"
logger = logging.getLogger(__name__)


class TrainerCallback:
    """Hooks into a training; a subclass overrides those that it needs.

    Examples
    --------
    >>> class StopWatch(TrainerCallback):
    ...     def on_step_end(self, trainer, loss):
    ...         print(trainer.state.step, loss)
    """

    def on_step_end(self, trainer: Trainer, loss: float) -> None:
        """Called after each optimizer step.

        Parameters
        ----------
        trainer : Trainer
        loss : float
            Of the step, in nats.
        """

    def on_validation_end(self, trainer: Trainer, entry: HistoryEntry) -> None:
        """Called after each validation.

        Parameters
        ----------
        trainer : Trainer
        entry : HistoryEntry
            Losses; scores may be added to it.
        """

    def on_train_end(self, trainer: Trainer, directory: Path) -> None:
        """Called once, on the main process, before the model is written.

        Parameters
        ----------
        trainer : Trainer
        directory : Path
            The model folder.
        """


class RetrievalAccuracy(TrainerCallback):
    """Adds the top-1 text-retrieval accuracy of validation trials to the entries of alignment."""

    def on_validation_end(self, trainer: Trainer, entry: HistoryEntry) -> None:
        if entry.stage == "alignment" and trainer.data.validation:
            entry.scores[RETRIEVAL_ACCURACY] = retrieval_accuracy(trainer)


def retrieval_accuracy(trainer: Trainer) -> float:
    """Top-1 text retrieval of validation trials, among all texts about their stimuli.

    Parameters
    ----------
    trainer : Trainer
        With validation trials.

    Returns
    -------
    float
        Fraction of trials whose fMRI embedding is nearest to a text about the stimulus, in [0, 1];
        chance is 1 / number of texts where each stimulus has one.
    """
    validation, loss_fn = trainer.data.validation, trainer.loss_fn
    assert validation is not None
    hits, count = 0.0, 0
    trials = trainer.data.trials_for_stage("alignment", validation)
    for trial_batch in iter_eval_batches(trials, EVAL_BATCH_SIZE):
        batch = trainer.batches.build_alignment_batch(trial_batch, max_negatives=0)
        similarity = loss_fn.similarity(loss_fn.embed(batch.trials), batch.candidates)
        nearest = similarity.argmax(1, keepdim=True)
        hits += batch.positive_mask.gather(1, nearest).sum().item()
        count += len(nearest)
    return hits / count


class BestWeights(TrainerCallback):
    """Keeps the weights with the lowest validation loss of the stage."""

    def on_validation_end(self, trainer: Trainer, entry: HistoryEntry) -> None:
        state = trainer.state
        if entry.val_loss is None:
            return
        if entry.val_loss < state.best_val_loss.get(entry.stage, math.inf):
            state.best_val_loss[entry.stage] = entry.val_loss
            state.best_state_dict = gather_tensors(trainer.loss_fn.state_dict())


class History(TrainerCallback):
    """Records and logs losses and scores; draws them when the training has ended."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step_end(self, trainer: Trainer, loss: float) -> None:
        self.losses.append(loss)

    def on_validation_end(self, trainer: Trainer, entry: HistoryEntry) -> None:
        entry.loss, self.losses = float(np.mean(self.losses)), []
        trainer.state.history.append(entry)
        values = {k: v for k, v in entry.to_row().items() if k not in ("step", "stage")}
        text = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        logger.info("%s, step %d: %s", entry.stage, entry.step, text)

    def on_train_end(self, trainer: Trainer, directory: Path) -> None:
        rows = [entry.to_row() for entry in trainer.state.history]
        content = {
            "history": rows,
            "best": trainer.state.best_val_loss,
            "fingerprint": trainer.fingerprint(),
        }
        write_json(directory / "training.json", content)
        plot_training_curve(rows, directory / "training.png")
