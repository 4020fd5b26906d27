"""Plans of memory: against a real process, torch's own tracker, and arithmetic."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mindllm.data.store import Store
from mindllm.language.shapes import SHAPES, read_shape
from mindllm.model.candidates import count_prefix_tokens
from mindllm.model.configuration import PRESETS
from mindllm.model.encoder import FMRIEncoder, VoxelFeatures
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.model.modeling import MindLLM
from mindllm.training.configuration import LoraOptions, TrainConfig
from mindllm.training.hardware import GIB, HARDWARE, Hardware
from mindllm.training.lora import add_lora
from mindllm.training.losses import InstructionBatch, MindLLMLoss, MixedTrials
from mindllm.training.optimization import create_optimizer
from mindllm.training.planning import (
    LOADING_RATE,
    DataShape,
    PhasePlan,
    Planner,
    PlanOptions,
    measure_store,
    plan_training,
)

BATCH, VOXELS = 16, 4000
CPU = Hardware("cpu, 1 thread", 16 * GIB, 1e10, {"float32": 5e10, "bfloat16": 5e10}, 0.6, "assumed")
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
ANSWER = "a child on the beach eats pizza with a red dog and " * 2


def instruct(batch_size: int, **options: object) -> TrainConfig:
    stage = {"max_steps": 100, "batch_size": batch_size}
    return TrainConfig(alignment={"max_steps": 0}, instruction_tuning=stage, **options)


def phase(plan_options: PlanOptions, config: TrainConfig) -> PhasePlan:
    """Instruction tuning with two layers of a small model."""
    shape = read_shape("smollm2-135m")
    shape.num_hidden_layers = 2
    data = DataShape(n_subjects=4, n_trials=4000, n_voxels=VOXELS)
    return Planner(shape, data, config, plan_options).plan_stage("instruction_tuning")


@pytest.mark.parametrize(
    ("name", "n_parameters"),
    [
        ("vicuna-7b", 6_738_415_616),
        ("vicuna-13b", 13_015_864_320),
        ("llama-3.1-8b", 8_030_261_248),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-7b", 7_615_616_512),
        ("smollm2-135m", 134_515_008),
        ("smollm2-1.7b", 1_711_376_384),
    ],
)
def test_named_shapes_have_the_published_number_of_weights(name: str, n_parameters: int) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read_shape(name))
    assert name in SHAPES
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters


def resident() -> int:
    """Bytes of this process now, and its peak from now on."""
    Path("/proc/self/clear_refs").write_text("5")
    return high_water()


def high_water() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measured_step(tiny_llm_folder: str, lora: bool) -> None:
    """Print the bytes that two real steps of instruction tuning take at most, and token counts."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm_folder)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SMALL | {"num_hidden_layers": 1}))(
        torch.zeros(1, 4, dtype=torch.int64)
    ).logits.sum().backward()  # libraries take their room
    before = resident()
    llm = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SMALL)).eval()
    options = LoraOptions() if lora else None
    config = instruct(BATCH, lora=options)
    model = MindLLM(PRESETS["default"], {}, FrozenLanguageModel("small", llm, tokenizer))
    if options:
        add_lora(model.language_model, options, 0)
    loss_fn = MindLLMLoss(model, ["a", "b"], config)
    parameters = loss_fn.trainable_parameters("instruction_tuning")
    for name, parameter in loss_fn.named_parameters():
        parameter.requires_grad_(name in parameters)
    optimizer = create_optimizer(parameters, config.instruction_tuning)
    loss_fn.train()
    model.language_model.eval()
    prompts = [model.processor(model.build_conversation(answer=f"{n} {ANSWER}")) for n in "ab" * 8]
    n_trials = 56
    for _ in range(2):  # the second has the optimizer's state
        groups = [
            (
                VoxelFeatures(torch.rand(VOXELS, 3), torch.zeros(VOXELS, 0, dtype=torch.int64)),
                torch.randn(n_trials // 4, VOXELS),
            )
            for _ in range(4)
        ]
        trials = MixedTrials(groups, torch.rand(BATCH, n_trials))
        loss_fn(InstructionBatch(trials, prompts)).backward()
        optimizer.step()
        optimizer.zero_grad()
    prompt, n_fmri = prompts[0], model.encoder.config.num_fmri_tokens
    prefix = count_prefix_tokens(model, prompts, torch.rand(BATCH, n_fmri, 1, requires_grad=True))
    text, answer = len(prompt.input_ids) - n_fmri - prefix, int((prompt.labels != -100).sum())
    print(high_water() - before, prefix, text, answer, len(tokenizer))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_memory_is_that_of_a_real_process(tiny_llm_folder: Path, lora: bool) -> None:
    code = (  # memory goes back as soon as it is free
        "import ctypes; ctypes.CDLL(None).mallopt(-3, 65536);"
        "from tests.training.test_planning import measured_step;"
        f"measured_step({str(tiny_llm_folder)!r}, {lora})"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=root
    )
    assert done.returncode == 0, done.stderr
    measured, prefix, text, answer, vocab_size = map(int, done.stdout.split()[-5:])
    options = PlanOptions(CPU, prefix_tokens=prefix, text_tokens=text, answer_tokens=answer)
    config = instruct(
        BATCH, lora=LoraOptions() if lora else None, voxel_dropout=(0.0, 0.1), encoder={}
    )
    data = DataShape(n_subjects=4, n_trials=4000, n_voxels=VOXELS, n_atlases=0)
    shape = LlamaConfig(vocab_size=vocab_size, **SMALL)
    planned = plan_training(shape, data, config, options).phases[0].peak_bytes
    assert planned == pytest.approx(measured, rel=0.1)


class Tracker(MemTracker):
    """Torch's tracker, for models with parameters that are not trained, too."""

    def _track_module_params_and_buffers(self, module, install_grad_hooks=False):
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)


