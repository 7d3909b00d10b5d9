"""The packages import each other in one direction only, and need nothing optional to be imported."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("llava", "visionzip_patch")

# From top to bottom: a module imports from its own line or from lines below it. The longest matching name counts.
LAYERS = (
    ("llava.train", "llava.eval", "llava.analysis", "llava.serve", "visionzip_patch.visualize"),  # commands, all
    ("llava.inference",),
    ("llava.model.builder", "llava.data", "llava.shapes"),
    ("llava.model.description",),
    ("llava.model", "llava.model.language_model"),
    ("llava.model.llava_arch",),
    (
        *("llava", "llava.model.multimodal_encoder", "llava.model.multimodal_projector"),
        *("llava.model.anyres", "llava.model.splice", "llava.model.checkpoint", "llava.model.save", "llava.model.loss"),
        *("llava.model.adapter", "llava.model.fields", "llava.model.finite", "llava.model.hf_format"),
        *("llava.model.values", "llava.model.vocabulary", "llava.model.weights"),
        *("llava.model.engine", "llava.model.graphs", "llava.model.kv_cache", "llava.model.sampling"),
        *("llava.model.generation", "llava.model.multimodal", "llava.model.pretrained", "llava.model.typed"),
        *("llava.model.runner", "llava.model.sequences", "llava.model.vision"),
        *("llava.model.hub", "llava.model.library_errors", "llava.model.placement", "llava.model.weight_files"),
    ),
    ("llava.constants",),
    ("visionzip_patch",),
)
NEVER = (  # (importer, imported), whatever their layers
    *(("llava.data", "llava.model"), ("llava.model", "llava.data")),
    *(("llava", "visionzip_patch.visualize"), ("visionzip_patch", "visionzip_patch.visualize")),  # a command: nobody's
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
    matches = [(len(name), i) for i, names in enumerate(LAYERS) for name in names if is_within(module, name)]
    return max(matches)[1] if matches else None


def violations(root: Path) -> list[str]:
    found = []
    for importer, imported, line in find_imports(root):
        above, below = layer(importer), layer(imported)
        if below is None or importer in FACADES:
            continue
        forbidden = any(is_within(importer, a) and is_within(imported, b) for a, b in NEVER)
        if forbidden or below < above:
            found.append(f"{importer}:{line} imports {imported}")
    return found


def test_imports_run_one_way():
    edges = {(importer, imported) for importer, imported, _ in find_imports(ROOT)}
    assert ("llava.model.multimodal", "llava.model.splice") in edges  # the walk sees the real tree
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("importer", "statement", "imported"),
    [
        ("visionzip_patch.api", "from llava.constants import IGNORE_INDEX", "llava.constants"),
        ("visionzip_patch.api", "def f():\n    import llava", "llava"),
        ("visionzip_patch.api", "from visionzip_patch.visualize import main", "visionzip_patch.visualize"),
        ("llava.serve.web", "from visionzip_patch.visualize import main", "visionzip_patch.visualize"),
        ("visionzip_patch.api", "import importlib\nimportlib.import_module('llava.utils')", "llava.utils"),
        ("llava.model.splice", "from ..train import trainer", "llava.train.trainer"),
        ("llava.model.splice", "from llava.model import builder", "llava.model.builder"),
        ("llava.model.llava_arch", "from llava.model.language_model import llava_llama", "llava.model.language_model"),
        ("llava.model.builder", "import llava.data.dataset", "llava.data.dataset"),
        ("llava.data.dataset", "from llava.model.anyres import pack", "llava.model.anyres"),
        ("llava.constants", "from . import utils", "llava.utils"),
    ],
)
def test_the_walk_finds_a_planted_import(tmp_path, importer, statement, imported):
    for module in ("llava.train.trainer", "llava.model.builder", "llava.model.anyres", "llava.utils", importer):
        path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert violations(tmp_path) == []
    path.write_text(statement)
    assert violations(tmp_path) == [f"{importer}:{len(statement.splitlines())} imports {imported}"]


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
