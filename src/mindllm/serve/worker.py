"""One thread that uses the model: requests that come together are answered in one batch."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from mindllm.language.conversation import Conversation
from mindllm.model.generation import limit_new_tokens
from mindllm.model.streaming import (
    GeneratedText,
    GenerationOptions,
    GenerationRequest,
    answer_requests,
)
from mindllm.serve.api_errors import APIError, log_unexpected
from mindllm.serve.configuration import ServeConfig
from mindllm.serve.decoder import FMRIDecoder, FMRISource
from mindllm.serve.evidence import ScanAnswer, weigh_answers
from mindllm.serve.monitoring import Monitoring
from mindllm.serve.schemas import AnswerEvidence, EvidenceOptions
from mindllm.utils.errors import InputError

RETRY_SECONDS = 1
Result = TypeVar("Result")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A finished answer.

    Parameters
    ----------
    generated : GeneratedText
    evidence : AnswerEvidence or None
        None: it was not asked for.
    """

    generated: GeneratedText
    evidence: AnswerEvidence | None


class Delivery(Generic[Result]):
    """Carries pieces, and at last a result or an error, from the model's thread to a request.

    To be made in the event loop that receives.

    Parameters
    ----------
    cancelled : threading.Event, optional
        Set when nobody waits any more.
    """

    def __init__(self, cancelled: threading.Event | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._result: asyncio.Future[Result] = self._loop.create_future()
        self.cancelled = cancelled or threading.Event()

    def piece(self, text: str) -> None:
        """Deliver a piece of text; called by the model's thread."""
        self._call(self._pieces.put_nowait, text)

    def finish(self, result: Result) -> None:
        """Deliver the result; called by the model's thread."""
        self._call(self._set, result, None)

    def fail(self, error: Exception) -> None:
        """Deliver an error; called by the model's thread."""
        self._call(self._set, None, error)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _set(self, result: Result, error: Exception | None) -> None:
        if not self._result.done():
            if error is None:
                self._result.set_result(result)
            else:
                self._result.set_exception(error)
                self._result.exception()  # retrieved: nobody may be left to ask for it
        self._pieces.put_nowait(None)

    async def next_piece(self) -> str | None:
        """The next piece; None: there is none more."""
        return await self._pieces.get()

    async def result(self) -> Result:
        """The result; raises what ended the work otherwise."""
        return await asyncio.shield(self._result)


@dataclass(frozen=True, eq=False)
class ChatJob:
    """A conversation to be continued.

    Parameters
    ----------
    source : FMRISource
        The scan that it is about.
    conversation : Conversation
    options : GenerationOptions
    evidence : EvidenceOptions
    delivery : Delivery of Answer
    """

    source: FMRISource
    conversation: Conversation
    options: GenerationOptions
    evidence: EvidenceOptions
    delivery: Delivery[Answer]
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, eq=False)
class CallJob:
    """A function to be called with the model.

    Parameters
    ----------
    function : callable
    delivery : Delivery
    """

    function: Callable[[FMRIDecoder], object]
    delivery: Delivery[object]


Job = ChatJob | CallJob


