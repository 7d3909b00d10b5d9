"""The wheel holds both packages whole and works away from the source tree."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("llava", "visionzip_patch")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("setuptools", minversion="77", reason="builds the wheel; the dev extra has it")
    source, out = (
        tmp_path_factory.mktemp("source"),
        tmp_path_factory.mktemp("wheel"),
    )  # a build leaves files in its tree
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source)
    (built,) = out.glob("llava_visionzip-*.whl")
    return built


def pip(*arguments):
    command = [sys.executable, "-I", "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_holds_every_source_file_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    wanted = {path.relative_to(ROOT).as_posix() for path in files if path.parent.name != "__pycache__"}
    assert {"llava/serve/demo.css", "llava/visualize/page.html", "visionzip_patch/py.typed"} < wanted
    assert held == wanted


def test_imports_from_where_it_was_installed(wheel, tmp_path):
    pip("install", "--no-deps", "--no-index", "--target", tmp_path, wheel)
    source = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import llava, llava.model.builder, visionzip_patch\n"
        "print(llava.__file__, visionzip_patch.__file__, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", source], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / name / "__init__.py") for name in PACKAGES]
