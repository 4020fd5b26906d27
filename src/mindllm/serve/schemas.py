"""Requests and answers: OpenAI's, with a part for scans and a field for what speaks for a text."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_MESSAGES = 64
MAX_PARTS = 16
MAX_TEXT = 20_000  # characters
MAX_TEXTS = 1000  # to weigh at once
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Index = Annotated[int, Field(ge=0, lt=2**31)]


class Strict(BaseModel):
    """A request: unknown fields are errors, and so are numbers that are none."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Answer(BaseModel):
    """An answer: what its fields mean is said beside them."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Region(Strict):
    """A parcel of an atlas."""

    atlas: Name
    parcel: Name


Without = Annotated[list[Region], Field(max_length=100)]


class StoreTrial(Strict):
    """A trial of the store."""

    subject: Name
    """Label of the subject, such as sub-01."""
    trial: Index
    """0-based number of the trial."""
    without: Without = []
    """Parcels that are switched off: their voxels' betas are set to 0, the mean."""


class ScanVolume(Strict):
    """A volume of an uploaded scan."""

    scan: Name
    """What the upload returned as `id`."""
    volume: Index = 0
    """0-based number of the volume."""
    without: Without = []
    """As for a trial."""


FMRIReference = StoreTrial | ScanVolume


class TextPart(Strict):
    """Words of a message."""

    type: Literal["text"]
    text: Text


class FMRIPart(Strict):
    """The scan that a conversation is about."""

    type: Literal["fmri"]
    fmri: FMRIReference


ContentPart = Annotated[TextPart | FMRIPart, Field(discriminator="type")]


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[ContentPart], Field(min_length=1, max_length=MAX_PARTS)]
    name: Name | None = None
    """Not used."""
    refusal: None = None
    """Not used; clients send it back with an answer."""


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool = False
    """Whether a last chunk counts tokens."""


class EvidenceOptions(Strict):
    """What the answer is to say of itself, in the field `mindllm`."""

    evidence: bool = True
    """Whether it is computed."""
    alternatives: Annotated[int, Field(ge=0, le=100)] = 5
    """Number of other texts that are named."""
    shuffled: Annotated[int, Field(ge=0, le=1000)] = 200
    """Number of other trials that the evidence is compared with."""
    abstain_below: Annotated[float, Field(ge=0, le=1)] | None = None
    """Mark an answer that is less probable as abstained; default: the server's option."""


class ChatRequest(Strict):
    """A request for the next turn of a conversation about a scan."""

    model: Name
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    """User and assistant alternate, after at most one system message; one scan in all."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0, the default: the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=200)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=4)]
        | None
    ) = None
    n: Literal[1] | None = None
    user: Annotated[str, Field(max_length=1000)] | None = None
    """Not used and not logged."""
    mindllm: EvidenceOptions = EvidenceOptions()
    """This server's own options."""


class Alternative(Answer):
    """Another text that the scan may be about."""

    text: str
    evidence: float
    """log p(scan | text) - log p(scan), in nats."""
    probability: float
    """Among the proposals, which are equally likely beforehand."""


class ShuffledTrials(Answer):
    """Evidence of other trials for the same text."""

    of: str
    """Which trials they are."""
    values: list[float]
    """In nats, sorted."""
    mean: float
    sd: float
    p_value: float
    """(1 + number of them that are at least the scan's own evidence) / (1 + their number)."""


class Missing(Answer):
    """Something that cannot be said, and why."""

    name: str
    reason: str


class AnswerEvidence(Answer):
    """What speaks for an answer; null where it cannot be said, which `missing` explains."""

    log_likelihood_ratio: float | None = None
    """log p(answer | fMRI tokens) - log p(answer | null tokens) of the language model, in nats."""
    evidence: float | None = None
    """log p(scan | answer) - log p(scan) of the encoding model, in nats."""
    probability: float | None = None
    """Of the answer among the proposals."""
    n_proposals: int | None = None
    alternatives: list[Alternative] | None = None
    """The likeliest other proposals, the likeliest first."""
    shuffled: ShuffledTrials | None = None
    abstained: bool | None = None
    """Whether the probability is below `abstain_below`."""
    abstain_below: float
    missing: list[Missing] = []


class Usage(Answer):
    """Tokens that were read and written."""

    prompt_tokens: int
    """Those of the scan included."""
    completion_tokens: int
    total_tokens: int


class AnswerMessage(Answer):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


FinishReason = Literal["stop", "length"]


class Choice(Answer):
    """The only choice."""

    index: Literal[0] = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatResponse(Answer):
    """An answer that is not streamed."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: Annotated[list[Choice], Field(min_length=1, max_length=1)]
    usage: Usage
    mindllm: AnswerEvidence | None = None


class Delta(Answer):
    """A piece of the answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Answer):
    """The only choice of a chunk."""

    index: Literal[0] = 0
    delta: Delta
    logprobs: None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Answer):
    """An event of a streamed answer; the one with `finish_reason` holds the field `mindllm`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    mindllm: AnswerEvidence | None = None


class AtlasParcels(Answer):
    """Parcels of an atlas."""

    atlas: str
    parcels: list[str]


class ModelFacts(Answer):
    """What the model can say."""

    has_encoding_model: bool
    """Whether it gives evidence for texts."""
    n_proposals: int
    """Texts that it was trained on, among which probabilities are given."""
    num_queries: int
    num_fmri_tokens: int
    language_model: str
    max_length: int | None
    """Tokens that it reads and writes at most."""
    question: str
    """What is asked where a request does not say."""
    training_subjects: list[str] | None
    atlases: list[AtlasParcels]


class ModelInfo(Answer):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["mindllm"] = "mindllm"
    mindllm: ModelFacts


class ModelList(Answer):
    """All models: one."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class RegionInfo(Answer):
    """A parcel of an atlas in which a subject has voxels."""

    atlas: str
    parcel: str
    n_voxels: int


