"""What is installed: small, typed, imported in no time, and without a framework."""

import importlib.metadata
import os
import pathlib
import re
import statistics
import subprocess
import sys
import zipfile

import pytest

import flash3

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = pathlib.Path(flash3.__file__).parent


def run(code, *options):
    result = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_needs_no_framework():
    frameworks = ("numpy", "torch", "jax", "jaxlib", "ml_dtypes", "transformers")
    code = f"import sys; sys.modules.update(dict.fromkeys({frameworks})); import flash3; print(flash3.__version__)"
    assert run(code).strip() == flash3.__version__
    assert run(f"import flash3, sys; print([m for m in {frameworks} if m in sys.modules])").strip() == "[]"


def test_import_time():
    code = "import time; t = time.perf_counter(); import flash3; print(time.perf_counter() - t)"
    assert statistics.median(float(run(code)) for _ in range(5)) < 0.060


def test_version():
    assert importlib.metadata.version("flash3") == flash3.__version__
    assert importlib.metadata.requires("flash3") is None or all(
        "extra ==" in r for r in importlib.metadata.requires("flash3")
    )


def test_typed():
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "_flash3.pyi").exists()


def test_documented():
    for name in flash3.__all__:
        if name != "__version__":
            assert len(getattr(flash3, name).__doc__) > 60, name


def snippets(page):
    """The Python code blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


PAGES = [ROOT / "README.md", ROOT / "docs" / "python.md"]
SNIPPETS = {f"{page.name}-{n}": code for page in PAGES for n, code in enumerate(snippets(page))}


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippet(name, engine, tmp_path):
    """What the documentation shows runs as it stands."""
    if engine == "reference":
        pytest.skip("the snippets take the automatic engine, and there is none")
    frameworks = [
        f for f in ("torch", "jax", "transformers") if re.search(rf"^(import|from) {f}\b", SNIPPETS[name], re.MULTILINE)
    ]
    for framework in frameworks:
        pytest.importorskip(framework)
    script = tmp_path / "snippet.py"
    script.write_text(SNIPPETS[name])
    subprocess.run([sys.executable, script], check=True)


@pytest.mark.skipif("FLASH3_WHEEL" not in os.environ, reason="FLASH3_WHEEL does not name the wheel")
def test_wheel():
    wheel = pathlib.Path(os.environ["FLASH3_WHEEL"])
    assert wheel.stat().st_size < 30 << 20
    names = zipfile.ZipFile(wheel).namelist()
    assert sum(name.endswith(".so") for name in names) == 1
    assert not [name for name in names if name.startswith(("lib", "include", "share"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)
