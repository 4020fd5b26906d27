"""Training of a text reader on text alone, with the errors of left-out trials as noise.

Each sample is a sentence. Its embedding is shrunk and disturbed as the expected embeddings of
left-out trials are (`mindllm.training.posterior_errors`), the reader makes fMRI tokens of it and
finds other sentences near it, and the frozen language model has to say the sentence. A part of
the samples can be real: the expected embedding of a left-out training trial, with its own text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from mindllm.model.candidates import prompt_log_likelihood
from mindllm.model.encoding_model import center_embeddings
from mindllm.model.logits import PrefixCache
from mindllm.model.modeling import MindLLM
from mindllm.model.text_reader import (
    TextReader,
    TextReaderConfig,
    mean_expected_embeddings,
    quote_sentences,
)
from mindllm.training.optimization import cosine_schedule_with_warmup
from mindllm.training.posterior_errors import PosteriorErrors
from mindllm.training.resume import (
    Checkpoint,
    HistoryEntry,
    TrainerState,
    collect_optimizer_state,
    load_checkpoint,
    restore_optimizer_state,
    save_checkpoint,
)
from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance
from mindllm.utils.seeds import MAX_SEED

Probability = Annotated[float, Field(ge=0, le=1)]
MAX_KNOWN = 2000  # sentences that a reader keeps
WARMUP_RATIO = 0.1


class TextReaderOptions(BaseModel):
    """Options of the training of a text reader.

    Examples
    --------
    >>> TextReaderOptions(max_steps=100).batch_size
    16
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_steps: PositiveInt = 200
    """Optimizer steps."""
    batch_size: PositiveInt = 16
    """Sentences in a step."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate after the warmup."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of the reader."""
    n_texts: Annotated[int, Field(ge=0)] = 400
    """Sentences that the language model writes like the training answers and the corpus."""
    hidden_size: PositiveInt = 512
    """Hidden size of the reader."""
    n_sentences: Annotated[int, Field(ge=0, le=100)] = 4
    """Known sentences in the question."""
    sentence_dropout: Probability = 0.2
    """Fraction of the samples without known sentences in the question."""
    noise_scale: NonNegativeFloat = 1.0
    """What the errors of left-out trials are multiplied by."""
    brain_fraction: Probability = 0.25
    """Fraction of the samples that are left-out training trials with their own text."""
    n_folds: Annotated[int, Field(ge=2)] = 6
    """Folds of texts that are left out to measure errors."""
    save_steps: PositiveInt = 25
    """Steps between checkpoints."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of all random draws."""


