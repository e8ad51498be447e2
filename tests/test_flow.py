"""Imports point one way, and the library neither prints nor knows its experiments."""

import ast
from pathlib import Path

import pytest

import crest_jax

ORDER = [
    "types", "_checks", "devices", "compiling", "classes", "losses", "data", "host", "streams",
    "embeddings", "facility_location", "metrics", "inputs", "oracles", "lazy_greedy", "class_greedy",
    "planning", "quotas", "grouped_greedy", "dense_greedy", "medoids", "partitioned", "selection",
    "stream", "sharded", "curvature",
    "region", "exclusion", "sampling", "config", "kernels", "state", "crest", "matching", "subset",
    "rivals", "loop", "pilot", "report", "adapters",
]  # fmt: skip
FOLDER = Path(crest_jax.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def tree_of(module):
    return ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"))


def imports_of(tree):
    """Every module that a file imports, anywhere in it, as absolute dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            base = f"crest_jax.{module}".rstrip(".") if node.level else module
            if base == "crest_jax":
                yield from (f"crest_jax.{alias.name}" for alias in node.names)
            else:
                yield base


def own_imports(module):
    return {name.split(".")[1] for name in imports_of(tree_of(module)) if name.startswith("crest_jax.")}


def test_the_import_reader_sees_every_form():
    text = (
        "import crest_jax.data\nfrom crest_jax import _checks\nfrom .loop import fit\n"
        "from . import report\ndef f():\n    from crest_jax.crest import crest\n"
        "    import flax.linen as nn\n"
    )
    assert set(imports_of(ast.parse(text))) == {
        "crest_jax.data", "crest_jax._checks", "crest_jax.loop", "crest_jax.report",
        "crest_jax.crest", "flax.linen",
    }  # fmt: skip


def test_every_module_has_its_place_in_the_order():
    assert set(MODULES) == set(ORDER)
    assert not [path for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_only_to_earlier_modules(module):
    allowed = {"types", "_checks"} if module == "adapters" else set(ORDER[: ORDER.index(module)])
    assert own_imports(module) <= allowed


def test_the_order_is_really_used():
    assert {"streams", "kernels", "region", "state"} <= own_imports("crest")
    assert {"embeddings", "exclusion", "medoids"} <= own_imports("kernels")


@pytest.mark.parametrize("module", ["__init__", *ORDER])
def test_only_the_adapters_import_flax_and_nobody_imports_the_experiments(module):
    roots = {name.split(".")[0] for name in imports_of(tree_of(module))}
    assert ("flax" in roots) == (module == "adapters")
    assert not roots & {"experiments", "tests", "tensorflow", "torch", "matplotlib"}
    assert ("time" in roots) == (module == "pilot"), "only the pilot measures seconds"


@pytest.mark.parametrize("module", ["__init__", *ORDER])
def test_the_library_never_prints(module):
    calls = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call)]
    assert not [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
