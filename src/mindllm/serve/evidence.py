"""What speaks for an answer: evidence, probability, alternatives, other trials, abstention."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mindllm.language.conversation import Conversation
from mindllm.serve.decoder import FMRIDecoder, FMRISource
from mindllm.serve.schemas import (
    Alternative,
    AnswerEvidence,
    EvidenceOptions,
    Missing,
    ShuffledTrials,
)
from mindllm.utils.errors import InputError

NO_ENCODING_MODEL = "the model has no encoding model, so it gives no evidence for texts"
NO_PROPOSALS = "the model does not name the texts that it was trained on"
NO_OTHERS = "there are no other trials to compare with"
NO_TEXT = "the answer is empty"
OF_EVIDENCE = ("evidence", "probability", "alternatives", "shuffled", "abstained")
OF_PROPOSALS = ("probability", "alternatives", "abstained")


@dataclass(frozen=True)
class ScanAnswer:
    """An answer about a scan, to be weighed.

    Parameters
    ----------
    source : FMRISource
        The scan.
    conversation : Conversation
        Before the answer.
    text : str
        The answer.
    options : EvidenceOptions
    abstain_below : float
        Probability.
    """

    source: FMRISource
    conversation: Conversation
    text: str
    options: EvidenceOptions
    abstain_below: float


def weigh_answers(decoder: FMRIDecoder, answers: Sequence[ScanAnswer]) -> list[AnswerEvidence]:
    """Say what speaks for answers, and what cannot be said.

    Parameters
    ----------
    decoder : FMRIDecoder
    answers : sequence of ScanAnswer

    Returns
    -------
    list of AnswerEvidence
    """
    rows = [row for row, answer in enumerate(answers) if answer.text]
    texts = [answers[row].text for row in rows]
    ratios = dict(zip(rows, answer_ratios(decoder, [answers[row] for row in rows]), strict=True))
    embeddings: dict[int, Tensor] = {}
    if decoder.has_evidence and texts:
        embeddings = dict(zip(rows, decoder.model.embed_texts(texts), strict=True))
    return [
        weigh_answer(decoder, answer, ratios.get(row), embeddings.get(row))
        for row, answer in enumerate(answers)
    ]


def answer_ratios(decoder: FMRIDecoder, answers: Sequence[ScanAnswer]) -> list[float | str]:
    """Log-likelihood ratios of answers, or the reasons why there are none."""
    if not answers:
        return []
    turns = [
        [*answer.conversation, {"role": "assistant", "content": answer.text}] for answer in answers
    ]
    tokens = torch.stack([decoder.encode(answer.source)[0].fmri_tokens for answer in answers])
    try:
        return decoder.model.log_likelihood_ratio(tokens, turns).tolist()
    except InputError as error:
        if len(answers) == 1:
            return [str(error)]
    return [ratio for answer in answers for ratio in answer_ratios(decoder, [answer])]


def weigh_answer(
    decoder: FMRIDecoder,
    answer: ScanAnswer,
    ratio: float | str | None,
    embedding: Tensor | None,
) -> AnswerEvidence:
    """Say what speaks for one answer, whose ratio and embedding are known."""
    missing = []
    if not isinstance(ratio, float):
        missing.append(Missing(name="log_likelihood_ratio", reason=ratio or NO_TEXT))
    if embedding is None:
        reason = NO_TEXT if decoder.has_evidence else NO_ENCODING_MODEL
        missing += [Missing(name=name, reason=reason) for name in OF_EVIDENCE]
        weighed = AnswerEvidence(abstain_below=answer.abstain_below)
    else:
        weighed = weigh_by_evidence(decoder, answer, embedding)
    return weighed.model_copy(
        update={
            "log_likelihood_ratio": ratio if isinstance(ratio, float) else None,
            "missing": [*missing, *weighed.missing],
        }
    )


def weigh_by_evidence(
    decoder: FMRIDecoder, answer: ScanAnswer, embedding: Tensor
) -> AnswerEvidence:
    """Evidence of a scan for a text, beside the proposals and other trials."""
    text, options = answer.text.strip().lower(), answer.options
    kept = [i for i, other in enumerate(decoder.proposals) if other.strip().lower() != text]
    embeddings = torch.cat([decoder.proposal_embeddings()[kept], embedding[None]])
    evidence, shuffled = decoder.evidence(answer.source, embeddings, options.shuffled)
    comparison = describe_shuffled(answer.source, float(evidence[-1]), shuffled)
    missing = []
    if options.shuffled and comparison is None:
        missing.append(Missing(name="shuffled", reason=NO_OTHERS))
    weighed = AnswerEvidence(
        evidence=float(evidence[-1]), shuffled=comparison, abstain_below=answer.abstain_below
    )
    if not kept:
        missing += [Missing(name=name, reason=NO_PROPOSALS) for name in OF_PROPOSALS]
        return weighed.model_copy(update={"missing": missing})
    probabilities = evidence.softmax(0)
    order = evidence[:-1].argsort(descending=True, stable=True)[: options.alternatives].tolist()
    alternatives = [
        Alternative(
            text=decoder.proposals[kept[i]],
            evidence=float(evidence[i]),
            probability=float(probabilities[i]),
        )
        for i in order
    ]
    return weighed.model_copy(
        update={
            "probability": float(probabilities[-1]),
            "n_proposals": len(probabilities),
            "alternatives": alternatives,
            "abstained": bool(probabilities[-1] < answer.abstain_below),
            "missing": missing,
        }
    )


def describe_shuffled(
    source: FMRISource, evidence: float, shuffled: Tensor
) -> ShuffledTrials | None:
    """Compare evidence with that of other trials; None: there are none."""
    if not len(shuffled):
        return None
    at_least = int((shuffled >= evidence).sum())
    return ShuffledTrials(
        of=source.others,
        values=[round(value, 4) for value in shuffled.sort().values.tolist()],
        mean=float(shuffled.mean()),
        sd=float(shuffled.std(correction=0)),
        p_value=(1 + at_least) / (1 + len(shuffled)),
    )
