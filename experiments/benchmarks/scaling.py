"""What a training costs on 1, 2, 4 and 8 virtual devices and in two processes, beside the cost model.

    python -m experiments.benchmarks.scaling --out runs/devices

Each case is a process of its own, or two: the same training with coresets throughout, its phases timed,
what lies on the first device counted, its picks and parameters compared with those of one device. On a
CPU virtual devices share the cores, so that more of them show that the program is right and what
sharing out costs, not how fast it would be; the cases on one core a device show that. Writes
``devices.jsonl`` and ``devices.md``.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import os
from contextlib import closing
from socket import socket
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from crest_jax import CrestConfig
from experiments.benchmarks.cost_model import FLOAT, Job, memory, units
from experiments.config import TrainConfig
from experiments.harness.build import Program, TrainState, make_program, shared
from experiments.harness.cli import UserError, one_sentence, parse
from experiments.harness.distributed import start
from experiments.harness.options import CrestOptions, MachineConfig
from experiments.harness.records import append_line, table
from experiments.harness.run_folder import COMMIT, held_new_folder
from experiments.harness.timing import TRAINING
from experiments.sweep import made_by

RUN = TrainConfig(
    dataset="fashion_mnist_12k",
    model="resnet8",
    budget=1.0,
    crest=CrestOptions(select_span=(0.0, 1.0), pause_above=1.0),
    machine=MachineConfig(devices=0),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """Devices of each process, processes, and cores that each process may use."""

    devices: int = 1
    processes: int = 1
    cores: int | None = None

    @property
    def name(self) -> str:
        """In words."""
        devices = f"{self.devices} device{'s' * (self.devices > 1)}"
        where = f"2 processes of {devices}" if self.processes > 1 else devices
        return where if self.cores is None else f"{where}, one core each"


@dataclasses.dataclass(frozen=True)
class DevicesConfig:
    """What to run."""

    counts: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of virtual devices; the first is what the others are compared with."""
    steps: int = 96
    """Steps of each case."""
    warm: int = 32
    """Steps before the clock starts, in which everything compiles."""
    run: Annotated[TrainConfig, tyro.conf.arg(name="")] = RUN
    """Options of the training; --out is the folder of the results."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        unused = (
            "resume", "machine.cluster", "machine.coordinator", "machine.shard", "optim.name",
            "optim.momentum",
        )  # fmt: skip
        self.run.refuse(unused, "the cost model is checked without them")
        if self.run.machine.devices != RUN.machine.devices:
            raise UserError(
                f"--machine.devices is {self.run.machine.devices} but every number of --counts is run; "
                "leave it out."
            )
        for name in ("curvature_of", "smoothing"):
            value = getattr(self.run.crest.region, name)
            if value is not None:
                raise UserError(
                    f"--crest.region.{name.replace('_', '-')} is {value} but the cost model is checked "
                    "without "
                    "it; leave it out."
                )
        if not self.counts or min(self.counts) < 1:
            raise UserError(f"--counts is {self.counts} but each must be at least 1; 1 2 4 8 is usual.")
        if not 0 < self.warm < self.steps:
            raise UserError(
                f"--warm is {self.warm} but must lie in [1, --steps {self.steps}); 32 of 96 are usual."
            )


def cases(config: DevicesConfig) -> list[Case]:
    """Return what is compared."""
    virtual = [Case(number) for number in config.counts]
    two = [Case(4, 2)]
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        two += [Case(1, 1, cores=1), Case(1, 2, cores=1)]
    return virtual + two


def on_first_device() -> int:
    """Return the bytes of all arrays on this process's first device."""
    first = jax.local_devices()[0]
    total = 0
    seen = set()
    for array in jax.live_arrays():
        for part in array.addressable_shards:
            where = part.data.unsafe_buffer_pointer() if part.device == first else None
            if where is not None and where not in seen:
                seen.add(where)
                total += part.data.nbytes
    return total


