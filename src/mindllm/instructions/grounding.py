"""Samples of referring expressions, answered by the box that they refer to, as text.

The reading functions have the interface of `mindllm.instructions.base.SampleReader`.
"""

from collections.abc import Iterator, Sequence

from mindllm.instructions import file_formats
from mindllm.instructions.base import ImageIds, InstructionSample
from mindllm.instructions.source_files import SourceFiles
from mindllm.utils.errors import InputError


def read_refcoco(files: SourceFiles, image_ids: ImageIds) -> Iterator[InstructionSample]:
    """Yield the expressions of RefCOCO, RefCOCO+ and RefCOCOg in Shikra's layout.

    The expression, by which a box is scored, comes last among the references.

    References
    ----------
    Chen et al. 2023, Shikra, arXiv 2306.15195 (github.com/shikras/shikra).
    """
    for path, key, record in files.iter_records(file_formats.EXPRESSIONS):
        if record.img_path not in image_ids:
            continue
        x1, y1, x2, y2 = record.bbox
        if not (0 <= x1 < x2 <= record.width and 0 <= y1 < y2 <= record.height):
            raise InputError(
                f"{path}, {key}: the box {record.bbox} of {record.expression!r} is not x1 < x2, "
                f"y1 < y2 within {record.width} x {record.height} pixels. Fetch the file again."
            )
        answer = box_text(
            [x1 / record.width, y1 / record.height], [x2 / record.width, y2 / record.height]
        )
        references = [answer, record.expression]
        yield InstructionSample(record.img_path, key, [(record.expression, answer)], references)


def box_text(upper_left: Sequence[float], lower_right: Sequence[float]) -> str:
    """Return a box as text, its corners as fractions of the width and the height.

    Examples
    --------
    >>> box_text([0, 0.25], [0.5, 1])
    '[0.000,0.250,0.500,1.000]'
    """
    return f"[{','.join(f'{value:.3f}' for value in (*upper_left, *lower_right))}]"
