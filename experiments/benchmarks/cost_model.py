"""What CREST costs a step, in time and memory, on one device or many: a model in closed form.

    python -m experiments.benchmarks.cost_model --examples 14200000 --parameters 25600000 --devices 64

prints what the model says for that job and for three large ones; ``python -m
experiments.benchmarks.scaling`` checks it.

The unit of time is one example passed forward through the network on one device; a backward pass counts
two, and so does a Hessian-vector product more. What a unit takes is measured, or assumed.
"""

import dataclasses
import math
from typing import Literal

import tyro

from crest_jax.data.exclusion import MOST_OBSERVATIONS
from experiments.harness.cli import UserError, one_sentence
from experiments.harness.records import table

FLOAT, GB = 4, 1e9


@dataclasses.dataclass(frozen=True)
class Job:
    """A training with CREST; the defaults are those of the library."""

    examples: int = 20_000
    """n."""
    classes: int = 10
    """c; the gradient with respect to the logits has as many numbers."""
    features: int = 512
    """Width of the last layer; with the classes, the numbers of an example's embedding."""
    parameters: int = 20_000
    """Parameters of the network."""
    input_bytes: int = 784
    """Bytes of an example's input, as it is stored."""
    stored: Literal["whole", "shard", "host"] = "whole"
    """Where inputs are: whole on each device, shared out over them, or in host memory or a file."""
    devices: int = 1
    """D."""
    batch_size: int = 128
    """m."""
    subset_size: int = 512
    """r, examples that a coreset is chosen from."""
    exclude_window: int = 100
    """Steps of an exclusion window, whose observations are held."""
    span: float = 0.5
    """Share of the steps on which coresets are selected."""
    regions: bool = False
    """Coresets are kept in regions, as in the paper; else each step chooses its own."""
    probe_size: int = 256
    """k, rows on which a check measures the loss; this and the next six count with --regions."""
    max_coresets: int = 16
    """Coresets held at most."""
    max_interval: int = 16
    """Longest T1, steps by which a window may end late."""
    region: float = 16.0
    """Steps that a region lasts, in the mean."""
    coresets: float = 16.0
    """P, coresets selected for a region, in the mean."""
    checks: float = 2.0
    """Times that the probe rows' loss is measured in a region: at its anchor and at each check."""
    hutchinson_probes: int = 1
    """Random vectors for the Hessian's diagonal."""
    optimizer_copies: int = 1
    """Numbers that the optimizer keeps for each parameter: 1 for momentum, 2 for Adam."""
    covered: float = 1.0
    """Share of the parameters whose curvature is taken (--crest.curvature-of)."""
    unit_seconds: float = 1e-4
    """Seconds of one example passed forward on one device."""
    bandwidth: float = 1e11
    """Bytes a second between devices."""

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name in (
            "examples", "classes", "parameters", "input_bytes", "devices", "batch_size", "subset_size",
            "probe_size", "max_coresets", "exclude_window", "max_interval", "region", "coresets",
            "checks", "hutchinson_probes", "unit_seconds", "bandwidth", "features",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise UserError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)} but must be positive; pass "
                    "what your job has."
                )
        if self.checks < 1:
            raise UserError(
                f"--checks is {self.checks} but must be at least 1; a region's anchor counts."
            )
        for name in ("span", "covered"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"--{name} is {getattr(self, name)} but must lie in [0, 1]; it is a share."
                )


def scored(job: Job) -> float:
    """Return the rows that each device scores, for a step.

    Devices share out the rows of one subset. In a region the first is scored alone, for the curvature
    says how many more there are; of these each device takes one at a time, the last time some in vain.
    """
    share = job.subset_size / job.devices
    if not job.regions:
        return share
    more = job.coresets - 1
    turns = more if job.devices == 1 else math.ceil(more / job.devices)
    return (share + turns * job.subset_size) / job.region


@dataclasses.dataclass(frozen=True)
class Units:
    """Examples passed forward on each device in one step, a backward pass counted as two."""

    step: float
    selection: float
    curvature: float
    check: float

    @property
    def overhead(self) -> float:
        """CREST's work over that of the training step."""
        return (self.selection + self.curvature + self.check) / self.step


