"""Samples of captions and paragraphs, where the source's prompt is all that is asked.

The reading functions have the interface of `mindllm.instructions.base.SampleReader`.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from mindllm.instructions import file_formats
from mindllm.instructions.base import ImageIds, InstructionSample, read_genome_coco_ids
from mindllm.instructions.source_files import SourceFiles
from mindllm.utils.errors import InputError


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
        for number, row in enumerate(iter_rows(path), 1):
            if row["stimulus"] in image_ids:
                key = f"{path.stem}-{number}"
                captions[row["stimulus"]].setdefault(row["caption"].strip(), key)
    yield from iter_captions(captions)


def iter_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a table; a row with more or fewer columns is an `InputError`."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        separator = "\t" if "\t" in file.readline() else ","
        file.seek(0)
        reader = csv.DictReader(file, delimiter=separator, skipinitialspace=True)
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise InputError(
                    f"{path}, row {number}: found other than {len(row) - (None in row)} columns. "
                    "A caption that holds the separator stands in quotation marks."
                )
            yield row


def iter_captions(
    captions: Mapping[int, Mapping[str, str]] | Mapping[str, Mapping[str, str]],
) -> Iterator[InstructionSample]:
    """Yield a sample for each text of each image (image -> text -> key)."""
    for image, texts in captions.items():
        for text, key in texts.items():
            references = [text, *(other for other in texts if other != text)]
            yield InstructionSample(image, key, [("", text)], references)
