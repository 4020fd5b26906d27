"""Samples of captions and paragraphs, where the source's prompt is all that is asked.

The reading functions have the interface of `mindllm.instructions.base.SampleReader`.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping

from mindllm.data.store_writer import check_captions
from mindllm.instructions import file_formats
from mindllm.instructions.base import (
    UNANSWERED,
    ImageIds,
    InstructionSample,
    read_genome_coco_ids,
)
from mindllm.instructions.source_files import SourceFiles
from mindllm.utils.tables import read_table, require_values

logger = logging.getLogger(__name__)


def read_coco_captions(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield one sample per caption; the image's other captions are references too."""
    captions: dict[int, dict[str, str]] = defaultdict(dict)
    for _, _, record in files.iter_records(file_formats.CAPTIONS):
        if record.image_id in image_ids:
            captions[record.image_id].setdefault(record.caption, str(record.id))
    yield from iter_captions(captions)


def read_first_captions(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield one sample per image, its first caption; the others are references too."""
    done: set[int | str] = set()
    for sample in read_coco_captions(files, image_ids):
        if sample.image not in done:
            done.add(sample.image)
            yield sample


def read_paragraphs(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield one sample per paragraph about an image of Visual Genome that has a COCO id."""
    coco_ids = read_genome_coco_ids(files, image_ids)
    paragraphs: dict[int, dict[str, str]] = defaultdict(dict)
    for _, _, record in files.iter_records(file_formats.PARAGRAPHS):
        if record.image_id in coco_ids:
            texts = paragraphs[coco_ids[record.image_id]]
            texts.setdefault(record.paragraph, str(record.image_id))
    yield from iter_captions(paragraphs)


def read_caption_tables(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield one sample per caption of a stimulus in a table of captions."""
    captions: dict[str, dict[str, str]] = defaultdict(dict)
    for path in files.paths[file_formats.TABLE]:
        table = read_table(path, "captions", ("stimulus", "caption"))
        require_values(table, ("stimulus",), path)
        table = table.assign(key=[f"{path.stem}-{number}" for number in range(1, len(table) + 1)])
        is_shown = table["stimulus"].map(lambda stimulus: stimulus in image_ids)
        if not is_shown.all():
            logger.warning(
                "%s: %d of %d lines are about stimuli that the store does not have (first: %r)",
                path,
                (~is_shown).sum(),
                len(table),
                table["stimulus"][~is_shown].iloc[0],
            )
        written = table[is_shown & table["caption"].notna()]
        check_captions(written, path)
        yield from [UNANSWERED] * int(is_shown.sum() - len(written))
        for stimulus, caption, key in written[["stimulus", "caption", "key"]].to_numpy():
            captions[stimulus].setdefault(caption, key)
    yield from iter_captions(captions)


def iter_captions(
    captions: Mapping[int, Mapping[str, str]] | Mapping[str, Mapping[str, str]],
) -> Iterator[InstructionSample]:
    """Yield a sample for each text of each image (image -> text -> key)."""
    for image, texts in captions.items():
        for text, key in texts.items():
            references = [text, *(other for other in texts if other != text)]
            yield InstructionSample(image, key, [("", text)], references)
