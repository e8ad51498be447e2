"""The house: imports point one way between folders, names mean one thing, and fields are documented."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from flax import linen as nn

import crest_jax

LIBRARY = Path(crest_jax.__file__).parent
ROOT = LIBRARY.parent
# Each folder or file may import those of the floors below it, and its own.
FLOORS = [
    {"_checks", "types"},
    {"data"},
    {"gradients", "coresets"},
    {"algorithm", "baselines"},
    {"loop"},
    {"diagnostics"},
    {"flax", "sklearn"},
]
FILES = sorted(path for path in LIBRARY.rglob("*.py"))


def room_of(path):
    """The folder or file on the library's top level that a file belongs to."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports_of(tree):
    """Every module that a file imports, anywhere in it, as absolute dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def rooms_used(path):
    """The rooms of the library that a file imports."""
    names = [name.split(".") for name in imports_of(tree_of(path))]
    return {parts[1] for parts in names if parts[0] == "crest_jax" and len(parts) > 1}


def test_the_import_reader_sees_every_form():
    text = (
        "import crest_jax.data\nfrom crest_jax import _checks\nfrom crest_jax.loop import fit\n"
        "def f():\n    from crest_jax.algorithm import crest\n    import flax.linen as nn\n"
    )
    assert set(imports_of(ast.parse(text))) == {
        "crest_jax.data", "crest_jax._checks", "crest_jax.loop.fit", "crest_jax.algorithm.crest",
        "flax.linen",
    }  # fmt: skip


def test_the_library_has_few_rooms_and_each_its_floor():
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert rooms == set().union(*FLOORS)
    assert len(rooms) < 12


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_imports_point_down(path):
    room = room_of(path)
    if room == "__init__":
        return
    floor = next(number for number, rooms in enumerate(FLOORS) if room in rooms)
    allowed = {room}.union(*FLOORS[:floor])
    allowed |= FLOORS[0]
    assert rooms_used(path) <= allowed


def test_files_of_a_folder_import_without_a_circle():
    for folder in sorted({path.parent for path in FILES} - {LIBRARY}):
        known = {path.stem: path for path in folder.glob("*.py") if path.stem != "__init__"}
        name = f"crest_jax.{folder.name}"
        used = {
            stem: {
                part
                for found in imports_of(tree_of(path))
                for part in [found.removeprefix(f"{name}.").split(".")[0]]
                if found.startswith(f"{name}.") and part in known and part != stem
            }
            for stem, path in known.items()
        }
        while used:
            free = [stem for stem, others in used.items() if not others & used.keys()]
            assert free, f"a circle among {sorted(used)}"
            for stem in free:
                del used[stem]


def test_the_core_imports_neither_flax_nor_scikit_learn():
    code = (
        "import sys, crest_jax, crest_jax.diagnostics; "
        "sys.exit(bool({'flax', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_no_file_prints_or_imports_what_it_may_not(path):
    tree = tree_of(path)
    roots = {name.split(".")[0] for name in imports_of(tree)}
    for library in ("flax", "sklearn"):
        assert library not in roots or room_of(path) == library
    assert not roots & {"experiments", "tests", "tensorflow", "torch", "matplotlib"}
    assert "time" not in roots or room_of(path) == "diagnostics", "only the pilot measures seconds"
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]


def modules():
    found = [crest_jax]
    for module in pkgutil.walk_packages(crest_jax.__path__, "crest_jax."):
        found.append(importlib.import_module(module.name))
    return found


def test_no_module_shares_its_name_with_what_its_package_exports():
    for module in modules():
        if hasattr(module, "__path__"):
            inside = {found.name for found in pkgutil.iter_modules(module.__path__)}
            assert not inside & set(getattr(module, "__all__", ())), module.__name__


def test_everything_exported_is_there_and_the_top_is_short():
    for module in modules():
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{module.__name__}.{name}"
    assert len(crest_jax.__all__) <= 32


def records():
    """Every public named tuple and dataclass of the library."""
    for module in modules():
        for name, kind in vars(module).items():
            public = inspect.isclass(kind) and kind.__module__ == module.__name__ and name[0] != "_"
            if (
                public
                and not issubclass(kind, nn.Module)
                and (hasattr(kind, "_fields") or dataclasses.is_dataclass(kind))
            ):
                yield kind


@pytest.mark.parametrize("kind", list(records()), ids=lambda kind: kind.__name__)
def test_help_says_what_every_field_is(kind):
    fields = getattr(kind, "_fields", None) or [field.name for field in dataclasses.fields(kind)]
    assert not [name for name in fields if f"  {name}: " not in kind.__doc__]


def longest(path):
    """The lines of a file, and of its longest function without its docstring."""
    text, most = path.read_text(encoding="utf-8"), 0
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            most = max(most, node.end_lineno - body[0].lineno + 1)
    return len(text.splitlines()), most


@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in ("crest_jax", "experiments", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_and_functions_are_short(path):
    lines, function = longest(path)
    assert lines <= 400
    assert function <= 60


def test_algorithm_1_is_one_short_file_and_examples_are_shorter():
    assert longest(LIBRARY / "algorithm" / "crest.py")[0] < 250
    for path in (ROOT / "examples").glob("*.py"):
        assert longest(path)[0] < 80
    rooms = {
        path.relative_to(ROOT / "experiments").parts[0] for path in (ROOT / "experiments").rglob("*.py")
    }
    assert len(rooms) <= 16


PRODUCTS = {"dot", "vdot", "matmul", "einsum", "tensordot", "inner", "dot_general", "conv"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_product_runs_at_reduced_precision(path):
    """An accelerator's default rounds factors to 10 or 8 bits, which would decide what is picked."""
    for node in ast.walk(tree_of(path)):
        assert not isinstance(getattr(node, "op", None), ast.MatMult), (
            f"line {node.lineno}: use jnp.dot"
        )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if node.func.attr in PRODUCTS and owner in ("jnp", "jax.numpy", "lax", "jax.lax"):
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("precision") == "'highest'", f"line {node.lineno}"


def test_slow_tests_are_there():
    """A line of ``slow.txt`` that names nothing would leave a slow test in the default suite."""
    lines = (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
    for line in filter(lambda line: not line.startswith("#"), lines):
        file, _, test = line.partition("::")
        name = test.partition("[")[0].rpartition(".")[2]
        assert name in (ROOT / file).read_text(encoding="utf-8"), line
