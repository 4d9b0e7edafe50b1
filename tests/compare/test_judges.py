import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from restage.compare.config import CompareConfig
from restage.compare.judges import WIDTHS, Judges, alexnet_features, load_dino, load_lpips, open_judges
from restage.compare.measure import MEASURED, CaseViews, ResultViews, embed_before, measure_result
from restage.records import InputError
from restage.scores.definitions import COST_METRICS, METRICS


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def lpips_folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = alexnet_features().state_dict()
    torch.save({f"features.{name}": value for name, value in layers.items()}, tmp_path / "alexnet.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1, generator=generator) for i, w in enumerate(WIDTHS)}
    torch.save(heads, tmp_path / "lpips_alex.pth")
    return tmp_path


@pytest.fixture
def dino_folder(tmp_path: Path) -> Path:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=56)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Dinov2Model(config).save_pretrained(tmp_path)
    return tmp_path


def case_of(pictures: torch.Tensor, **changes) -> CaseViews:
    regions = torch.zeros(2, 32, 32)
    regions[:, 8:24, 8:24] = 1
    truth = pictures * (1 - 0.5 * regions[:, None])
    fields = {"source": pictures, "unedited": pictures, "truth": truth, "regions": regions}
    return CaseViews(("a.png", "b.png"), **{**fields, **changes})


def measure(result: ResultViews, case: CaseViews, judges: Judges):
    before = embed_before(case, judges)
    return measure_result(result, case, before=before, judges=judges, config=CompareConfig())


def test_every_metric_has_a_definition_a_direction_and_a_unit():
    for name, metric in METRICS.items():
        assert metric.definition.endswith("."), name
        assert metric.label and metric.unit and metric.better in ("higher", "lower", "neither")
    assert set(MEASURED) | set(COST_METRICS) == set(METRICS)


def test_what_no_model_is_at_hand_for_is_nan_and_says_what_to_name(pictures):
    found = measure(ResultViews(pictures), case_of(pictures), open_judges(CompareConfig()))
    assert tuple(found) == MEASURED
    assert math.isnan(found["lpips"].mean) and "--lpips" in found["lpips"].reason
    assert math.isnan(found["dino_truth"].mean) and "--dino" in found["dino_truth"].reason
    assert found["depth_error"].reason == "the true depth was not kept"
    assert [name for name, value in found.items() if math.isnan(value.mean) and not value.reason] == []


def test_truth_as_a_result_is_perfect_in_all_that_knows_truth(pictures, lpips_folder):
    case = case_of(pictures)
    assert case.truth is not None
    judges = Judges(lpips=load_lpips(lpips_folder))
    found = measure(ResultViews(case.truth), case, judges)
    assert found["progress"].mean == pytest.approx(1)
    assert found["ssim_inside"].mean == pytest.approx(1, abs=1e-6)
    assert found["lpips"].mean == pytest.approx(0, abs=1e-6)
    assert (found["no_op"].mean, found["wrong_way"].mean) == (0, 0)


def test_lpips_is_zero_for_equal_pictures_and_grows_with_the_difference(pictures, lpips_folder):
    lpips = load_lpips(lpips_folder)
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    distances = [max(lpips.distance(pictures, pictures + scale * noise)) for scale in (0.0, 0.05, 0.2)]
    assert distances[0] == 0 < distances[1] < distances[2]


def test_lpips_weighs_the_differences_of_normalised_features(pictures, lpips_folder):
    lpips = load_lpips(lpips_folder)
    doubled = torch.load(lpips_folder / "lpips_alex.pth", weights_only=True)
    torch.save({name: 2 * value for name, value in doubled.items()}, lpips_folder / "lpips_alex.pth")
    once, twice = (model.distance(pictures, pictures.flip(3)) for model in (lpips, load_lpips(lpips_folder)))
    assert twice == pytest.approx([2 * value for value in once])


def test_lpips_gives_what_the_public_package_gives(tmp_path):
    features = alexnet_features()
    with torch.no_grad():
        for layer, conv in enumerate(module for module in features if isinstance(module, nn.Conv2d)):
            angles = torch.arange(conv.weight.numel(), dtype=torch.float64) * 0.37 + layer
            conv.weight.copy_(angles.sin().view_as(conv.weight) * (2 / conv.weight[0].numel()) ** 0.5)
            assert conv.bias is not None
            conv.bias.copy_(torch.arange(conv.out_channels, dtype=torch.float64).cos() * 0.1)
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, tmp_path / "alexnet.pth")
    heads = [torch.arange(width, dtype=torch.float64).sin().abs().float().view(1, width, 1, 1) for width in WIDTHS]
    torch.save({f"lin{i}.model.1.weight": head for i, head in enumerate(heads)}, tmp_path / "lpips_alex.pth")
    steps = torch.arange(3 * 64 * 80, dtype=torch.float64).view(1, 3, 64, 80)
    first, second = ((0.11 * steps).sin() * 0.5 + 0.5).float(), ((0.07 * steps).cos() * 0.5 + 0.5).float()
    lpips = load_lpips(tmp_path)
    # What lpips 0.1.4 (network "alex") says of the same weights and pictures.
    assert lpips.distance(first, second) == pytest.approx([0.9028164148], rel=1e-5)
    assert lpips.distance(first, 0.8 * first) == pytest.approx([0.0257174056], rel=1e-5)


def test_weights_of_something_else_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"alexnet.pth does not exist"):
        load_lpips(tmp_path)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "alexnet.pth")
    torch.save({}, tmp_path / "lpips_alex.pth")
    with pytest.raises(InputError, match="does not hold LPIPS"):
        load_lpips(tmp_path)


def test_dino_embeds_pictures_as_unit_vectors_and_tells_them_apart(pictures, dino_folder):
    dino = load_dino(dino_folder)
    found = dino.encode_images(pictures)
    assert found.shape == (2, 16)
    assert found.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    case = case_of(pictures)
    assert case.truth is not None
    measured = measure(ResultViews(case.truth), case, Judges(dino=dino))
    assert measured["dino_truth"].mean == pytest.approx(1, abs=1e-5)
    assert measured["dino_before"].mean < 1


def test_a_folder_that_is_no_dino_is_refused(tmp_path):
    CLIPModel(CLIPConfig()).config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="expected a DINO"):
        load_dino(tmp_path)


def test_the_judges_are_known_by_their_weights_and_settings(lpips_folder):
    plain = open_judges(CompareConfig()).id
    assert open_judges(CompareConfig()).id == plain
    assert open_judges(CompareConfig(no_op_share=0.2)).id != plain
    assert open_judges(CompareConfig(lpips=lpips_folder)).id != plain


@pytest.mark.parametrize("changes", [{"no_op_share": 1.0}, {"orbit_frames": 1}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(InputError):
        CompareConfig(**changes)
