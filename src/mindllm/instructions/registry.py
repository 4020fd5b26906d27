"""The table of sources: what each asks, which files it needs, and how they are read.

Prompts are those of MindLLM's own conversion (github.com/Graph-and-Geometric-Learning/MindLLM, src/dataset.py); GQA, which it
names and does not read, is asked as COCO-QA is. Which of the paper's four aspects a source belongs to is this project's
judgement: neither the paper's text nor its code was found to say.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mindllm.instructions import captions, dialogues, file_formats, vqa
from mindllm.instructions.base import InstructionSample, Wanted
from mindllm.instructions.file_formats import FileFormat
from mindllm.instructions.source_files import SourceFiles
from mindllm.language.conversation import FMRI_TOKEN, QUESTION, Conversation, build_conversation
from mindllm.utils.errors import InputError

PERCEPTION, MEMORY = "perception and scene", "memory and knowledge"
LANGUAGE, REASONING = "language and symbols", "complex reasoning"
ASPECTS = (PERCEPTION, MEMORY, LANGUAGE, REASONING)
SHORT, IMAGE = "Answer the question with a short phrase.", "<image>"
Style = Literal["mindllm", "published"]


@dataclass(frozen=True)
class Source:
    """A source of conversations.

    prompt: follows the question, or is all that is asked.  files: the kinds of files it needs, all of them.  licence: as
    far as it is known here.  joins: what an item's image is: a trial's `coco_id`, that of the trial before it, or the name
    of a stimulus.  marks: its questions lack their question mark.  talks: its texts say `<image>` where the image stands;
    the authors' code writes fMRI for image in all of them, and not in the first question alone.
    """

    title: str
    aspect: str
    prompt: str
    files: tuple[FileFormat[Any], ...]
    read: Callable[[SourceFiles, Wanted], Iterator[InstructionSample]]
    url: str = ""
    license: str = ""
    joins: Literal["coco_id", "previous", "stimulus"] = "coco_id"
    marks: bool = False
    talks: bool = False


CC_BY = "CC BY 4.0"
GENOME = "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html"
COCO = "https://cocodataset.org/#download"
SOURCES = {
    "coco-caption": Source("COCO captions", PERCEPTION, "Please describe the fMRI as simply as possible.",
        (file_formats.CAPTIONS,), captions.coco_captions, COCO, CC_BY),
    "coco-caption-previous": Source("COCO captions of the image before", MEMORY, "Please describe the image the subject saw previously.",
        (file_formats.CAPTIONS,), captions.one_caption, COCO, CC_BY, joins="previous"),
    "paragraph-caption": Source("Image paragraphs", PERCEPTION, "Describe the fMRI in one paragraph.",
        (file_formats.PARAGRAPHS, file_formats.GENOME_IMAGES), captions.paragraphs, "https://cs.stanford.edu/people/ranjaykrishna/im2p"),
    "coco-qa": Source("COCO-QA", PERCEPTION, SHORT, (file_formats.LINES_QUESTIONS, file_formats.LINES_ANSWERS, file_formats.LINES_IMAGES), vqa.coco_qa,
        "http://www.cs.toronto.edu/~mren/imageqa/data/cocoqa"),
    "visual-genome": Source("Visual Genome QA", PERCEPTION, SHORT, (file_formats.GENOME_QUESTIONS, file_formats.GENOME_IMAGES), vqa.visual_genome,
        GENOME, CC_BY),
    "vqa-v2": Source("VQA v2", PERCEPTION, SHORT, (file_formats.VQA2_QUESTIONS, file_formats.VQA2), vqa.vqa_v2,
        "https://visualqa.org/download.html", CC_BY),
    "ok-vqa": Source("OK-VQA", MEMORY, SHORT, (file_formats.QUESTIONS, file_formats.OK_VQA), vqa.ok_vqa, "https://okvqa.allenai.org"),
    "st-vqa": Source("ST-VQA", LANGUAGE, SHORT, (file_formats.SCENE_TEXT,), vqa.st_vqa, "https://rrc.cvc.uab.es/?ch=11"),
    "tally-qa": Source("TallyQA", PERCEPTION, "Answer the question with a number.", (file_formats.COUNTS, file_formats.GENOME_IMAGES), vqa.tally_qa,
        "https://github.com/manoja328/TallyQA_dataset"),
    "vqa-e": Source("VQA-E", REASONING, "Answer with a short phrase and provide explanation for your answer.", (file_formats.EXPLAINED,), vqa.vqa_e,
        "https://github.com/liqing-ustc/VQA-E"),
    "vsr": Source("VSR", REASONING, "Please answer yes or no about whether the statement about the image is true.", (file_formats.STATEMENTS,), vqa.vsr,
        "https://github.com/cambridgeltl/visual-spatial-reasoning"),
    "a-okvqa": Source("A-OKVQA", MEMORY, "Answer with option's letter from the given choices and provide explanation for your choice.",
        (file_formats.CHOICES,), vqa.a_okvqa, "https://github.com/allenai/aokvqa"),
    "fsvqa": Source("FSVQA", LANGUAGE, "Answer the question in a full sentence.", (file_formats.SENTENCE_QUESTIONS, file_formats.SENTENCES, file_formats.VQA1),
        vqa.fsvqa, "https://www.mi.t.u-tokyo.ac.jp/static/projects/fsvqa"),
    "visdial": Source("VisDial 1.0", LANGUAGE, "", (file_formats.DIALOGUES,), dialogues.visdial, "https://visualdialog.org/data", CC_BY, marks=True),
    "llava": Source("LLaVA-Instruct-150K", REASONING, "", (file_formats.LLAVA,), dialogues.llava,
        "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K", talks=True),
    "lvis": Source("LVIS-Instruct4V", REASONING, "", (file_formats.LVIS,), dialogues.lvis,
        "https://huggingface.co/datasets/X2FD/LVIS-Instruct4V", talks=True),
    "gqa": Source("GQA", REASONING, SHORT, (file_formats.GRAPH, file_formats.GENOME_IMAGES), vqa.gqa, "https://cs.stanford.edu/people/dorarad/gqa"),
    "tdiuc": Source("TDIUC", PERCEPTION, SHORT, (file_formats.QUESTIONS, file_formats.TDIUC), vqa.tdiuc, "https://kushalkafle.com/projects/tdiuc.html"),
    "caption": Source("Captions of one's own", PERCEPTION, QUESTION, (file_formats.TABLE,), captions.own_captions, joins="stimulus"),
}  # fmt: skip


def get_source(name: str) -> Source:
    """The source of this name. Raises InputError for one that is not known."""
    if name not in SOURCES:
        raise InputError(f"there is no source {name!r}; known: {', '.join(SOURCES)}.")
    return SOURCES[name]


def format_sample(
    item: InstructionSample, source: Source, style: Style
) -> tuple[Conversation, list[str]]:
    """The conversation and the answers of an item.

    mindllm: the question as it is, then the prompt, then `<fMRI>` (`mindllm.language.conversation.ask`).  published: as the authors'
    code words it, for published weights: `<fMRI>` first (or where the source puts the image), and fMRI for every "image".
    """
    published = style == "published"

    def renamed(text: str) -> str:
        return text.replace("image", "fMRI") if published else text

    def bare(text: str) -> str:
        return renamed(text.replace(IMAGE, "").strip()) if source.talks else text

    def marked(text: str) -> str:
        return f"{text}?" if source.marks and not published and not text.endswith("?") else text

    (question, answer), *rest = item.turns
    first = "\n".join(part for part in (marked(question), source.prompt) if part)
    before, place, after = first.partition(IMAGE)
    first = f"{before}{FMRI_TOKEN if place and published else ''}{after.replace(IMAGE, '')}".strip()
    turns = build_conversation(renamed(first), bare(answer), fmri_first=published)
    for question, answer in rest:
        turns += [
            {"role": "user", "content": marked(bare(question))},
            {"role": "assistant", "content": bare(answer)},
        ]
    return turns, [bare(text) for text in item.answers]