class SubjectInfo(Answer):
    """A subject of the store."""

    id: str
    object: Literal["subject"] = "subject"
    n_trials: int
    n_voxels: int
    voxel_size_mm: list[float]
    in_training: bool | None
    """Whether the model was trained on the subject; null: not known."""
    regions: list[RegionInfo]


class SubjectList(Answer):
    """Subjects of the store."""

    object: Literal["list"] = "list"
    data: list[SubjectInfo]


class TrialInfo(Answer):
    """A trial; what was shown is null unless the server was started with --show-answers."""

    trial: int
    object: Literal["trial"] = "trial"
    session: str
    run: str | None
    repetition: int | None
    split: str
    stimulus: str | None = None
    answers: list[str] | None = None
    """What was shown, in words."""


class TrialList(Answer):
    """Trials of a subject."""

    object: Literal["list"] = "list"
    data: list[TrialInfo]
    total: int
    """Number of trials, of which `data` may be a part."""


class ScanInfo(Answer):
    """An uploaded scan."""

    id: str
    object: Literal["scan"] = "scan"
    created: int
    expires: int
    """Seconds since 1970 at which it is removed."""
    n_volumes: int
    n_voxels: int
    shape: list[int]
    regions: list[RegionInfo]
    warnings: list[str]
    """Why the model may decode the scan badly."""


class ScanList(Answer):
    """Scans of the user who asks."""

    object: Literal["list"] = "list"
    data: list[ScanInfo]


class Deleted(Answer):
    """Something that was removed."""

    id: str
    object: Literal["scan"] = "scan"
    deleted: Literal[True] = True


class EvidenceRequest(Strict):
    """A request for the evidence of a scan for texts."""

    model: Name
    fmri: FMRIReference
    texts: Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]


class TextEvidence(Answer):
    """Evidence of a scan for a text."""

    text: str
    evidence: float
    """log p(scan | text) - log p(scan), in nats, of the scan with all its voxels."""
    evidence_without: float | None = None
    """The same with the parcels of `fmri.without` switched off; null: none are."""


class EvidenceResponse(Answer):
    """Evidence of a scan for texts, in their order."""

    object: Literal["list"] = "list"
    data: list[TextEvidence]
    n_voxels: int
    n_voxels_off: int
    """Voxels of the parcels that are switched off."""


class ExplainRequest(Strict):
    """What every explanation names."""

    model: Name
    fmri: FMRIReference
    space: Literal["native", "mni"] = "native"
    """Grid of an image: the scan's own, or MNI152 with 3 mm."""


class AttentionRequest(ExplainRequest):
    """A request for where the model listens."""

    query: Index | None = None
    """Number of a query; neither query nor token: the mean of all queries."""
    token: Index | None = None
    """Number of an fMRI token, whose attention depends on the scan."""


class ContributionRequest(ExplainRequest):
    """A request for the voxels that speak for a text."""

    text: Annotated[Text, Field(min_length=1)]


class WordsRequest(ExplainRequest):
    """A request for the words of an answer."""

    answer: Annotated[Text, Field(min_length=1)]
    """Such as what the model said of the scan."""
    question: Annotated[Text, Field(min_length=1)] | None = None
    """That was answered; default: the one that the model was trained with."""


class WordMapRequest(WordsRequest):
    """A request for the voxels that a word came from."""

    word: Index
    """Number of the word."""


class RegionSum(Answer):
    """A sum over the voxels of a parcel."""

    atlas: str
    parcel: str
    n_voxels: int
    voxel_fraction: float
    """Of the scan's voxels."""
    value: float


class RegionSums(Answer):
    """Sums over the parcels of every atlas; voxels in none are a parcel of their own."""

    object: Literal["list"] = "list"
    data: list[RegionSum]


class EvidenceSums(RegionSums):
    """Contributions to the evidence for a text, in nats."""

    evidence: float
    at_zero: float
    """Evidence of betas that are all 0, which no voxel contributes."""
    is_closed_form: bool
    error: float
    """Difference of the sum of all contributions and `at_zero` from the evidence."""


class WordInfo(Answer):
    """A word of an answer."""

    word: int
    """Number of the word."""
    text: str
    log_likelihood: float
    """Of the word after those before it, given the scan, in nats."""
    at_zero: float
    """The same given betas that are all 0."""


class WordList(Answer):
    """Words of an answer."""

    object: Literal["list"] = "list"
    data: list[WordInfo]


class Health(Answer):
    """The server answers."""

    status: Literal["ok"] = "ok"
    version: str
    model: str