def run_case(
    case: Case, process: int, address: str, config: DevicesConfig
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train in this process; return what was measured, and what was chosen and learned."""
    if case.cores is not None:
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[process % len(allowed)]})
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", case.devices)
    run = config.run
    if case.processes > 1:
        joined = dataclasses.replace(
            run.machine, coordinator=address, processes=case.processes, process=process
        )
        run = dataclasses.replace(run, machine=joined)
        start(run)
    program = make_program(shared(run))
    found = train(program, config)
    held, (state, _) = on_first_device(), found.pop("state")
    line = {
        "case": case.name,
        "devices": case.devices * case.processes,
        **found.pop("line"),
        "bytes_measured": held,
        "bytes_predicted": predicted_bytes(program, run, case.devices * case.processes, state),
        "commit": COMMIT,
        "device": jax.devices()[0].device_kind,
    }
    if case.processes > 1:
        jax.distributed.shutdown()  # together; a process that goes first would end the other
    return line, found


def train(program: Program, config: DevicesConfig) -> dict[str, Any]:
    """Train, and time what comes after the warm-up."""
    timer = program.timer
    timer.restart({})
    init_key, selection_key = jax.random.split(jax.random.key(config.run.seed))
    state = program.init(init_key)
    selected = program.selection.init(selection_key, state.params, state.model_state)
    rows, before, compiling = [], selected, 0.0
    for step in range(config.steps):
        if step == config.warm:
            compiling = timer.totals()["compile"]
            timer.restart({})
            before = selected
        selected, _ = program.selection.refresh(selected, state.params, state.model_state)
        selected, batch = timer("step", program.selection.next_batch, selected)
        state, _ = timer("step", program.train_step, state, batch)
        rows.append(np.asarray(batch.indices))
    seconds = timer.totals()
    params = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state.params)])
    return {
        "line": {
            "steps": config.steps - config.warm,
            "num_regions": selected.num_regions - before.num_regions,
            "coresets": selected.num_selected - before.num_selected,
            "check_rows": selected.work.check_forward - before.work.check_forward,
            "seconds": {name: seconds[name] for name in (*TRAINING, "other")},
            "compile_seconds": compiling,
            "compile_seconds_later": seconds["compile"],
            "parameters": int(params.size),
        },
        "rows": np.array(rows),
        "params": params,
        "state": (state, selected),  # alive while the bytes are counted
    }


def job_of(crest: CrestConfig, **fields: Any) -> Job:
    """Return the job whose cost is predicted."""
    region = crest.region
    if region is not None:
        held = {name: getattr(region, name) for name in ("probe_size", "max_coresets", "max_interval")}
        fields = {**held, **fields, "regions": True}
    return Job(
        batch_size=crest.batch_size,
        subset_size=crest.subset_size,
        exclude_window=crest.exclusion.window if crest.exclusion else 0,
        **fields,
    )


def predicted_bytes(program: Program, run: TrainConfig, devices: int, state: TrainState) -> int:
    """Return what the cost model says lies on a device, with the rows that evaluations take."""
    inputs = program.train.take(jnp.arange(1)).inputs
    parameters, statistics = (
        sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.params, state.model_state)
    )
    job = job_of(
        run.crest_config(program.steps, len(program.train)),
        examples=len(program.train),
        classes=len(program.class_names),
        parameters=parameters,
        input_bytes=inputs.nbytes,
        devices=devices,
    )
    held_out = len(program.held_out) * (inputs.nbytes + FLOAT)
    return memory(job).total + 2 * statistics * FLOAT + held_out


def measure(case: Case, config: DevicesConfig) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Run a case in processes of its own; return what process 0 says."""
    with closing(socket()) as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(case.processes, context) as pool:
        jobs = [
            pool.submit(run_case, case, process, address, config) for process in range(case.processes)
        ]
        done, _ = concurrent.futures.wait(jobs, return_when=concurrent.futures.FIRST_EXCEPTION)
        failed = [job for job in done if job.exception() is not None]
        if failed:  # the others would wait for it
            for child in multiprocessing.active_children():
                child.terminate()
        return (failed or jobs)[0].result()


def compared(line: dict[str, Any], found: Any, base: Any) -> dict[str, Any]:
    """Add how far picks and parameters are from those of the first case."""
    same = (found["rows"] == base["rows"]).all(axis=1)
    shared_rows = [
        len(np.intersect1d(one, other)) / len(one)
        for one, other in zip(found["rows"], base["rows"], strict=True)
    ]
    gap = np.linalg.norm(found["params"] - base["params"]) / np.linalg.norm(base["params"])
    return line | {
        "steps_alike": int(same.argmin()) if not same.all() else len(same),
        "rows_shared": float(np.mean(shared_rows)),
        "params_gap": float(gap),
    }


def work_ratios(line: dict[str, Any], run: TrainConfig) -> dict[str, tuple[float, float]]:
    """Return, for each part of CREST, its time over that of the steps: predicted, and measured."""
    crest = run.crest_config(line["steps"], 10_000)
    names, of_region = ["selection"], {}
    if crest.region is not None:
        names += ["curvature", "check"]
        regions = max(1, line["num_regions"])
        of_region = {
            "region": line["steps"] / regions,
            "coresets": line["coresets"] / regions,
            "checks": line["check_rows"] / crest.region.probe_size / regions,
        }
    said = units(job_of(crest, devices=line["devices"], **of_region))
    predicted = {name: getattr(said, name) / said.step for name in names}
    seconds = line["seconds"]
    return {name: (predicted[name], seconds[name] / seconds["step"]) for name in predicted}


def as_table(lines: list[dict[str, Any]], run: TrainConfig) -> str:
    """Return the table of what was measured beside what the model says."""
    rows = []
    names: tuple[str, ...] = ()
    for line in lines:
        ratios = work_ratios(line, run)
        names = tuple(ratios)
        seconds = line["seconds"]
        rows.append(
            [
                line["case"],
                f"{1e3 * seconds['step'] / line['steps']:.1f}",
                *(f"{said:.2f} / {found:.2f}" for said, found in ratios.values()),
                f"{line['bytes_predicted'] / 2**20:.2f} / {line['bytes_measured'] / 2**20:.2f}",
                str(line["steps_alike"]),
                f"{100 * line['rows_shared']:.0f} %",
                f"{line['params_gap']:.1e}",
                f"{line['compile_seconds']:.0f}",
            ]
        )
    header = [
        "case", "ms a step", *names, "MiB on a device", "steps alike",
        "rows shared", "parameters differ by", "compilation, s",
    ]  # fmt: skip
    return table(header, rows)


EXPLANATION = """
Selection, and with regions curvature and check: time over that of the training steps, predicted by
the cost model / measured. MiB: all arrays on the first device, predicted / measured. "steps alike":
before the first step whose mini-batch is another than on one device, in float32; "rows shared": the
share of a mini-batch that is also in that of one device, in the mean over all steps; "parameters differ
by": norm of the difference over their norm, after the last step.
"""


def main() -> None:
    """Read the command line, measure, and write the files."""
    with one_sentence("interrupted; start again with another --out."):
        config = parse(DevicesConfig, default=DevicesConfig(), description=__doc__)
        out = config.run.out
        with held_new_folder(out):
            lines: list[dict[str, Any]] = []
            base = None
            for case in tqdm(cases(config), desc="cases", unit="case"):
                line, found = measure(case, config)
                base = found if base is None else base
                lines.append(compared(line, found, base))
                append_line(out / "devices.jsonl", lines[-1])
            made = made_by(__file__, None, lines, 1)
            text = f"{made}\n\n{as_table(lines, config.run)}\n{EXPLANATION}"
            (out / "devices.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
