"""Text reader: a text is generated from what the evidence says that a trial means.

The encoding model makes of a trial an expected sentence embedding (`expected_embeddings`). A small
network makes fMRI tokens of it, which the frozen language model reads; the known sentences that are
nearest to it stand in the question. The network is taught on text alone
(`mindllm.training.text_reader`): a sentence is embedded, its embedding is shrunk and disturbed as
the expected embeddings of left-out trials are, and the sentence has to come out.

References
----------
Nukrai et al. 2022, Text-only training for image captioning using noise-injected CLIP,
arXiv 2211.00575; here the noise is measured. Fei et al. 2023, Transferable decoding with visual
entities (ViECap), arXiv 2307.16525, puts words into the prompt; here they are sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mindllm.language.conversation import Conversation
from mindllm.model.encoding_model import EncodingModel
from mindllm.model.subject_alignment import SubjectTransform
from mindllm.utils.errors import InputError

Sentence = Annotated[str, Field(min_length=1)]


class TextReaderConfig(BaseModel):
    """Sizes of a text reader and the sentences that it knows, as a model folder holds them.

    Examples
    --------
    >>> TextReaderConfig(sentences=("a dog", "a cat")).hidden_size
    512
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden_size: Annotated[int, Field(gt=0, le=1_000_000)] = 512
    """Hidden size of the network."""
    n_sentences: Annotated[int, Field(ge=0, le=100)] = 4
    """Sentences in the question, the nearest first; 0: none."""
    sentences: tuple[Sentence, ...] = ()
    """Sentences to choose among."""


class TextReader(nn.Module):
    """Expected sentence embeddings to fMRI tokens and known sentences.

    Parameters
    ----------
    config : TextReaderConfig
    embedding_dim : int
        Size of a sentence embedding.
    shape : tuple of int
        (num_fmri_tokens, token_dim) of the model's fMRI tokens.

    Examples
    --------
    >>> reader = TextReader(TextReaderConfig(sentences=("a dog", "a cat")), 5, (3, 8))
    >>> reader(torch.ones(2, 5)).shape
    torch.Size([2, 3, 8])
    """

    sentence_means: Tensor
    scale: Tensor

    def __init__(
        self, config: TextReaderConfig, embedding_dim: int, shape: tuple[int, int]
    ) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.layers = nn.Sequential(
            nn.Linear(embedding_dim, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, shape[0] * shape[1]),
        )
        shape_of_means = len(config.sentences), embedding_dim
        self.register_buffer("sentence_means", torch.zeros(shape_of_means))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, expected: Tensor) -> Tensor:
        """fMRI tokens (n, num_fmri_tokens, token_dim) of expected embeddings (n, embedding_dim)."""
        inputs = (expected * self.scale).to(next(self.parameters()))
        return self.layers(inputs).unflatten(-1, self.shape)

    @torch.no_grad()
    def nearest_sentences(
        self, expected: Tensor, left_out: Sequence[int] | None = None
    ) -> list[list[str]]:
        """Known sentences that are nearest to expected embeddings, the nearest first.

        Parameters
        ----------
        expected : Tensor of shape (n, embedding_dim)
        left_out : sequence of int, length n, optional
            Number of a sentence that is not chosen for each.

        Returns
        -------
        list of list of str
        """
        similarity = expected.to(self.sentence_means) @ self.sentence_means.T
        for row, number in enumerate(left_out or []):
            similarity[row, number : number + 1] = -torch.inf  # a number beyond is not known
        count = min(self.config.n_sentences, len(self.config.sentences) - (left_out is not None))
        best = similarity.topk(max(count, 0), dim=1).indices.tolist()
        return [[self.config.sentences[i] for i in row] for row in best]


