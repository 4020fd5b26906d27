"""Speed of a whole training step of instruction tuning, as ratios within one run.

    python -m benchmarks.training [--llm NAME] [--batch-size 8] [--cases frozen lora]

Forward, backward and optimizer step, at the sizes of the paper: 15,724 voxels, 1,024 queries, 128
fMRI tokens, and conversations of mixed lengths. The reference is written here: attention for each
trial (a B x N x V tensor), conversations padded to the longest, logits of the whole sequence,
nothing shared, and the default optimizer. Both have the same weights and inputs, and their
gradients are compared first, on three of the conversations, in double precision; how far single
precision moves those of either is printed. Repetitions alternate; medians are printed as a Markdown
table.
"""

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mindllm.language.conversation import build_conversation
from mindllm.model.encoder import VoxelFeatures
from mindllm.model.language_model import FrozenLanguageModel, load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import IGNORE_INDEX
from mindllm.training.configuration import LoraOptions, StageConfig, TrainConfig
from mindllm.training.lora import add_lora
from mindllm.training.losses import InstructionBatch, MindLLMLoss, MixedTrials
from mindllm.training.optimization import ADAM_BETAS, create_optimizer

# Of gradients, relative to their norm. Both ways are the same sum, but single precision alone moves
# either by 2e-4 at 135 M weights; so they are compared in double precision, and their distances
# from it in single.
MAX_DIFFERENCE = 1e-8
MAX_ROUNDING = 2.0  # of ours, in multiples of the reference's
MIN_ROUNDING = 1e-5  # counts as none
N_CHECKED = 3  # conversations: a short, a long and the longest answer
DESCRIPTION = (
    "The image shows a busy street on a sunny day. In the foreground a man in a blue jacket walks "
    "a large brown dog along the pavement, while a woman beside him pushes a bicycle with a basket "
    "full of vegetables. Behind them two children wait at a bus stop, one of whom holds a yellow "
    "umbrella. Several cars are parked along the road, among them a red van with its doors open, "
    "from which a worker unloads boxes. In the background there are shops with striped awnings, a "
    "row of trees, and a church tower that stands out against the clear sky. The scene is lively "
    "and gives the impression of a small town on a market day."
)
# Eight conversations in the proportions of the paper's sources: short answers, captions, a
# dialogue's turn, a long description.
CONVERSATIONS = [
    ("Is there a person in the picture?", "yes"),
    ("Describe the image in one sentence.", "A man rides a wave on a surfboard in the ocean."),
    ("What color is the bus?", "red"),
    ("What do you see?", "Two zebras stand next to each other in a grassy field near a fence."),
    ("How many people are there?", "3"),
    ("Describe the image concisely.", "A kitchen with a stove, a sink and a wooden table."),
    (
        "What could the people in this image be waiting for, and how can you tell?",
        "They seem to wait for a train: they stand on a platform with luggage beside them, and "
        "most of them look along the tracks.",
    ),
    ("Describe the following image in detail.", DESCRIPTION),
]
ONE_LENGTH = [CONVERSATIONS[3]] * len(CONVERSATIONS)


@dataclass(frozen=True)
class Row:
    """One line of the table; times in seconds."""

    what: str
    reference: float
    ours: float
    target: float | None = None

    def __str__(self) -> str:
        ratio = self.reference / self.ours
        target = f">= {self.target}" if self.target else ""
        return (
            f"| {self.what} | {self.reference:.2f} s | {self.ours:.2f} s | {ratio:.2f} | {target} |"
        )


