"""The packages import each other in one direction only, and need nothing optional to be imported."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("llava", "visionzip_patch")

# From top to bottom, a folder each: a module imports from its own line or from lines below it, and files of one line
# import each other without a circle. The longest name that fits counts; what fits none of the others is at the top.
LAYERS = (
    "llava",
    "llava.train",
    "llava.analysis",
    "llava.serve",
    "llava.perf",
    "llava.eval",
    "llava.visualize",
    "llava.encode",
    "llava.inference",
    "llava.data",
    "llava.conversation",
    "llava.mm_utils",
    "llava.model",
    "llava.utils",
    "llava.constants",
    "visionzip_patch",
)
PLUGINS = {"llava.eval.lmms_model"}  # imported by the program that they extend
FACADES = {"llava", "llava.model"}  # hand out names of upper layers when asked for them

OPTIONAL = (
    *("peft", "bitsandbytes", "flash_attn", "matplotlib", "deepspeed", "datasets", "gradio", "tensorboard", "av"),
    "openpyxl",
)


class Import(NamedTuple):
    importer: str
    imported: str
    line: int


def find_modules(root: Path) -> dict[str, Path]:
    """Every module of the packages under `root`, by name."""
    found = {}
    for path in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def find_imports(root: Path) -> Iterator[Import]:
    """Every import statement and `import_module("...")` in the packages, also inside functions."""
    modules = find_modules(root)
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target in imported_names(node, package, modules.keys()):
                yield Import(name, target, node.lineno)


def imported_names(node: ast.AST, package: str, modules: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, base] if base else parents)
        members = [f"{base}.{alias.name}" for alias in node.names]
        return [member if member in modules else base for member in members]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return []


def is_within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def layer(module: str) -> int | None:
    matches = [(len(name), i) for i, name in enumerate(LAYERS) if is_within(module, name)]
    return max(matches)[1] if matches else None


def violations(imports: Iterable[Import]) -> list[str]:
    """Imports that run up."""
    found = []
    for importer, imported, line in imports:
        above, below = layer(importer), layer(imported)
        if importer not in FACADES and below is not None and below < above:
            found.append(f"{importer}:{line} imports {imported}")
    return found


def circle(imports: Iterable[Import]) -> list[str]:
    """Modules that import each other in a circle, in order; empty if there is none."""
    graph = defaultdict(set)
    for importer, imported, _ in imports:
        if importer not in FACADES and importer != imported:
            graph[importer].add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.fixture(scope="module")
def real() -> list[Import]:
    return list(find_imports(ROOT))


def test_imports_run_one_way(real):
    edges = {(importer, imported) for importer, imported, _ in real}
    assert ("llava.model.multimodal", "llava.model.splice") in edges  # the walk sees the real tree
    assert violations(real) == []


def test_no_files_import_each_other_in_a_circle(real):
    assert circle(real) == []


def test_every_folder_has_a_layer():
    folders = {path.name for path in (ROOT / "llava").iterdir() if (path / "__init__.py").is_file()}
    assert {f"llava.{folder}" for folder in folders} <= set(LAYERS)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("llava.model.splice", "llava.model.builder"),
        ("llava.model.llava_arch", "llava.model.language_model.llava_llama"),
        ("llava.inference.preprocess", "llava.inference.batch"),
        ("visionzip_patch.selection", "visionzip_patch.api"),
    ],
)
def test_a_planted_circle_is_found(real, importer, imported):
    assert circle([*real, Import(importer, imported, 1)])


@pytest.mark.parametrize(
    ("importer", "statement", "imported"),
    [
        ("visionzip_patch.api", "from llava.constants import IGNORE_INDEX", "llava.constants"),
        ("visionzip_patch.api", "def f():\n    import llava", "llava"),
        ("llava.inference.batch", "import llava.eval.answers", "llava.eval.answers"),
        ("llava.inference.batch", "from llava.serve.web import build", "llava.serve.web"),
        ("llava.eval.run", "def f():\n    import llava.perf.cost", "llava.perf.cost"),
        ("llava.utils.files", "from llava.model import anyres", "llava.model.anyres"),
        ("visionzip_patch.api", "import importlib\nimportlib.import_module('llava.utils')", "llava.utils"),
        ("llava.model.splice", "from ..train import trainer", "llava.train.trainer"),
        ("llava.model.builder", "import llava.data.dataset", "llava.data.dataset"),
        ("llava.data.dataset", "from llava.inference.chat import ChatSession", "llava.inference.chat"),
        ("llava.constants", "from . import utils", "llava.utils"),
    ],
)
def test_the_walk_finds_a_planted_import(tmp_path, importer, statement, imported):
    for module in ("llava.train.trainer", "llava.model.builder", "llava.model.anyres", "llava.utils", importer):
        path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert violations(find_imports(tmp_path)) == []
    path.write_text(statement)
    assert violations(find_imports(tmp_path)) == [f"{importer}:{len(statement.splitlines())} imports {imported}"]


@pytest.mark.parametrize("way", ["from llava.eval import b", "def f():\n    from llava.eval.b import g"])
def test_the_walk_finds_a_circle_in_any_form(tmp_path, way):
    folder = tmp_path / "llava/eval"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text(way)
    (folder / "b.py").write_text("from llava.eval import c")
    (folder / "c.py").touch()
    assert circle(find_imports(tmp_path)) == []
    (folder / "c.py").write_text("def f():\n    import llava.eval.a")
    assert set(circle(find_imports(tmp_path))) == {"llava.eval.a", "llava.eval.b", "llava.eval.c"}


def test_the_algorithm_imports_torch_only():
    outside = {
        imported.partition(".")[0]
        for importer, imported, _ in find_imports(ROOT)
        if importer == "visionzip_patch.selection"
    }
    assert outside - sys.stdlib_module_names == {"torch"}


def run_python(source: str) -> str:
    """What a new Python prints that finds none of the optional packages."""
    hide = (
        "import sys\n"
        "class Hiding:\n"
        "    def __init__(self, finder): self.finder = finder\n"
        "    def __getattr__(self, name): return getattr(self.finder, name)\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        hidden = name.partition('.')[0] in {OPTIONAL}\n"
        "        return None if hidden else self.finder.find_spec(name, path, target)\n"
        "sys.meta_path[:] = map(Hiding, sys.meta_path)\n"
    )
    done = subprocess.run([sys.executable, "-c", hide + source], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("package", "heavy"), [("llava", {"torch", "transformers"}), ("visionzip_patch", {"transformers"})]
)
def test_a_package_alone_is_light(package, heavy):
    assert run_python(f"import {package}; print(sorted({heavy} & sys.modules.keys()))") == "[]"


def test_every_module_imports_without_optional_packages():
    modules = [name for name in find_modules(ROOT) if not name.endswith("__main__") and name not in PLUGINS]
    source = (
        "from importlib import import_module\n"
        f"for name in {modules}: import_module(name)\n"
        f"print(sorted({set(OPTIONAL)} & sys.modules.keys()))"
    )
    assert run_python(source) == "[]"