@pytest.mark.parametrize("n_layers", [1, pytest.param(32, marks=pytest.mark.slow)])
def test_vicunas_step_is_that_of_torchs_own_tracker(n_layers: int) -> None:
    """A step of its shape, written out here, on tensors without content; 32 layers: 7 billion."""
    batch, text, answer = 5, 94, 24
    options = PlanOptions(HARDWARE["rtx-4090"], prefix_tokens=0, text_tokens=94)
    config = instruct(batch, preset="paper")
    shape = read_shape("vicuna-7b")
    shape.num_hidden_layers = n_layers
    data = DataShape(n_subjects=4, n_trials=4000, n_voxels=VOXELS)
    planned = plan_training(shape, data, config, options).phases[0]
    encoder_config = PRESETS["paper"]
    with FakeTensorMode(allow_non_fake_inputs=True):
        llm = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
        llm.requires_grad_(False)
        encoder = FMRIEncoder(encoder_config, {"atlas": [str(n) for n in range(400)]})
        projector = torch.nn.Linear(encoder_config.token_dim, 4096)
        parameters = [*encoder.parameters(), *projector.parameters()]  # without alignment: all
        optimizer = torch.optim.AdamW(parameters, fused=True)
        tracker = Tracker()
        tracker.track_external(llm, encoder, projector, optimizer)
        with tracker:
            for _ in range(2):
                outputs = []
                for n in (5, 4, 4, 4):
                    tracker.reset_mod_stats()  # a module is called again
                    voxels = VoxelFeatures(
                        torch.zeros(3600, 3), torch.zeros(3600, 1, dtype=torch.int64)
                    )
                    outputs.append(encoder.attend(voxels, torch.zeros(n, 3600)))
                mixed = torch.zeros(batch, 17) @ torch.cat(outputs)
                tokens = projector(encoder.head.tokens(encoder.head.embed(mixed))).bfloat16()
                embeds = llm.get_input_embeddings()(torch.zeros(batch, text, dtype=torch.int64))
                logits = llm(
                    inputs_embeds=torch.cat([tokens, embeds], 1),
                    attention_mask=torch.ones(batch, text + 128, dtype=torch.int64),
                    logits_to_keep=torch.arange(128 + text - answer, 128 + text),
                    use_cache=False,
                ).logits
                labels = torch.zeros(batch * answer, dtype=torch.int64)
                F.cross_entropy(logits.flatten(0, 1).float(), labels).backward()
                del logits
                optimizer.step()
                optimizer.zero_grad()
        snapshot = tracker.get_tracker_snapshot("peak")
    (sizes,) = snapshot.values()
    planned_bytes = planned.peak_bytes - planned.parts["reserve"]
    assert planned_bytes == pytest.approx(sizes["Total"], rel=0.1)
    if n_layers == 32:
        assert 16 * GIB < planned.peak_bytes < 24 * GIB
        assert planned.largest_batch >= batch


