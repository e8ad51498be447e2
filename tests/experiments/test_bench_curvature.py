"""What the script on curvature's cost counts, against the state that CREST really holds."""

import dataclasses

import jax
import pytest

from experiments.benchmarks import curvature
from experiments.config import TrainConfig
from experiments.harness.build import make_program, shared
from experiments.harness.cli import UserError
from experiments.harness.options import CrestOptions, NetworkConfig, RegionOptions

RUN = TrainConfig(
    dataset="digits", model="mlp", batch_size=64, network=NetworkConfig(width=16),
)  # fmt: skip


@pytest.mark.slow
def test_parameters_and_bytes_are_those_that_crest_holds() -> None:
    lines = curvature.measure(curvature.CurvatureConfig(of=("Dense_1",), rounds=2, run=RUN))
    assert [line["what"] for line in lines] == ["training step", "Dense_1", "all parameters"]
    assert all(len(line["seconds"]) == 2 and min(line["seconds"]) > 0 for line in lines)
    for line, pattern in zip(lines[1:], ("Dense_1", None), strict=True):
        region = RegionOptions(curvature="diagonal", smoothing="signed", curvature_of=pattern)
        crest = CrestOptions(regions=True, region=region)
        program = make_program(shared(dataclasses.replace(RUN, crest=crest)))
        params = program.init(jax.random.key(0)).params
        held = program.selection.init(jax.random.key(1), params, {})
        region, moments = held.region, held.moments
        kept = (region.anchor, region.gradient, region.curvature, moments.gradient, moments.curvature)
        assert line["held_bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(kept))
        part = jax.tree.leaves(region.curvature)
        assert line["parameters"] == sum(leaf.size for leaf in part)
    assert lines[1]["parameters"] < lines[2]["parameters"]
    text = curvature.as_table(lines)
    assert f"{lines[2]['parameters']:,}" in text


def test_a_part_that_is_not_there_and_options_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match=r"curvature_of is 'nowhere' but must be found"):
        curvature.measure(curvature.CurvatureConfig(of=("nowhere",), run=RUN))
    with pytest.raises(UserError, match=r"--of is '\(' but must be a regular expression"):
        curvature.CurvatureConfig(of=("(",), run=RUN)
    with pytest.raises(UserError, match=r"--rounds is 0"):
        curvature.CurvatureConfig(rounds=0)
    for option, value in (
        ("budget", 0.5),
        ("epochs", 7),
        ("crest", CrestOptions(region=RegionOptions(tau=0.5))),
    ):
        with pytest.raises(UserError, match=rf"--{option}.* has no effect here"):
            curvature.CurvatureConfig(run=dataclasses.replace(RUN, **{option: value}))