@dataclass(frozen=True)
class Differences:
    """Greatest differences of a parameter's gradient, relative to its norm.

    Parameters
    ----------
    in_double : float
        Between ours and the reference, in double precision.
    ours, reference : float
        Of each in single precision from the reference in double precision.
    """

    in_double: float
    ours: float
    reference: float

    def __str__(self) -> str:
        return (
            f"gradients differ by {self.in_double:.1e} in double precision; rounding to single "
            f"moves ours by {self.ours:.1e}, the reference's by {self.reference:.1e}"
        )

    def check(self) -> None:
        """Raise AssertionError where ours are others than the reference's, or less exact."""
        if not self.in_double <= MAX_DIFFERENCE:
            raise AssertionError(f"expected at most {MAX_DIFFERENCE} in double precision")
        if not self.ours <= max(MAX_ROUNDING * self.reference, MIN_ROUNDING):
            raise AssertionError(f"expected ours within {MAX_ROUNDING} times the reference's")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a comparison."""

    batch_size: int = 8
    n_subjects: int = 4
    n_voxels: int = 15_724
    preset: str = "paper"
    encoder: tuple[tuple[str, object], ...] = ()


def make_config(sizes: Sizes, lora: bool, encoder_too: bool = False) -> TrainConfig:
    """Training options; with encoder_too instruction tuning trains the complete encoder."""
    steps = 0 if encoder_too else 1
    return TrainConfig(
        preset=sizes.preset,
        encoder=dict(sizes.encoder),
        alignment=StageConfig(max_steps=steps, batch_size=sizes.batch_size),
        instruction_tuning=StageConfig(
            max_steps=1, batch_size=sizes.batch_size, learning_rate=1e-6
        ),
        lora=LoraOptions() if lora else None,
    )


def make_loss(language_model: FrozenLanguageModel, config: TrainConfig) -> MindLLMLoss:
    """A random model and its loss, without dropout and noise, so that gradients are comparable."""
    torch.manual_seed(0)
    model = MindLLM(config.encoder_config(), {}, language_model)
    if config.lora:
        add_lora(language_model, config.lora, seed=0)
        for name, parameter in language_model.model.named_parameters():
            if ".lora_B" in name:  # 0 at first, so that the gradients of the others would be 0
                nn.init.normal_(parameter, std=0.02)
    loss_fn = MindLLMLoss(model, [answer for _, answer in CONVERSATIONS], config).eval()
    trained = loss_fn.trainable_parameters("instruction_tuning")
    for name, parameter in loss_fn.named_parameters():
        parameter.requires_grad_(name in trained)
    return loss_fn


def make_batch(
    model: MindLLM, sizes: Sizes, conversations: Sequence[tuple[str, str]]
) -> InstructionBatch:
    """Random trials of several subjects and the conversations about them, repeated as needed."""
    generator = torch.Generator().manual_seed(1)
    groups = []
    for subject in range(sizes.n_subjects):
        n_trials = len(range(subject, sizes.batch_size, sizes.n_subjects))
        coords = torch.rand(sizes.n_voxels, 3, generator=generator) * 1.6 - 0.8
        parcels = torch.zeros(sizes.n_voxels, 0, dtype=torch.int64)
        betas = torch.randn(n_trials, sizes.n_voxels, generator=generator)
        groups.append((VoxelFeatures(coords, parcels), betas))
    asked = [conversations[i % len(conversations)] for i in range(sizes.batch_size)]
    prompts = [model.processor(build_conversation(*turns)) for turns in asked]
    return InstructionBatch(MixedTrials(groups, torch.eye(sizes.batch_size)), prompts)


def reference_loss(model: MindLLM, batch: InstructionBatch) -> Tensor:
    """The loss, written without any short cut."""
    encoder, language_model = model.encoder, model.language_model.model
    trials = [(voxels, row) for voxels, betas in batch.trials.groups for row in betas]
    keys = torch.stack([encoder.compute_keys(voxels) for voxels, _ in trials])  # B x V x d
    scores = torch.einsum("nd,bvd->bnv", encoder.queries, keys) * encoder.scale
    weights = torch.softmax(scores, -1)  # B x N x V
    betas = torch.stack([row for _, row in trials])
    query_outputs = torch.einsum("bnv,bv->bn", weights, betas)
    tokens = model.projector(encoder.head.tokens(encoder.head.embed(query_outputs)))
    inputs = model.processor.pad(batch.prompts)
    is_fmri = inputs["input_ids"] == model.processor.fmri_token_id
    ids = inputs["input_ids"].masked_fill(is_fmri, model.language_model.pad_id)
    embeds = language_model.get_input_embeddings()(ids)
    positions = inputs["fmri_token_positions"][..., None].expand_as(tokens)
    embeds = embeds.scatter(1, positions, tokens)
    logits = language_model(
        inputs_embeds=embeds, attention_mask=inputs["attention_mask"], use_cache=False
    ).logits
    labels = inputs["labels"][:, 1:].flatten()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=IGNORE_INDEX)


def gradients(loss_fn: MindLLMLoss, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss by parameter."""
    loss.backward()
    result = {n: p.grad.clone() for n, p in loss_fn.named_parameters() if p.grad is not None}
    loss_fn.zero_grad()
    return result


def to_double(loss_fn: MindLLMLoss) -> MindLLMLoss:
    """A copy in double precision, with its normalizations, which transformers rounds to single."""
    copied = copy.deepcopy(loss_fn).double()
    language_model = copied.model.language_model.model
    for name, layer in list(language_model.named_modules()):
        if hasattr(layer, "variance_epsilon"):
            norm = nn.RMSNorm(layer.weight.shape, layer.variance_epsilon)
            norm.weight = layer.weight
            language_model.set_submodule(name, norm)
    return copied