class TextReaderTrainer:
    """A training of a text reader: its sentences, their noise, and how far it has come.

    Parameters
    ----------
    model : MindLLM
        With an encoding model; it gets the reader.
    texts : sequence of str
        Sentences; those of `answers` first.
    answers : sequence of str
        Texts that `errors.texts` numbers.
    errors : PosteriorErrors
    options : TextReaderOptions

    Raises
    ------
    InputError
        If the model has no encoding model, or there is no text.
    """

    def __init__(
        self,
        model: MindLLM,
        texts: Sequence[str],
        answers: Sequence[str],
        errors: PosteriorErrors,
        options: TextReaderOptions,
    ) -> None:
        self.model, self.errors, self.options = model, errors, options
        self.texts = list(dict.fromkeys([*answers, *texts]))
        if not self.texts:
            raise InputError("a text reader is taught on sentences, and there are none.")
        number = {text: i for i, text in enumerate(self.texts)}
        self.answers = torch.tensor([number[text] for text in answers], dtype=torch.int64)
        encoding_model, _ = model.require_encoding_model()
        embeddings = model.embed_texts(self.texts).double()
        centred = center_embeddings(embeddings, encoding_model.text_center)
        self.means = mean_expected_embeddings(encoding_model, centred)
        self.means[self.answers[errors.texts]] = self.left_out_means()
        self.reader = self.build_reader()
        model.text_reader = self.reader
        self.optimizer = torch.optim.AdamW(
            self.reader.parameters(),
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
        )
        self.prefixes = PrefixCache()
        self.state = TrainerState()

    def left_out_means(self) -> Tensor:
        """Means of the answers by models that did not know them, like those of new sentences."""
        totals = torch.zeros(len(self.answers), self.means.shape[1]).to(self.means)
        counts = torch.bincount(self.errors.texts, minlength=len(self.answers))
        totals.index_add_(0, self.errors.texts, self.errors.means)
        return (totals / counts.clamp_min(1)[:, None])[self.errors.texts]

    def build_reader(self) -> TextReader:
        """Make a reader that knows the sentences, and whose tokens begin as the null tokens."""
        o, model = self.options, self.model
        known = self.texts[:MAX_KNOWN]
        config = TextReaderConfig(
            hidden_size=o.hidden_size, n_sentences=o.n_sentences, sentences=tuple(known)
        )
        torch.manual_seed(o.seed)
        shape = (model.null_tokens.shape[0], model.null_tokens.shape[1])
        reader = TextReader(config, self.means.shape[1], shape)
        reader.sentence_means.copy_(F.normalize(self.means[: len(known)], dim=1))
        trials = torch.arange(len(self.errors.residuals))
        expected = self.errors.disturb(self.means[trials % len(self.means)], trials)
        reader.scale.fill_(float(expected.square().mean().rsqrt()))
        output = reader.layers[-1]
        assert isinstance(output, nn.Linear)
        with torch.no_grad():
            output.weight.zero_()
            output.bias.copy_(model.null_tokens.flatten())
        return reader.to(model.device)

    def draw(self, rng: np.random.Generator) -> tuple[list[str], Tensor, list[list[str]]]:
        """Draw the sentences of a step, their expected embeddings, and sentences near these."""
        o = self.options
        trials = torch.from_numpy(rng.integers(len(self.errors.residuals), size=o.batch_size))
        numbers = torch.from_numpy(rng.integers(len(self.texts), size=o.batch_size))
        is_brain = torch.from_numpy(rng.random(o.batch_size) < o.brain_fraction)
        numbers = torch.where(is_brain, self.answers[self.errors.texts[trials]], numbers)
        means = torch.where(is_brain[:, None], self.errors.means[trials], self.means[numbers])
        scales = torch.where(is_brain, 1.0, o.noise_scale)[:, None]
        expected = self.errors.disturb(means, trials, scales)
        near = self.reader.nearest_sentences(expected, numbers.tolist())
        dropped = rng.random(o.batch_size) < o.sentence_dropout
        near = [[] if drop else row for row, drop in zip(near, dropped, strict=True)]
        return [self.texts[int(i)] for i in numbers], expected, near

    def take_step(self) -> float:
        """Take one step; the loss, in nats per token."""
        o, step = self.options, self.state.step
        factor = cosine_schedule_with_warmup(step, o.max_steps, WARMUP_RATIO)
        for group in self.optimizer.param_groups:
            group["lr"] = o.learning_rate * factor
        texts, expected, near = self.draw(np.random.default_rng([o.seed, step]))
        loss = self.loss(texts, expected, near)
        if not torch.isfinite(loss):
            raise InputError(
                f"the training of the text reader diverged at step {step}: the loss is "
                f"{loss.item()}. Lower its learning_rate ({o.learning_rate})."
            )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.reader.parameters(), 1.0)
        self.optimizer.step()
        self.state.step += 1
        return loss.item()

    def loss(self, texts: Sequence[str], expected: Tensor, near: Sequence[Sequence[str]]) -> Tensor:
        """Cross-entropy of sentences given their expected embeddings, in nats per token."""
        prompts = [
            self.model.processor(quote_sentences(self.model.build_conversation(answer=text), row))
            for text, row in zip(texts, near, strict=True)
        ]
        tokens = self.reader(expected.to(self.model.device))
        log_likelihoods, counts = prompt_log_likelihood(self.model, tokens, prompts, self.prefixes)
        return -log_likelihoods.sum() / counts.sum()

    def run(
        self,
        checkpoint: Path | None = None,
        fingerprint: dict[str, object] | None = None,
        advance: Advance | None = None,
    ) -> None:
        """Take the steps that are left, with checkpoints between.

        Parameters
        ----------
        checkpoint : Path, optional
            File to write checkpoints to; None: nowhere.
        fingerprint : dict, optional
            Of the training, in the checkpoints.
        advance : Advance, optional
            Called with 1 after each step.
        """
        self.model.eval()
        o = self.options
        while self.state.step < o.max_steps:
            loss = self.take_step()
            is_last = self.state.step == o.max_steps
            if is_last or self.state.step % o.save_steps == 0:
                self.state.history.append(HistoryEntry(self.state.step, "text_reader", loss))
                if checkpoint:
                    self.save(checkpoint, fingerprint or {})
            if advance:
                advance(1, f"text reader (loss {loss:.2f})")
        self.reader.eval().requires_grad_(False)

    def save(self, path: Path, fingerprint: dict[str, object]) -> None:
        """Write a checkpoint, completely or not at all."""
        moments = collect_optimizer_state(self.optimizer, dict(self.reader.named_parameters()))
        weights = self.reader.state_dict()
        save_checkpoint(path, Checkpoint(self.state, weights, moments), fingerprint)

    def restore(self, path: Path, fingerprint: dict[str, object]) -> None:
        """Go on from a checkpoint; InputError if it is damaged or of another training."""
        checkpoint = load_checkpoint(path, fingerprint)
        self.reader.load_state_dict(checkpoint.weights)
        self.state = checkpoint.state
        parameters = dict(self.reader.named_parameters())
        restore_optimizer_state(self.optimizer, parameters, checkpoint.optimizer_state)
