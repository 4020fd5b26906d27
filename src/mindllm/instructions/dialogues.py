"""Samples of conversations with several rounds.

The reading functions have the interface of `mindllm.instructions.base.SampleReader`.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from mindllm.instructions import file_formats
from mindllm.instructions.base import UNANSWERED, ImageIds, InstructionSample
from mindllm.instructions.file_formats import FileFormat
from mindllm.instructions.schemas import LlavaConversation
from mindllm.instructions.source_files import SourceFiles, validate_record
from mindllm.utils.errors import InputError

logger = logging.getLogger(__name__)


def read_visdial(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield all rounds of each dialogue.

    Questions and answers are indices of texts that stand beside the dialogues in the file.
    """
    dialogues = file_formats.DIALOGUES
    for path in files.paths[dialogues]:
        questions = read_texts(files, path, "data.questions")
        answers = read_texts(files, path, "data.answers")
        for number, (key, value) in enumerate(files.iter_values(path, dialogues.records_key), 1):
            record = validate_record(dialogues, value, f"{path}, {key}, record {number}")
            if any(turn.answer is None for turn in record.dialog):
                yield UNANSWERED
                continue
            if record.image_id not in image_ids:
                continue
            try:
                turns = [
                    (questions[turn.question], answers[turn.answer])
                    for turn in record.dialog
                    if turn.answer is not None
                ]
            except IndexError as error:
                raise InputError(
                    f"{path}, {dialogues.records_key}, record {number}: a number is beyond the "
                    f"{len(questions)} questions or the {len(answers)} answers of the file. "
                    "Fetch it again."
                ) from error
            key = f"{path.stem}-{number}"
            yield InstructionSample(record.image_id, key, turns, [turns[-1][1]])


def read_texts(files: SourceFiles, path: Path, key: str) -> list[str]:
    """Read the texts of the list at a key of a file."""
    return [str(value).strip() for _, value in files.iter_values(path, key)]


def read_llava(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield conversations with GPT-4, whose texts say `<image>` where the image stands."""
    return read_conversations(files, file_formats.LLAVA, image_ids)


def read_lvis(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield conversations with GPT-4V in the layout of LLaVA's."""
    return read_conversations(files, file_formats.LVIS, image_ids)


def read_conversations(
    files: SourceFiles, file_format: FileFormat[LlavaConversation], image_ids: ImageIds
) -> Iterator[InstructionSample]:
    """Yield the rounds of human and gpt about images of COCO; the reference is the last answer."""
    n_without, n_others, example = 0, 0, ""
    for _, key, record in files.iter_records(file_format):
        if record.coco_id is None:
            n_without += not record.image
            n_others += bool(record.image)
            example = example or record.image or ""
        elif record.coco_id in image_ids:
            texts = [turn.value for turn in record.conversations]
            turns = list(zip(texts[::2], texts[1::2], strict=True))
            yield InstructionSample(record.coco_id, key, turns, [texts[-1]])
    if n_without:
        logger.warning("%d conversations have no image and are left out", n_without)
    if n_others:
        logger.warning(
            "%d conversations are about images of other data sets than COCO (first: %s) and are "
            "left out",
            n_others,
            example,
        )
