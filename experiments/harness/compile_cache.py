"""Compiled programs kept from run to run, in the user's cache folder."""

import functools
import hashlib
import os
import platform
import warnings
from pathlib import Path

import jax

from experiments.data.dataset import cache_dir

SHORTEST = 0.2  # seconds of compilation below which a program is not worth a file


def processor() -> str:
    """Return a name for the kind of processor: programs for one may not run on another.

    >>> len(processor())
    12
    """
    described = platform.machine() + platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        described += "".join(
            sorted({line for line in lines if line.startswith(("flags", "model name"))})
        )
    except OSError:
        pass
    return hashlib.sha256(described.encode()).hexdigest()[:12]


@functools.cache
def keep_compiled() -> None:
    """Let JAX keep compiled programs, and find those that it kept before.

    A folder that cannot be written costs a warning, and so does a damaged file in it: the run compiles
    as if there were none. Where ``JAX_COMPILATION_CACHE_DIR`` names a folder, that is taken.
    """
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = cache_dir() / "compiled" / processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".probe").touch()
    except OSError as error:
        warnings.warn(
            f"compiled programs cannot be kept in {folder} ({error.strerror}); each run compiles anew.",
            stacklevel=2,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