def expected_embeddings(
    model: EncodingModel, query_outputs: Tensor, subject: SubjectTransform
) -> Tensor:
    """Expected sentence embedding of the text of each trial, given the trial, in closed form.

    Before the trial, an embedding e of size d is N(0, I / d): of unit length, in any direction.
    The response to a new text is linear in e, and the regression's part in the evidence is
    quadratic, so that the posterior is Gaussian. The less a trial says, the shorter its mean.

    Parameters
    ----------
    model : EncodingModel
    query_outputs : Tensor of shape (n_trials, num_queries)
    subject : SubjectTransform

    Returns
    -------
    Tensor of shape (n_trials, embedding_dim), float64
        Centred as by `center_embeddings`.

    References
    ----------
    Bishop 2006, Pattern recognition and machine learning, section 2.3.3 (linear Gaussian models).
    """
    scaled, precision = posterior_terms(model)
    trials = model.transform(query_outputs, subject)
    predicted = model.regression_features(query_outputs, subject)
    linear = (trials @ scaled.T + model.regression_gain * predicted) / model.temperature
    return torch.linalg.solve(precision, linear, left=False)


def mean_expected_embeddings(model: EncodingModel, embeddings: Tensor) -> Tensor:
    """Mean of `expected_embeddings` over trials of new texts, by the encoding model alone.

    Parameters
    ----------
    model : EncodingModel
    embeddings : Tensor of shape (n_texts, embedding_dim)
        Of the texts, centred.

    Returns
    -------
    Tensor of shape (n_texts, embedding_dim), float64
        What the brain does not tell apart is shrunk most.
    """
    scaled, precision = posterior_terms(model)
    responses = embeddings.to(model.weights) @ model.weights
    return torch.linalg.solve(precision, responses @ scaled.T / model.temperature, left=False)


def posterior_terms(model: EncodingModel) -> tuple[Tensor, Tensor]:
    """Weights over the variance of a trial (embedding_dim, rank), and precision of the posterior.

    The precision is (embedding_dim, embedding_dim).
    """
    size, n_axes = model.axes.shape
    semantic, of_text, of_stimulus = model.signal
    # Variance of the weights, of which a unit vector in any direction reads the mean.
    learned = semantic / (1 + semantic * model.precision * model.information[:, None])
    spread = (learned.sum(0) + (size - n_axes) * semantic) / size
    scaled = model.weights / (spread + of_text + of_stimulus + 1)
    prior = size * torch.eye(size).to(scaled)
    regression = model.regression_gain * model.regression_scale @ model.regression_scale.T
    return scaled, prior + (scaled @ model.weights.T + regression) / model.temperature


def quote_sentences(conversation: Conversation, sentences: Sequence[str]) -> Conversation:
    """Put sentences at the end of the first turn of a conversation, a line each.

    Examples
    --------
    >>> quote_sentences([{"role": "user", "content": "What?<fMRI>"}], ["a dog", "a cat"])
    [{'role': 'user', 'content': 'What?<fMRI>\\na dog\\na cat'}]
    """
    first, *others = conversation
    return [first | {"content": "\n".join([first["content"], *sentences])}, *others]


def make_text_reader(
    config: TextReaderConfig | None,
    encoding_model: EncodingModel | None,
    shape: tuple[int, int],
    device: str | torch.device = "cpu",
) -> TextReader | None:
    """Make a text reader for a model, whose weights are then loaded; None: it has none.

    Parameters
    ----------
    config : TextReaderConfig or None
    encoding_model : EncodingModel or None
    shape : tuple of int
        (num_fmri_tokens, token_dim).
    device : str or torch.device
        "meta": shapes alone.

    Returns
    -------
    TextReader or None

    Raises
    ------
    InputError
        If there is a reader without an encoding model.
    """
    if config is None:
        return None
    if encoding_model is None:
        raise InputError(
            "the checkpoint holds a text reader without the encoding model that it reads. "
            "Train the reader or fetch the model again."
        )
    with torch.device(device):
        return TextReader(config, len(encoding_model.text_center), shape)
