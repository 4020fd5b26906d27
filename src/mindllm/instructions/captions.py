"""Captions and paragraphs: the source's prompt is all that is asked."""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping

from mindllm.instructions import file_formats
from mindllm.instructions.base import InstructionSample, Wanted, genome
from mindllm.instructions.source_files import SourceFiles
from mindllm.utils.errors import InputError


def coco_captions(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """One conversation per caption; the image's other captions count as right too."""
    said: dict[int, dict[str, str]] = defaultdict(dict)
    for _, _, record in given.records(file_formats.CAPTIONS):
        if record.image_id in wanted:
            said[record.image_id].setdefault(record.caption, str(record.id))
    yield from with_others(said)


def one_caption(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """One conversation per image, which says the first of its captions; the others count as right too."""
    seen: set[int | str] = set()
    for item in coco_captions(given, wanted):
        if item.image not in seen:
            seen.add(item.image)
            yield item


def paragraphs(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """One conversation per paragraph."""
    coco, said = genome(given, wanted), defaultdict[int, dict[str, str]](dict)
    for _, _, record in given.records(file_formats.PARAGRAPHS):
        if record.image_id in coco:
            said[coco[record.image_id]].setdefault(record.paragraph, str(record.image_id))
    yield from with_others(said)


def own_captions(given: SourceFiles, wanted: Wanted) -> Iterator[InstructionSample]:
    """One conversation per caption of a stimulus."""
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for path in given.files[file_formats.TABLE]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            separator = "\t" if "\t" in file.readline() else ","
            file.seek(0)
            for number, row in enumerate(
                csv.DictReader(file, delimiter=separator, skipinitialspace=True), 1
            ):
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}, row {number}: found other than {len(row) - (None in row)} columns. A caption that holds the separator stands in quotation marks."
                    )
                if row["stimulus"] in wanted:
                    said[row["stimulus"]].setdefault(
                        row["caption"].strip(), f"{path.stem}-{number}"
                    )
    yield from with_others(said)


def with_others(
    said: Mapping[int, Mapping[str, str]] | Mapping[str, Mapping[str, str]],
) -> Iterator[InstructionSample]:
    """A conversation for each text (text -> key) about an image."""
    for image, texts in said.items():
        for text, key in texts.items():
            yield InstructionSample(
                image, key, [("", text)], [text, *(other for other in texts if other != text)]
            )
