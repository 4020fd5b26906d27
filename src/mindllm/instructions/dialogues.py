"""Conversations of several rounds."""

from collections.abc import Iterator

from mindllm.instructions import file_formats
from mindllm.instructions.base import UNANSWERED, InstructionSample, Wanted
from mindllm.instructions.file_formats import FileFormat
from mindllm.instructions.schemas import LlavaConversation
from mindllm.instructions.source_files import SourceFiles, checked
from mindllm.utils.errors import InputError


def visdial(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """All rounds of a dialogue; questions and answers are numbers of texts that stand beside the dialogues."""
    for path in given.files[file_formats.DIALOGUES]:
        asked, answered = (
            [str(value).strip() for _, value in given.values(path, f"data.{kind}")]
            for kind in ("questions", "answers")
        )
        for number, (place, value) in enumerate(given.values(path, file_formats.DIALOGUES.at), 1):
            record = checked(file_formats.DIALOGUES, value, f"{path}, {place}, record {number}")
            if any(turn.answer is None for turn in record.dialog):
                yield UNANSWERED
                continue
            if record.image_id not in wanted:
                continue
            try:
                talk = [
                    (asked[turn.question], answered[turn.answer])
                    for turn in record.dialog
                    if turn.answer is not None
                ]
            except IndexError as error:
                raise InputError(
                    f"{path}, {file_formats.DIALOGUES.at}, record {number}: a number is beyond the {len(asked)} questions or the {len(answered)} answers of the file. Fetch it again."
                ) from error
            yield InstructionSample(record.image_id, f"{path.stem}-{number}", talk, [talk[-1][1]])


def llava(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """Conversations with GPT-4, which say where the image stands."""
    return conversations(given, file_formats.LLAVA, wanted)


def lvis(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """Conversations with GPT-4V, in the same layout."""
    return conversations(given, file_formats.LVIS, wanted)


def conversations(
    given: SourceFiles, form: FileFormat[LlavaConversation], wanted: Wanted
) -> Iterator[InstructionSample]:
    """Rounds of human and gpt; scored, if at all, is the last answer."""
    for _, name, record in given.records(form):
        if record.image in wanted:
            texts = [turn.value for turn in record.conversations]
            yield InstructionSample(
                record.image, name, list(zip(texts[::2], texts[1::2], strict=True)), [texts[-1]]
            )
