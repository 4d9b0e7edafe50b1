import pytest

from restage.diagnose.attribution import MEASURED, measured_rows
from restage.diagnose.cases import describe_part
from restage.diagnose.parts import RunParts
from restage.diagnose.trials import Trial
from restage.edit.methods import Restage

SCENES = {f"scene-{number}": f"scene-{number}" for number in range(3)}


def trials(values: dict[str, float]) -> dict[str, dict[str, dict[str, Trial]]]:
    metrics = {metric for _, _, found in MEASURED for metric in found}

    def numbers_of(value: float) -> dict[str, float]:
        return {metric: value for metric in metrics}

    return {
        kind: {
            side: {
                case: Trial(numbers=numbers_of(value + 0.1 * number), seconds=0.0) for number, case in enumerate(SCENES)
            }
            for side, value in values.items()
        }
        for kind in {kind for _, kind, _ in MEASURED}
    }


@pytest.mark.parametrize(("change", "is_parted"), [(0.0001, False), (0.001, True)])
def test_only_a_difference_that_shows_in_print_is_marked(change, is_parted):
    rows = measured_rows(trials({"A": 0.5, "B": 0.5 + change}), SCENES)
    assert {row.is_parted for row in rows} == {is_parted}


def test_how_a_method_differs_leaves_its_noise_range_to_that_part(make_run):
    a, b = (RunParts.open(make_run(name), "restage") for name in "ab")
    vars(a)["settings"] = Restage(noise_levels=(1.0,))
    vars(b)["settings"] = Restage(noise_levels=(0.35,), robust_scale=0.25)
    assert describe_part("method", a, b, []) == "robust_scale 0.2 -> 0.25"
    assert describe_part("noise_range", a, b, []) == "noise_levels [1.0] -> [0.35]"