def units(job: Job) -> Units:
    """Return the work of a step on which coresets are selected, on each device.

    Of regions: a gradient counts three passes, and so does its tangent, which makes it a
    Hessian-vector product. A region begins with both, on the probe rows, and each check takes both.

    Example:
      >>> round(units(Job()).overhead, 2), units(Job(devices=8)).step
      (1.33, 48.0)
    """
    each = job.probe_size / job.devices / job.region if job.regions else 0.0
    return Units(
        step=3 * job.batch_size / job.devices,
        selection=scored(job),
        curvature=(3 * (1 + job.hutchinson_probes) + 6 * (job.checks - 1)) * each,
        check=job.checks * each,
    )


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device, beside activations."""

    inputs: int
    per_example: int
    training: int
    crest: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.inputs + self.per_example + self.training + self.crest


def memory(job: Job) -> Memory:
    """Return what each device holds.

    For each example CREST keeps its place in the order of its class and its place among the active ones
    (4 bytes each), its class (1, 2 or 4) and how long it stays out (1); labels on the device take 4
    more. Of the parameters it keeps, in regions, the anchor and the gradient.

    Example:
      >>> memory(Job(examples=1_000_000_000, stored="host")).per_example
      10000000000
    """
    shares = {"whole": 1, "shard": job.devices, "host": 0}[job.stored]
    rows = math.ceil(job.examples / shares) if shares else 0
    label = 1 if job.classes <= 256 else 2 if job.classes <= 65_536 else 4
    each = 2 * 4 + label + 1 + (0 if job.stored == "host" else 4)
    held = 8 * (job.max_coresets if job.regions else 1) * job.batch_size
    seen = job.exclude_window + (job.max_interval + job.max_coresets if job.regions else 1)
    held += FLOAT * min(seen * max(job.batch_size, job.subset_size), MOST_OBSERVATIONS)
    return Memory(
        inputs=rows * job.input_bytes,
        per_example=job.examples * each,
        training=job.parameters * FLOAT * (1 + job.optimizer_copies),
        crest=(2 * job.parameters * FLOAT if job.regions else 0) + held,
    )


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a job costs."""

    step_seconds: float  # of a step on random batches, with the reduction of the gradients
    overhead: float  # CREST's time over that of the steps, in the mean over the training
    speedup: float  # over full training, at a tenth of the steps
    read: float  # bytes of inputs read a second while coresets are selected
    memory: Memory


def predict(job: Job, budget: float = 0.1) -> Prediction:
    """Return what the model says of a job.

    The gradients are reduced over the devices in a ring: ``2 (D - 1) / D`` of their bytes pass each
    device, in the training step, when a region begins, and for each Hessian-vector product. Where they
    share out the rows of one subset, each gets the embeddings of the others. Picks and losses are too
    few to count.

    Example:
      >>> round(predict(Job()).speedup, 1)
      6.0
    """
    work = units(job)
    ring = 2 * (job.devices - 1) / job.devices * job.parameters * FLOAT / job.bandwidth
    step = work.step * job.unit_seconds + ring
    gathered = (1 - 1 / job.devices) * job.subset_size * (job.classes + job.features) * FLOAT
    extra = (work.selection + work.curvature + work.check) * job.unit_seconds
    extra += gathered / job.bandwidth / (job.region if job.regions else 1)
    rows = job.batch_size + scored(job) * job.devices
    if job.regions:
        products = job.hutchinson_probes + job.checks - 1
        extra += (1 + products * job.covered) * ring / job.region
        rows += (job.batch_size + job.checks * job.probe_size) / job.region
    return Prediction(
        step_seconds=step,
        overhead=job.span * extra / step,
        speedup=1 / (budget * (1 + job.span * extra / step)),
        read=rows * job.input_bytes / (step + extra),
        memory=memory(job),
    )


# Forward passes: ResNet-50 at 224 x 224 8.2 GFLOP, ViT-B/32 8.8, BERT-base with 128 tokens 22. A device
# that reaches 150 TFLOP/s on them, as half of the peak of one A100 in bfloat16.
RATE = 150e12
JOBS = {
    "ImageNet-21k, ResNet-50": Job(
        examples=14_197_122, classes=21_841, features=2048, parameters=68_000_000, input_bytes=110_000,
        stored="host", devices=8, batch_size=1024, subset_size=2048, unit_seconds=8.2e9 / RATE,
    ),
    "LAION-400M, ViT-B/32": Job(
        examples=407_332_084, classes=1, features=768, parameters=88_000_000, input_bytes=30_000,
        stored="host", devices=64, batch_size=8192, subset_size=32_768, unit_seconds=8.8e9 / RATE,
    ),
    "10^9 texts, BERT-base": Job(
        examples=1_000_000_000, classes=2, features=768, parameters=110_000_000, input_bytes=1024,
        stored="host", devices=64, batch_size=1024, subset_size=4096, optimizer_copies=2,
        unit_seconds=22e9 / RATE,
    ),
}  # fmt: skip
HEADER = [
    "job", "devices", "ms a step", "work beside the step", "over full training", "inputs read, MB/s",
    "per example, GB", "parameters, GB",
]  # fmt: skip


def as_table(jobs: dict[str, Job]) -> str:
    """Return the predictions as a table."""
    rows = []
    for name, job in jobs.items():
        said = predict(job)
        copies = (said.memory.training + said.memory.crest) / GB
        rows.append(
            [
                name, str(job.devices), f"{1e3 * said.step_seconds:.1f}",
                f"{100 * said.overhead:.0f} %", f"{said.speedup:.1f} times faster",
                f"{said.read / 1e6:,.0f}", f"{said.memory.per_example / GB:.2f}", f"{copies:.2f}",
            ]
        )  # fmt: skip
    return table(HEADER, rows)


def main() -> None:
    """Read the command line and print what the model says, of this job and of three large ones."""
    with one_sentence("interrupted."):
        job = tyro.cli(Job, description=__doc__)
        print(as_table({"this job": job, **JOBS}))


if __name__ == "__main__":
    main()