class ModelWorker:
    """The thread that uses the model, and what waits for it.

    Parameters
    ----------
    decoder : FMRIDecoder
    config : ServeConfig
    monitoring : Monitoring
    """

    def __init__(self, decoder: FMRIDecoder, config: ServeConfig, monitoring: Monitoring) -> None:
        self.decoder, self.config, self.monitoring = decoder, config, monitoring
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._unanswered: set[Job] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    @property
    def count(self) -> int:
        """Jobs that wait, or that are worked on."""
        return len(self._unanswered)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, once what waits is answered."""
        self._jobs.put(None)
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises
        ------
        APIError
            If too many wait already.
        """
        with self._lock:
            if self.count >= self.config.max_queue:
                raise APIError(
                    429,
                    f"{self.count} requests wait, the most that are taken. Try again later.",
                    "queue_full",
                    headers={"Retry-After": str(RETRY_SECONDS)},
                )
            self._unanswered.add(job)
            self.monitoring.queue_length.set(self.count)
        self._jobs.put(job)

    async def call(
        self,
        function: Callable[[FMRIDecoder], Result],
        cancelled: threading.Event | None = None,
    ) -> Result:
        """Call a function with the model, in its thread.

        Parameters
        ----------
        function : callable
        cancelled : threading.Event, optional
            Set when nobody waits for the result any more; a long function looks at it.
        """
        delivery: Delivery[Result] = Delivery(cancelled)
        self.submit(CallJob(function, delivery))  # type: ignore[arg-type]
        try:
            return await delivery.result()
        finally:
            delivery.cancelled.set()

    def _run(self) -> None:
        """Answer what comes, in its order, until None comes."""
        pending: Job | None = None
        while (job := pending or self._jobs.get()) is not None:
            if isinstance(job, CallJob):
                pending = None
                self._finish([job], partial(self._call, job))
            else:
                batch, pending = self._collect(job)
                self._finish(batch, partial(self._answer, batch))

    def _collect(self, first: ChatJob) -> tuple[list[ChatJob], Job | None]:
        """Jobs that come in a moment, and a job of another kind that came after them."""
        batch, deadline = [first], time.monotonic() + self.config.batch_window_seconds
        while len(batch) < self.config.max_batch:
            try:
                job = self._jobs.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)  # for `_run`; nothing comes after it
                break
            if isinstance(job, CallJob):
                return batch, job
            batch.append(job)
        return batch, None

    def _finish(self, jobs: Sequence[Job], work: Callable[[], None]) -> None:
        """Do the work of jobs; an error of all of them ends none but these."""
        try:
            work()
        except Exception as error:
            # The thread outlives any error of a request, which each waiting client is told.
            if not isinstance(error, InputError | APIError):
                log_unexpected(error)
            for job in jobs:
                self._leave_queue(job)
                job.delivery.fail(error)

    def _leave_queue(self, job: Job) -> None:
        """Make room for another, before a client is told and may send it."""
        with self._lock:
            self._unanswered.discard(job)
            self.monitoring.queue_length.set(self.count)

    def _drop(self, job: Job) -> None:
        """End a job that nobody waits for."""
        self._leave_queue(job)
        self.monitoring.cancelled.inc()

    def _call(self, job: CallJob) -> None:
        if job.delivery.cancelled.is_set():
            self._drop(job)
            return
        result = job.function(self.decoder)
        self._leave_queue(job)
        job.delivery.finish(result)

    def _answer(self, batch: Sequence[ChatJob]) -> None:
        """Answer a batch of conversations."""
        jobs, requests = [], []
        for job in batch:
            if job.delivery.cancelled.is_set():
                self._drop(job)
                continue
            try:
                requests.append(self._make_request(job))
            except InputError as error:
                self._leave_queue(job)
                job.delivery.fail(error)
            else:
                jobs.append(job)
        if not jobs:
            return
        self.monitoring.batch_sizes.observe(len(jobs))
        answers = answer_requests(self.decoder.model, requests)
        self._deliver(jobs, answers)

    def _make_request(self, job: ChatJob) -> GenerationRequest:
        """A request of a batch; InputError if it cannot be answered, so that no other fails."""
        model = self.decoder.model
        prompt = model.processor(job.conversation, generate=True)
        limit_new_tokens(len(prompt.input_ids), 1, model.language_model.max_length)
        encoded, is_hit = self.decoder.encode(job.source)
        first_token = self.monitoring.first_token_seconds.labels("cached" if is_hit else "new")
        is_first = True

        def deliver(text: str) -> None:
            nonlocal is_first
            if is_first:
                first_token.observe(time.monotonic() - job.started)
                is_first = False
            job.delivery.piece(text)

        return GenerationRequest(
            encoded.fmri_tokens, job.conversation, job.options, deliver, job.delivery.cancelled
        )

    def _deliver(self, jobs: Sequence[ChatJob], answers: Sequence[GeneratedText]) -> None:
        """Deliver answers and what speaks for them."""
        to_weigh: dict[int, ScanAnswer] = {}
        for row, (job, generated) in enumerate(zip(jobs, answers, strict=True)):
            self.monitoring.generated_tokens.inc(generated.completion_tokens)
            if is_cancelled(job, generated):
                self._drop(job)
            elif job.evidence.evidence:
                threshold = job.evidence.abstain_below
                to_weigh[row] = ScanAnswer(
                    job.source,
                    job.conversation,
                    generated.text,
                    job.evidence,
                    self.config.abstain_below if threshold is None else threshold,
                )
        weighed = weigh_answers(self.decoder, list(to_weigh.values()))
        evidence = dict(zip(to_weigh, weighed, strict=True))
        for row, (job, generated) in enumerate(zip(jobs, answers, strict=True)):
            if job in self._unanswered:
                self._leave_queue(job)
                job.delivery.finish(Answer(generated, evidence.get(row)))


def is_cancelled(job: ChatJob, generated: GeneratedText) -> bool:
    """Whether nobody waits for an answer any more."""
    return generated.finish_reason == "cancelled" or job.delivery.cancelled.is_set()