def batch_to_double(batch: InstructionBatch) -> InstructionBatch:
    """A batch in double precision."""
    groups = [
        (VoxelFeatures(voxels.coords.double(), voxels.parcel_ids), betas.double())
        for voxels, betas in batch.trials.groups
    ]
    return InstructionBatch(
        MixedTrials(groups, batch.trials.mixing_weights.double()), batch.prompts
    )


def largest_difference(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Greatest difference of a parameter's gradient from the expected one, relative to its norm."""
    if actual.keys() != expected.keys():
        raise AssertionError(f"other gradients: {sorted(actual.keys() ^ expected.keys())}")
    # A bias of keys has no gradient but for rounding: such parameters count by the largest norm.
    floor = 1e-2 * max(float(gradient.norm()) for gradient in expected.values())
    return max(
        float((actual[name].double() - gradient.double()).norm())
        / max(float(gradient.norm()), floor)
        for name, gradient in expected.items()
    )


def compare_gradients(loss_fn: MindLLMLoss, batch: InstructionBatch) -> Differences:
    """Compare the gradients of both, in double precision and in single."""
    reference = gradients(loss_fn, reference_loss(loss_fn.model, batch))
    ours = gradients(loss_fn, loss_fn(batch))
    exact, batch = to_double(loss_fn), batch_to_double(batch)
    expected = gradients(exact, reference_loss(exact.model, batch))
    return Differences(
        in_double=largest_difference(gradients(exact, exact(batch)), expected),
        ours=largest_difference(ours, expected),
        reference=largest_difference(reference, expected),
    )


def time_step(loss_fn: MindLLMLoss, batch: InstructionBatch, optimizer: object) -> float:
    """Seconds of one step of the optimizer: by the reference if that is its loss."""
    assert isinstance(optimizer, torch.optim.Optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    is_reference = not optimizer.defaults["fused"]
    start = time.perf_counter()
    loss = reference_loss(loss_fn.model, batch) if is_reference else loss_fn(batch)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def compare(
    what: str,
    loss_fn: MindLLMLoss,
    batch: InstructionBatch,
    checked: InstructionBatch,
    repeats: int,
    target: float | None,
) -> Row:
    """Check the gradients of one batch, then time alternating steps of the other."""
    differences = compare_gradients(loss_fn, checked)
    print(f"{what}: {differences}", flush=True)
    differences.check()
    trained = loss_fn.trainable_parameters("instruction_tuning")
    options = loss_fn.config.instruction_tuning
    ours = create_optimizer(trained, options)
    reference = torch.optim.AdamW(trained.values(), lr=options.learning_rate, betas=ADAM_BETAS)
    times: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(repeats + 1):
        for optimizer in (reference, ours):
            seconds = time_step(loss_fn, batch, optimizer)
            if repeat:  # the first makes the optimizer's state
                times[optimizer is ours].append(seconds)
    row = Row(what, statistics.median(times[False]), statistics.median(times[True]), target)
    print(row, flush=True)
    return row


CASES = {
    "frozen": ("training step, frozen language model", 1.8),
    "one-length": ("the same, conversations of one length", None),
    "encoder": ("the same, complete encoder trained", None),
    "lora": ("training step with LoRA", 1.3),
}


def measure(llm: str | None, sizes: Sizes, repeats: int, cases: Sequence[str]) -> list[Row]:
    """The rows of the table that are asked for, those with an adapter last."""
    language_model = load_language_model(llm)
    rows = []
    for case in sorted(cases, key=list(CASES).index):
        what, target = CASES[case]
        loss_fn = make_loss(language_model, make_config(sizes, case == "lora", case == "encoder"))
        conversations = ONE_LENGTH if case == "one-length" else CONVERSATIONS
        batch = make_batch(loss_fn.model, sizes, conversations)
        few = replace(sizes, batch_size=N_CHECKED, n_subjects=2)
        checked = make_batch(loss_fn.model, few, conversations[-N_CHECKED:])
        rows.append(compare(what, loss_fn, batch, checked, repeats, target))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", default=None, help="a language model; default: the small one")
    parser.add_argument("--batch-size", type=int, default=8, help="conversations of a step")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each")
    parser.add_argument(
        "--cases", nargs="+", choices=list(CASES), default=list(CASES), help="rows of the table"
    )
    options = parser.parse_args(arguments)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"batches of {options.batch_size}"
    )
    sizes = Sizes(batch_size=options.batch_size)
    print("\n| what | reference | ours | ratio | target |\n|---|---|---|---|---|", flush=True)
    measure(options.llm, sizes, options.repeats, options.cases)


if __name__ == "__main__":
    main()