def test_the_largest_batch_is_the_last_that_fits() -> None:
    card = PlanOptions(HARDWARE["rtx-4090"])
    largest = phase(card, instruct(16)).largest_batch
    assert phase(card, instruct(largest)).peak_bytes <= 24 * GIB
    assert phase(card, instruct(largest + 1)).peak_bytes > 24 * GIB
    tiny = replace(HARDWARE["rtx-4090"], memory_bytes=GIB)
    assert phase(PlanOptions(tiny), instruct(16)).largest_batch == 0


def test_options_change_the_parts_that_they_are_about() -> None:
    card, config = HARDWARE["rtx-4090"], instruct(16)
    plain = phase(PlanOptions(card), config)
    checkpointed = phase(PlanOptions(card, gradient_checkpointing=True), config)
    assert checkpointed.parts["activations"] < 0.7 * plain.parts["activations"]
    assert 1.1 < checkpointed.compute_seconds / plain.compute_seconds < 1.8
    quantized = phase(PlanOptions(card, load_in_4bit=True), config)
    # Of two layers; embeddings and norms are not quantized.
    linear = 2 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    saved = plain.parts["language model"] - quantized.parts["language model"]
    assert saved == pytest.approx(linear * (2 - 0.5625), rel=1e-3)
    sharded = phase(PlanOptions(card, num_gpus=4, shard=True), config)
    assert sharded.parts["optimizer"] == pytest.approx(plain.parts["optimizer"] / 4, abs=1)
    assert sharded.compute_seconds == pytest.approx(plain.compute_seconds / 4, rel=0.2)
    adapted = phase(PlanOptions(card), instruct(16, lora=LoraOptions()))
    assert adapted.parts["optimizer"] > plain.parts["optimizer"]


def test_accumulated_gradients_are_held() -> None:
    config = instruct(4)
    config.instruction_tuning.gradient_accumulation_steps = 4
    once, often = phase(PlanOptions(CPU), instruct(4)), phase(PlanOptions(CPU), config)
    assert often.parts["gradients"] > once.parts.get("gradients", 0)
    assert often.compute_seconds == pytest.approx(4 * once.compute_seconds)


def test_time_and_cost_are_those_of_all_steps() -> None:
    options = PlanOptions(HARDWARE["h100"], num_gpus=2, price_per_hour=3.0)
    data = DataShape(n_subjects=4, n_trials=4000, n_voxels=15_724)
    shape = read_shape("smollm2-135m")
    shape.num_hidden_layers = 1
    plan = plan_training(shape, data, TrainConfig(), options)
    alignment = plan.phases[0]
    assert alignment.loading_seconds == pytest.approx(480 * 3.5 / 2 * 15_724 / LOADING_RATE)
    seconds = 200 * (alignment.compute_seconds + alignment.loading_seconds)
    assert plan.cost(alignment) == pytest.approx(3.0 * 2 * seconds / 3600)
    n_layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576
    assert plan.n_parameters == 49_152 * 576 + 576 + n_layer


def test_sizes_of_a_store(tiny_store: Store) -> None:
    assert measure_store(tiny_store) == DataShape(3, 72, 70, 2)
