"""Compile programs for an H100 or a TPU v5e on a machine that has neither, and count what they do.

XLA compiles for a device that is described to it. Needed are the compilers of the devices, the packages
of the extra "accelerator"; no device, and no driver. A kernel costs some 4 to 5 microseconds on an H100
however little it does, and a loop of unknown length makes its host wait at every turn.
"""

import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

KINDS = ("h100", "v5e")
PACKAGES = ("jax_plugins.xla_cuda12", "nvidia.cuda_nvcc", "libtpu")
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_KERNELS = (
    "fusion", "custom-call", "copy", "sort", "scatter", "reduce", "dot", "convolution", "cholesky",
    "rng-bit-generator", "dynamic-update-slice", "all-reduce",
)  # fmt: skip
_HEADS = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")


class Count(NamedTuple):
    """What one call of a compiled program does.

    Attributes:
      kernels: launched on the device, those of loops of known length at every turn.
      waits: loops of unknown length and conditions, at which a GPU's host waits for the device.
      per_turn: kernels in a turn of each loop of unknown length.
      temporary_bytes: memory above arguments and results.
      compile_seconds: on this machine.
    """

    kernels: int
    waits: int
    per_turn: tuple[int, ...]
    temporary_bytes: int
    compile_seconds: float


def missing_packages() -> list[str]:
    """Return the packages without which nothing can be compiled for another device.

    >>> set(missing_packages()) <= set(PACKAGES)
    True
    """
    return [name for name in PACKAGES if _place_of(name) is None]


def _place_of(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    return Path(places[0]) if places else None


def use_compilers() -> None:
    """Tell XLA where the compilers lie; before anything runs in JAX, which stays on the CPU."""
    nvcc, libtpu = _place_of("nvidia.cuda_nvcc"), _place_of("libtpu")
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = (
        f"{flags} --xla_gpu_cuda_data_dir={nvcc} --xla_gpu_autotune_level=0".strip()
    )
    os.environ["PATH"] = f"{nvcc}/bin{os.pathsep}{os.environ['PATH']}"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["TPU_LIBRARY_PATH"] = f"{libtpu}/libtpu.so"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    jax.config.update("jax_platforms", "cpu")


def _sharding(kind: str) -> jax.sharding.Sharding:
    from jax.experimental import topologies

    if kind == "h100":
        settings = {"topology": "1x1x1", "target_config": _H100}
        found = topologies.get_topology_desc(platform="cuda", topology_name="h100", **settings)
    else:
        found = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return jax.sharding.SingleDeviceSharding(found.devices[0])


def compile_for(kind: str, function: Any, *arguments: Any, **static: Any) -> tuple[Any, float]:
    """Compile a jitted function for arguments of these shapes; return it and the seconds that took.

    Args:
      kind: "h100" or "v5e".
      function: from ``jax.jit``.
      *arguments: arrays, or ``jax.ShapeDtypeStruct``.
      **static: static arguments.
    """
    sharding = _sharding(kind)

    def shape(x: Any) -> Any:
        if not (hasattr(x, "shape") and hasattr(x, "dtype")):
            return x
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    began = time.perf_counter()
    compiled = function.lower(*jax.tree.map(shape, arguments), **static).compile()
    return compiled, time.perf_counter() - began


def count(kind: str, function: Any, *arguments: Any, **static: Any) -> Count:
    """Compile a jitted function and count what a call does; arguments as of ``compile_for``."""
    compiled, seconds = compile_for(kind, function, *arguments, **static)
    kernels, waits, per_turn = counted(compiled.as_text())
    memory = compiled.memory_analysis().temp_size_in_bytes
    return Count(kernels, waits, per_turn, int(memory), round(seconds, 1))


def counted(text: str) -> tuple[int, int, tuple[int, ...]]:
    """Return kernels, waits and the kernels in a turn of each loop of unknown length, of XLA's text.

    >>> counted("ENTRY %main (x: f32[]) -> f32[] {\\n  %a = f32[] fusion(%x), kind=kLoop\\n}")
    (1, 0, ())
    """
    parts: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        head = _HEADS.match(line)
        if head:
            name = head[2]
            parts[name] = []
            entry = name if head[1] else entry
        elif line.startswith("}"):
            name = ""
        elif name and " = " in line:
            parts[name].append(line.strip())
    return _walked(parts, entry)


def _walked(parts: dict[str, list[str]], name: str) -> tuple[int, int, tuple[int, ...]]:
    kernels, waits, unknown = 0, 0, []
    for line in parts[name]:
        found = re.search(r" ([a-z\-]+)\(", line.split(" = ", 1)[1])
        kind = found[1] if found else ""
        inside = [_walked(parts, called) for called in _called(kind, line)]
        if kind == "while":
            known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            turns = int(known[1]) if known else 1
            if known:
                kernels += turns * inside[0][0]
            else:
                waits += 1
                unknown.append(sum(each[0] for each in inside))
            waits += turns * inside[0][1]
        elif kind == "conditional":
            waits += 1 + max(each[1] for each in inside)
            kernels += max(each[0] for each in inside)
        else:
            kernels += sum(each[0] for each in inside) + (kind in _KERNELS)
            waits += sum(each[1] for each in inside)
        unknown += [turn for each in inside for turn in each[2]]
    return kernels, waits, tuple(unknown)


def _called(kind: str, line: str) -> Iterator[str]:
    patterns: dict[str, Callable[[], list[str]]] = {
        "while": lambda: (
            re.findall(r"body=%?([\w.\-]+)", line) + re.findall(r"condition=%?([\w.\-]+)", line)
        ),
        "call": lambda: re.findall(r"to_apply=%?([\w.\-]+)", line),
        "conditional": lambda: (
            re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
            or re.findall(r"branch_computations=\{([^}]*)\}", line)[0].replace("%", "").split(", ")
        ),
    }
    yield from patterns.get(kind, list)()
