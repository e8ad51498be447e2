"""Where arrays lie when several devices work together: split over a mesh, or whole on each of them."""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")


def automatic(mesh: Mesh) -> Mesh:
    """Return the mesh with axes that the compiler shards over by itself.

    ``jax.make_mesh`` gives explicit axes, where every model would have to state its shardings.

    Example:
      >>> automatic(jax.make_mesh((1,), ("data",))).axis_types[0].name
      'Auto'
    """
    return Mesh(mesh.devices, mesh.axis_names)


def num_devices(mesh: Mesh | None) -> int:
    """Return the devices of a mesh; without one, 1.

    Example:
      >>> num_devices(None)
      1
    """
    return 1 if mesh is None else math.prod(mesh.devices.shape)


def whole(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays that every device holds whole."""
    return NamedSharding(automatic(mesh), PartitionSpec())


def split(mesh: Mesh, rows: int) -> NamedSharding:
    """Return the sharding of arrays of so many rows, split over all devices.

    Where that is uneven, every device holds them whole.

    Example:
      >>> split(jax.make_mesh((1,), ("data",)), 4).spec == PartitionSpec(("data",))
      True
    """
    return _over_all(mesh) if rows % num_devices(mesh) == 0 else whole(mesh)


def _over_all(mesh: Mesh) -> NamedSharding:
    return NamedSharding(automatic(mesh), PartitionSpec(mesh.axis_names))


def place(tree: T, mesh: Mesh | None) -> T:
    """Put the arrays of a tree whole on every device of a mesh; leave them alone without one.

    With several processes each must pass the same values. What is no array stays as it is.

    Example:
      >>> import jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> place((jnp.ones(2), 3), mesh)[0].sharding.is_fully_replicated
      True
    """
    return tree if mesh is None else jax.tree.map(lambda x: _placed(x, whole(mesh)), tree)


def _placed(x: Any, sharding: NamedSharding) -> Any:
    if not isinstance(x, jax.Array) or x.sharding == sharding:
        return x
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _placed(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    host = to_host(x)  # device_put would send all of it around to compare it
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def on_accelerator(tree: Any) -> bool:
    """Return whether the first array of a tree lies on another device than a CPU.

    Example:
      >>> on_accelerator(np.ones(2))
      False
    """
    device = _device_of(tree)
    return device is not None and device.platform != "cpu"


def share_of_memory(tree: Any) -> int | None:
    """Return a quarter of the memory, in bytes, of the accelerator of the first array; None on a CPU.

    One that does not tell its memory counts as of 8 GiB.

    Example:
      >>> share_of_memory(np.ones(2)) is None
      True
    """
    return _share_of(_device_of(tree))


def share_of_default_memory() -> int | None:
    """Return the same of the device where new arrays go, without making one.

    Example:
      >>> share_of_default_memory() is None
      True
    """
    own = jax.config.jax_default_device  # type: ignore[attr-defined]
    return _share_of(own if isinstance(own, jax.Device) else jax.local_devices(backend=own)[0])


def _share_of(device: jax.Device | None) -> int | None:
    if device is None or device.platform == "cpu":
        return None
    return (device.memory_stats() or {}).get("bytes_limit", 2**33) // 4


def _device_of(tree: Any) -> jax.Device | None:
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return next(iter(arrays[0].devices())) if arrays else None


@jax.jit
def copied(tree: Any) -> Any:
    """Copy arrays, so that a train step that donates its buffers cannot delete the anchor.

    Example:
      >>> copied(jnp.ones(2)).tolist()
      [1.0, 1.0]
    """
    return jax.tree.map(jnp.copy, tree)


def read_numbers(*arrays: jax.Array) -> tuple[Any, ...]:
    """Return the values of arrays [], for which the host waits once.

    Example:
      >>> read_numbers(jax.numpy.float32(0.5), jax.numpy.array(True))
      (0.5, True)
    """
    return tuple(x.item() for x in jax.device_get(arrays))


def to_host(x: jax.Array) -> np.ndarray:
    """Return an array's values, also where they are split over several processes.

    Example:
      >>> to_host(jax.numpy.ones(2)).tolist()
      [1.0, 1.0]
    """
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def in_all_processes(work: Callable[[], T], name: str) -> T:
    """Do work that may fail, and fail in every process when it does in one.

    Else the others would wait for that one for ever.

    Args:
      work: what to do.
      name: what is bad when it fails, for the sentence of the others.

    Raises:
      ValueError: where another process failed; the error of ``work`` where it did.

    Example:
      >>> in_all_processes(lambda: 3, "numbers")
      3
    """
    found, trouble = None, None
    try:
        found = work()
    except Exception as error:  # raised again below
        trouble = error
    bad = np.concatenate(gather(np.array([trouble is not None])))
    if trouble is not None:
        raise trouble
    if bad.any():
        raise ValueError(
            f"process {int(bad.argmax())} refuses its {name} but all must go on together; see what it "
            "says, mend that and start all again."
        )
    return cast(T, found)


def gather(values: np.ndarray) -> list[np.ndarray]:
    """Return each process's values [k, ...], whose number may differ, in the order of the processes.

    They are sent as bytes, so that no 64-bit number is rounded.

    Example:
      >>> gather(np.arange(3.0))[0].tolist()
      [0.0, 1.0, 2.0]
    """
    if jax.process_count() == 1:
        return [values]
    own = np.ascontiguousarray(values).view(np.uint8).ravel()
    sizes = multihost_utils.process_allgather(np.array(own.size, np.int32)).ravel()
    filled = np.pad(own, (0, int(sizes.max()) - own.size))
    found = multihost_utils.process_allgather(filled).reshape(len(sizes), -1)
    parts = [np.asarray(row[:size]).view(values.dtype) for row, size in zip(found, sizes, strict=True)]
    return [part.reshape(-1, *values.shape[1:]) for part in parts]


def spread(rows: np.ndarray, mesh: Mesh, unit: int = 1) -> jax.Array:
    """Spread rows [k, ...] over the devices; zeros fill each process's share up to equal parts.

    With several processes each passes its own share, equally many rows in each; they stand in the
    order of the processes, each share followed by what fills it.

    Args:
      rows: [k, ...].
      mesh: the devices, those of each process together, in the order of the processes.
      unit: rows on each device are a multiple of it.

    Raises:
      ValueError: when the mesh leaves a process out, has more devices of one than of another, or mixes
        their order, for then rows would not stand where they are looked for.

    Example:
      >>> spread(np.ones((3, 2)), jax.make_mesh((1,), ("data",)), unit=4).shape
      (4, 2)
    """
    processes = jax.process_count()
    owners = [device.process_index for device in mesh.devices.flat]
    each = len(owners) // processes
    if owners != [process for process in range(processes) for _ in range(each)]:
        raise ValueError(
            f"the mesh's devices belong to processes {owners} but to spread rows it must hold equally "
            "many of each, in the order of the processes; make it of jax.devices() as they come."
        )
    missing = -len(rows) % (each * unit)
    filled = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])
    shape = (processes * len(filled), *rows.shape[1:])
    return jax.make_array_from_process_local_data(_over_all(mesh), filled, shape)
