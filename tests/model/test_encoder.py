"""The encoder: what it is invariant to, and what its attention may depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm.model.configuration import PRESETS, MindLLMConfig
from mindllm.model.encoder import FMRIEncoder
from mindllm.model.receptive_fields import init_queries
from mindllm.utils.errors import InputError
from tests.conftest import REGIONS, TINY_CONFIG, make_space

NAMES = {p: list(names.values()) for p, names in REGIONS.items()}


def encoder(config: MindLLMConfig = TINY_CONFIG, seed: int = 0) -> FMRIEncoder:
    torch.manual_seed(seed)
    return FMRIEncoder(config, NAMES).eval()


def values(count: int, voxels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, voxels, generator=torch.Generator().manual_seed(seed))


VARIANTS = {
    "default": TINY_CONFIG,
    "walkthrough": PRESETS["walkthrough"],
    "random": TINY_CONFIG.model_copy(
        update={
            "fourier_features": "random",
            "coordinate_system": "index",
            "append_coordinates": False,
            "num_key_layers": 3,
        }
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_permuting_voxels_changes_nothing(variant: str, seed: int) -> None:
    net, space = encoder(VARIANTS[variant]), make_space()
    v = values(4, len(space))
    order = np.random.default_rng(seed).permutation(len(space))
    with torch.no_grad():
        straight = net([(net.prepare_voxels(space), v)])
        permuted = net([(net.prepare_voxels(space.select_voxels(order)), v[:, order.copy()])])
    torch.testing.assert_close(straight, permuted, rtol=1e-4, atol=1e-5)


def test_mixed_batch_equals_its_rows_alone() -> None:
    net = encoder()
    people = [
        (net.prepare_voxels(make_space("a", 60, 1)), values(3, 60, 1)),
        (net.prepare_voxels(make_space("b", 45, 2)), values(2, 45, 2)),
    ]
    with torch.no_grad():
        together = net(people)
        alone = torch.cat(
            [net([(voxels, v[i : i + 1])]) for voxels, v in people for i in range(len(v))]
        )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_values_never_enter_the_attention_weights() -> None:
    """What is seen is linear in the values, with weights of sum one: z(a v + b) = a z(v) + b."""
    net, space = encoder(), make_space()
    voxels = net.prepare_voxels(space)
    v = values(5, len(space)) * 100
    with torch.no_grad():
        seen = net.attend(voxels, v)
        torch.testing.assert_close(
            net.attend(voxels, -3 * v + 7), -3 * seen + 7, rtol=1e-4, atol=1e-3
        )
        torch.testing.assert_close(seen, v @ net.attention_weights(voxels).T, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(
            net.attention_weights(voxels).sum(-1), torch.ones(net.config.num_queries)
        )


def test_regions_are_matched_by_name() -> None:
    net, space = encoder(), make_space()
    renumber = {0: 0, 1: 30, 2: 10, 3: 20}
    other = make_space()
    other.parcel_labels["visual"][:] = [renumber[n] for n in space.parcel_labels["visual"]]
    other.parcel_names["visual"] = {renumber[n]: name for n, name in REGIONS["visual"].items()}  # type: ignore[index]
    assert torch.equal(net.prepare_voxels(space).parcel_ids, net.prepare_voxels(other).parcel_ids)


def test_a_missing_parcellation_is_all_zeros_and_an_unknown_name_an_error() -> None:
    net, space = encoder(), make_space()
    del space.parcel_labels["lobes"]  # type: ignore[attr-defined]
    assert (net.prepare_voxels(space).parcel_ids[:, 1] == 0).all()
    space.parcel_names["visual"] = {1: "V1", 2: "V2", 3: "somewhere"}  # type: ignore[index]
    with pytest.raises(
        InputError,
        match=r"visual has 1 parcel names that the model does not know: \['somewhere'\]"
        r".*Expected names such as \['V1'",
    ):
        net.prepare_voxels(space)


def test_walkthrough_has_the_published_sizes() -> None:
    """Keys 3 + 24 + 8 = 35 -> 64; 16 tokens of 128; people of 12,000 and 15,000 voxels."""
    torch.manual_seed(0)
    net = FMRIEncoder(PRESETS["walkthrough"], {"visual": NAMES["visual"]}).eval()
    layer = net.coord_proj[0]
    assert layer.in_features + net.parcel_proj.in_features == 3 + 24 + 8
    assert (layer.out_features, len(net.queries)) == (64, 16)
    people = [make_space(str(n), n, shape=(40, 40, 30)) for n in (12_000, 15_000)]
    with torch.no_grad():
        assert net([(net.prepare_voxels(p), values(2, len(p))) for p in people]).shape == (
            4,
            16,
            128,
        )


def test_paper_has_the_published_number_of_weights() -> None:
    """139 M weights with a projector to width 4,096, of which the head's last layer is 134 M."""
    with torch.device("meta"):
        net = FMRIEncoder(PRESETS["paper"], NAMES)
    count = sum(p.numel() for p in net.parameters()) + 1024 * 4096
    leave = sum(p.numel() for p in net.head.token_proj.parameters())
    assert round(leave / 1e6) == 134
    assert abs(count / 1e6 - 139) < 6


def test_unknown_configuration_key() -> None:
    with pytest.raises(ValueError, match="n_querys"):
        MindLLMConfig(n_querys=3)  # type: ignore[call-arg]


def test_attention_in_parts_is_attention_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Query outputs and all gradients, where rows of A are computed a few at a time."""
    torch.manual_seed(0)
    encoder = FMRIEncoder(TINY_CONFIG, {p: list(names.values()) for p, names in REGIONS.items()})
    encoder.double()
    masker = make_space(voxels=60)
    voxels, betas = encoder.prepare_voxels(masker), torch.randn(5, 60, dtype=torch.float64)
    results = []
    for max_weights in (2**26, 60 * 3, 1):  # all rows, three rows, one row
        monkeypatch.setattr("mindllm.model.encoder.MAX_WEIGHTS", max_weights)
        encoder.zero_grad()
        outputs = encoder.attend(voxels, betas)
        outputs.square().sum().backward()
        gradients = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
        results.append([outputs.detach(), *gradients])
    for parts in results[1:]:
        assert len(parts) == len(results[0]) > 4
        for actual, expected in zip(parts, results[0], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(encoder.attend(voxels, betas), results[0][0])


def test_queries_of_lazy_maskers_are_those_of_a_list() -> None:
    """Each subject's voxels are prepared only where one of them is drawn."""
    maskers = [make_space(f"sub-{n}", 50 + 10 * n, seed=n) for n in range(3)]
    queries = []
    for sample in (100, 100):
        torch.manual_seed(1)
        encoder = FMRIEncoder(TINY_CONFIG, {})
        init_queries(encoder, maskers, sample)
        queries.append(encoder.queries.detach().clone())
    torch.testing.assert_close(queries[0], queries[1])
    keys = torch.cat([encoder.compute_keys(encoder.prepare_voxels(m)) for m in maskers])
    distances = (queries[0][:, None] - keys).abs().amax(-1)
    assert distances.min(1).values.max() < 1e-5
    assert len(queries[0].unique(dim=0)) == TINY_CONFIG.num_queries
