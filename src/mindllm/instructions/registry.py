"""The table of sources: what each asks, which files it needs, and how they are read.

Prompts are those of MindLLM's own conversion (github.com/Graph-and-Geometric-Learning/MindLLM,
src/dataset.py); GQA, which it names and does not read, is asked as COCO-QA is. Which of the paper's
four aspects a source belongs to is this project's judgement: neither the paper's text nor its code
was found to say.
"""

from dataclasses import dataclass
from typing import Any, Literal

from mindllm.instructions import captions, dialogues, file_formats, grounding, vqa
from mindllm.instructions.base import InstructionSample, SampleReader
from mindllm.instructions.file_formats import FileFormat
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

    Parameters
    ----------
    title : str
        Name of the data set.
    aspect : str
        One of `ASPECTS`.
    prompt : str
        Follows the question, or is all that is asked.
    files : tuple of FileFormat
        Formats of the files that it needs, all of them.
    read : callable
        Reads its samples; see `mindllm.instructions.base.SampleReader`.
    url : str
        Where its files are.
    license : str
        License, as far as it is known here.
    joined_by : {"coco_id", "previous", "stimulus"}
        What the image of a sample is: a trial's `coco_id`, that of the trial before it, or the
        name of a stimulus.
    adds_question_marks : bool
        Whether its questions lack their question mark.
    has_image_placeholders : bool
        Whether its texts say `<image>` where the image stands. The authors' code writes fMRI for
        image in all texts of such a source, and not in the first question alone.
    """

    title: str
    aspect: str
    prompt: str
    files: tuple[FileFormat[Any], ...]
    read: SampleReader
    url: str = ""
    license: str = ""
    joined_by: Literal["coco_id", "previous", "stimulus"] = "coco_id"
    adds_question_marks: bool = False
    has_image_placeholders: bool = False


CC_BY = "CC BY 4.0"
GENOME = "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html"
COCO = "https://cocodataset.org/#download"
SOURCES = {
    "coco-caption": Source(
        "COCO captions",
        PERCEPTION,
        "Please describe the fMRI as simply as possible.",
        (file_formats.CAPTIONS,),
        captions.read_coco_captions,
        COCO,
        CC_BY,
    ),
    "coco-caption-previous": Source(
        "COCO captions of the image before",
        MEMORY,
        "Please describe the image the subject saw previously.",
        (file_formats.CAPTIONS,),
        captions.read_first_captions,
        COCO,
        CC_BY,
        joined_by="previous",
    ),
    "paragraph-caption": Source(
        "Image paragraphs",
        PERCEPTION,
        "Describe the fMRI in one paragraph.",
        (file_formats.PARAGRAPHS, file_formats.GENOME_IMAGES),
        captions.read_paragraphs,
        "https://cs.stanford.edu/people/ranjaykrishna/im2p",
    ),
    "coco-qa": Source(
        "COCO-QA",
        PERCEPTION,
        SHORT,
        (file_formats.LINES_QUESTIONS, file_formats.LINES_ANSWERS, file_formats.LINES_IMAGES),
        vqa.read_coco_qa,
        "http://www.cs.toronto.edu/~mren/imageqa/data/cocoqa",
    ),
    "visual-genome": Source(
        "Visual Genome QA",
        PERCEPTION,
        SHORT,
        (file_formats.GENOME_QUESTIONS, file_formats.GENOME_IMAGES),
        vqa.read_visual_genome,
        GENOME,
        CC_BY,
    ),
    "vqa-v2": Source(
        "VQA v2",
        PERCEPTION,
        SHORT,
        (file_formats.VQA2_QUESTIONS, file_formats.VQA2),
        vqa.read_vqa_v2,
        "https://visualqa.org/download.html",
        CC_BY,
    ),
    "ok-vqa": Source(
        "OK-VQA",
        MEMORY,
        SHORT,
        (file_formats.QUESTIONS, file_formats.OK_VQA),
        vqa.read_ok_vqa,
        "https://okvqa.allenai.org",
    ),
    "st-vqa": Source(
        "ST-VQA",
        LANGUAGE,
        SHORT,
        (file_formats.SCENE_TEXT,),
        vqa.read_st_vqa,
        "https://rrc.cvc.uab.es/?ch=11",
    ),
    "tally-qa": Source(
        "TallyQA",
        PERCEPTION,
        "Answer the question with a number.",
        (file_formats.COUNTS, file_formats.GENOME_IMAGES),
        vqa.read_tally_qa,
        "https://github.com/manoja328/TallyQA_dataset",
    ),
    "vqa-e": Source(
        "VQA-E",
        REASONING,
        "Answer with a short phrase and provide explanation for your answer.",
        (file_formats.EXPLAINED,),
        vqa.read_vqa_e,
        "https://github.com/liqing-ustc/VQA-E",
    ),
    "vsr": Source(
        "VSR",
        REASONING,
        "Please answer yes or no about whether the statement about the image is true.",
        (file_formats.STATEMENTS,),
        vqa.read_vsr,
        "https://github.com/cambridgeltl/visual-spatial-reasoning",
    ),
    "a-okvqa": Source(
        "A-OKVQA",
        MEMORY,
        "Answer with option's letter from the given choices and provide explanation for your "
        "choice.",
        (file_formats.CHOICES,),
        vqa.read_a_okvqa,
        "https://github.com/allenai/aokvqa",
    ),
    "fsvqa": Source(
        "FSVQA",
        LANGUAGE,
        "Answer the question in a full sentence.",
        (file_formats.SENTENCE_QUESTIONS, file_formats.SENTENCES, file_formats.VQA1),
        vqa.read_fsvqa,
        "https://www.mi.t.u-tokyo.ac.jp/static/projects/fsvqa",
    ),
    "visdial": Source(
        "VisDial 1.0",
        LANGUAGE,
        "",
        (file_formats.DIALOGUES,),
        dialogues.read_visdial,
        "https://visualdialog.org/data",
        CC_BY,
        adds_question_marks=True,
    ),
    "llava": Source(
        "LLaVA-Instruct-150K",
        REASONING,
        "",
        (file_formats.LLAVA,),
        dialogues.read_llava,
        "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
        has_image_placeholders=True,
    ),
    "lvis": Source(
        "LVIS-Instruct4V",
        REASONING,
        "",
        (file_formats.LVIS,),
        dialogues.read_lvis,
        "https://huggingface.co/datasets/X2FD/LVIS-Instruct4V",
        has_image_placeholders=True,
    ),
    "gqa": Source(
        "GQA",
        REASONING,
        SHORT,
        (file_formats.GRAPH, file_formats.GENOME_IMAGES),
        vqa.read_gqa,
        "https://cs.stanford.edu/people/dorarad/gqa",
    ),
    "tdiuc": Source(
        "TDIUC",
        PERCEPTION,
        SHORT,
        (file_formats.QUESTIONS, file_formats.TDIUC),
        vqa.read_tdiuc,
        "https://kushalkafle.com/projects/tdiuc.html",
    ),
    "refcoco": Source(
        "RefCOCO, RefCOCO+, RefCOCOg",
        PERCEPTION,
        "Answer with the box of it in the image, as [x1,y1,x2,y2].",
        (file_formats.EXPRESSIONS,),
        grounding.read_refcoco,
        "https://github.com/shikras/shikra/blob/main/docs/data.md",
    ),
    "caption": Source(
        "Captions of your own",
        PERCEPTION,
        QUESTION,
        (file_formats.TABLE,),
        captions.read_caption_tables,
        joined_by="stimulus",
    ),
}


def get_source(name: str) -> Source:
    """Get a source by name.

    Parameters
    ----------
    name : str
        Key of `SOURCES`.

    Returns
    -------
    Source
        The source.

    Raises
    ------
    InputError
        If no source has this name.

    Examples
    --------
    >>> get_source("vqa-v2").title
    'VQA v2'
    """
    if name not in SOURCES:
        raise InputError(f"there is no source {name!r}; known: {', '.join(SOURCES)}.")
    return SOURCES[name]


def format_sample(
    sample: InstructionSample, source: Source, style: Style
) -> tuple[Conversation, list[str]]:
    """Format a sample as a conversation about an fMRI trial.

    Parameters
    ----------
    sample : InstructionSample
        The sample.
    source : Source
        Its source.
    style : {"mindllm", "published"}
        "mindllm": the question as it is, then the prompt, then `<fMRI>` (see
        `mindllm.language.conversation.build_conversation`). "published": worded as by the authors'
        code, for published weights: `<fMRI>` first (or where the source puts the image), and fMRI
        for every "image".

    Returns
    -------
    turns : list of dict
        Messages with `role` and `content`.
    answers : list of str
        References that a prediction is compared with.

    Examples
    --------
    >>> sample = InstructionSample(9, "1", [("What runs?", "a dog")], ["a dog"])
    >>> turns, answers = format_sample(sample, SOURCES["vqa-v2"], "mindllm")
    >>> print(turns[0]["content"])
    What runs?
    Answer the question with a short phrase.
    <fMRI>
    """
    is_published = style == "published"

    def name_fmri(text: str) -> str:
        return text.replace("image", "fMRI") if is_published else text

    def clean(text: str) -> str:
        if not source.has_image_placeholders:
            return text
        return name_fmri(text.replace(IMAGE, "").strip())

    def add_question_mark(text: str) -> str:
        lacks_mark = source.adds_question_marks and not is_published and not text.endswith("?")
        return f"{text}?" if lacks_mark else text

    (question, answer), *further_turns = sample.turns
    first = "\n".join(part for part in (add_question_mark(question), source.prompt) if part)
    before, placeholder, after = first.partition(IMAGE)
    token = FMRI_TOKEN if placeholder and is_published else ""
    first = f"{before}{token}{after.replace(IMAGE, '')}".strip()
    turns = build_conversation(name_fmri(first), clean(answer), fmri_first=is_published)
    for question, answer in further_turns:
        turns += [
            {"role": "user", "content": add_question_mark(clean(question))},
            {"role": "assistant", "content": clean(answer)},
        ]
    return turns, [clean(text) for text in sample.answers]
