"""What is built and installed: imports without what may be missing, clean binaries, the modes of setup.py."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

import maxmin_kernels

PACKAGE = Path(maxmin_kernels.__file__).parent
ROOT = Path(__file__).parents[2]
BINARIES = sorted(PACKAGE.glob("*.so"))

in_checkout = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not in a checkout")
compiled = pytest.mark.skipif(len(BINARIES) < 2, reason="needs both compiled modules")


def python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter outside the checkout; its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- import

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""


@pytest.mark.parametrize("package", ["maxmin_kernels", "maxmin_rlhf"])
def test_import_without_what_may_be_missing(package: str) -> None:
    hidden = ("triton", "transformers", "maxmin_kernels._C", "maxmin_kernels._core", "pyarrow")
    hidden += ("scipy", "pandas", "matplotlib")
    if package == "maxmin_rlhf" and importlib.util.find_spec(package) is None:
        pytest.skip("maxmin_rlhf is not installed")
    python(f"""{HIDE.format(hidden=hidden)}
import torch, {package}, maxmin_kernels
assert not torch.cuda.is_initialized()
# and it computes
out = maxmin_kernels.reward_heads(torch.ones(2, 3), torch.ones(4, 3))
assert out.shape == (2, 4) and (out == 3).all()
""")


def test_import_adds_nothing_to_torch() -> None:
    added = python("""
import sys
import torch
before = set(sys.modules)
import maxmin_kernels
print(*sorted(set(sys.modules) - before))
""").split()
    foreign = {name.partition(".")[0] for name in added} - set(sys.stdlib_module_names)
    assert foreign <= {"maxmin_kernels", "torch", "numpy"}
    # Kernels are loaded by the first call that asks for them.
    assert "maxmin_kernels._C" not in added
    assert "maxmin_kernels._core" not in added


# ---- sources


@in_checkout
def test_kernels_know_neither_torch_nor_python() -> None:
    include = re.compile(r'#include\s*[<"](?:torch|ATen|c10|Python\.h|pybind11)')
    offenders = [
        path
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in {".h", ".cpp", ".cu", ".cuh"}
        and path.parent.name != "bindings"
        and include.search(path.read_text())
    ]
    assert not offenders


@in_checkout
def test_headers_are_plain_c() -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    headers = sorted((ROOT / "csrc/include/maxmin").glob("*.h"))
    assert headers
    command = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-xc"]
    for header in headers:
        subprocess.run(
            [*command, f"-I{ROOT / 'csrc/include'}", "-"],
            input=f'#include "maxmin/{header.name}"\n',
            text=True,
            check=True,
        )


@in_checkout
def test_environment_variables_are_documented() -> None:
    sources = [*ROOT.glob("*.py"), *(ROOT / "csrc").rglob("*.cpp")]
    sources += [p for d in ("maxmin_kernels", "python") for p in (ROOT / d).rglob("*.py")]
    reads = re.compile(r"(?:environ(?:\.get)?|getenv|choice)\W+(MAXMIN_\w+)")
    used = {name for path in sources for name in reads.findall(path.read_text())}
    assert {"MAXMIN_BACKEND", "MAXMIN_CPU_ISA", "MAXMIN_NATIVE"} <= used
    table = (ROOT / "ENVIRONMENT.md").read_text()
    assert not {name for name in used if f"`{name}`" not in table}


# ---- binaries


@compiled
def test_build_info() -> None:
    from maxmin_kernels import _core

    info = _core.build_info()
    assert info["version"] == maxmin_kernels.__version__
    assert info["instruction_set"] in info["instruction_sets"]
    assert info["instruction_sets"][0] == "baseline"
    assert info["threads"] >= 1
    assert isinstance(info["cuda_archs"], list)
    assert info["compiler"]


@compiled
def test_instruction_set_can_be_lowered() -> None:
    code = "from maxmin_kernels import _core; print(_core.build_info()['instruction_set'])"
    assert python(code, MAXMIN_CPU_ISA="baseline").strip() == "baseline"


@compiled
@pytest.mark.parametrize("binary", BINARIES, ids=lambda path: path.name.partition(".")[0])
def test_binary_carries_no_path_of_the_build_machine(binary: Path) -> None:
    data = binary.read_bytes()
    roots = {ROOT, Path(torch.__file__).parents[1], Path(sys.prefix), Path(sys.base_prefix)}
    roots |= {Path.home()}
    assert not [root for root in roots if len(root.parts) > 2 and bytes(root) in data]
    assert not re.search(rb"(?<![\w.-])/[\w.+/-]+\.(?:cpp|cu|hpp)\b", data)
    assert not re.search(rb"site-packages", data)


@compiled
@pytest.mark.parametrize("binary", BINARIES, ids=lambda path: path.name.partition(".")[0])
def test_binary_exports_its_init_function_only(binary: Path) -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm")
    listing = subprocess.run(
        [nm, "-D", "--defined-only", str(binary)], check=True, capture_output=True, text=True
    )
    names = [line.split()[-1] for line in listing.stdout.splitlines()]
    assert names == [f"PyInit_{binary.name.partition('.')[0]}"]


@compiled
def test_torch_module_keeps_to_the_stable_abis() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm")
    (binary,) = PACKAGE.glob("_C.*")
    assert binary.name == "_C.abi3.so"
    listing = subprocess.run(
        [nm, "-D", "--undefined-only", str(binary)], check=True, capture_output=True, text=True
    )
    names = {line.split()[-1].partition("@")[0] for line in listing.stdout.splitlines()}
    # C++ names of torch change between its versions; its C functions do not.
    assert not {n for n in names if re.match(r"_ZNK?(?:2at|3c10|5torch)", n)}
    assert {n for n in names if n.startswith(("aoti_torch", "torch_"))}


# ---- setup.py


def setup_py(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code that sees what setup.py defines, in a process of its own: setuptools patches the one it is in."""
    load = f"import runpy; globals().update(runpy.run_path({str(ROOT / 'setup.py')!r}))\n"
    absent = "def absent(): raise ModuleNotFoundError(\"No module named 'torch'\")\n"
    return subprocess.run(
        [sys.executable, "-c", load + absent + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@in_checkout
class TestModes:
    @pytest.mark.parametrize(
        ("value", "modules"),
        [("0", 0), ("", 2), ("auto", 2), ("1", 2)],
        ids=["0", "unset", "auto", "1"],
    )
    def test_what_is_compiled(self, value: str, modules: int) -> None:
        done = setup_py("print(*[e.name for e in extensions()])", MAXMIN_NATIVE=value)
        assert done.stdout.split() == ["maxmin_kernels._C", "maxmin_kernels._core"][:modules]

    def test_auto_says_in_one_line_what_is_missing(self) -> None:
        done = setup_py("print(locate(absent, 'torch', '_C'))", MAXMIN_NATIVE="auto")
        assert done.stdout.strip() == "None"
        (line,) = done.stderr.splitlines()
        assert "torch cannot be imported" in line
        assert "--no-build-isolation" in line

    def test_native_1_makes_it_an_error(self) -> None:
        done = setup_py("locate(absent, 'torch', '_C')", MAXMIN_NATIVE="1")
        assert done.returncode == 1
        assert done.stderr.startswith("MAXMIN_NATIVE=1: torch cannot be imported")

    @pytest.mark.parametrize("name", ["MAXMIN_NATIVE", "MAXMIN_CUDA"])
    def test_other_values_are_refused(self, name: str) -> None:
        done = setup_py(f"choice({name!r})", **{name: "yes"})
        assert done.returncode == 1
        assert done.stderr.strip() == f"{name}: expected one of auto, 0, 1, got 'yes'"


def wheel(folder: Path, *, hide: tuple[str, ...] = (), **environment: str) -> tuple[str, list[str]]:
    """Build a wheel in this checkout, with modules hidden; (everything printed, names of wheel and its files)."""
    blinkers = folder / "blinkers"
    blinkers.mkdir(parents=True)
    (blinkers / "sitecustomize.py").write_text(HIDE.format(hidden=(*hide, "")))
    pip = [sys.executable, "-m", "pip", "wheel"]
    done = subprocess.run(
        [*pip, "-v", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)],
        env={**os.environ, "PYTHONPATH": str(blinkers), **environment},
        capture_output=True,
        text=True,
    )
    printed = done.stdout + done.stderr
    if done.returncode:
        return printed, []
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return printed, [path.name, *archive.namelist()]


def binaries(names: list[str]) -> set[str]:
    return {Path(name).name for name in names if name.endswith(".so")}


@in_checkout
@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("pip", "setuptools", "pybind11")),
    reason="needs pip, setuptools and pybind11",
)
class TestWheel:
    CORE = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"

    def test_whole(self, tmp_path: Path) -> None:
        printed, names = wheel(tmp_path)
        assert binaries(names) == {"_C.abi3.so", self.CORE}, printed
        assert "maxmin_rlhf/__init__.py" in names
        assert {name.partition("/")[0].partition("-")[0] for name in names} == {
            "maxmin_kernels",
            "maxmin_rlhf",
        }

    def test_without_torch(self, tmp_path: Path) -> None:
        printed, names = wheel(tmp_path, hide=("torch",))
        assert binaries(names) == {self.CORE}, printed
        assert len(re.findall("torch cannot be imported", printed)) == 1

    def test_without_torch_but_demanded(self, tmp_path: Path) -> None:
        printed, names = wheel(tmp_path, hide=("torch",), MAXMIN_NATIVE="1")
        assert not names
        assert "MAXMIN_NATIVE=1: torch cannot be imported" in printed

    def test_pure(self, tmp_path: Path) -> None:
        printed, names = wheel(tmp_path, MAXMIN_NATIVE="0")
        assert names, printed
        assert names[0].endswith("-py3-none-any.whl")
        assert not binaries(names)

    def test_cuda_demanded_without_compiler(self, tmp_path: Path) -> None:
        if shutil.which("nvcc") or "CUDACXX" in os.environ or Path("/usr/local/cuda").exists():
            pytest.skip("there is a CUDA compiler")
        printed, names = wheel(tmp_path, MAXMIN_CUDA="1")
        assert not names
        assert "MAXMIN_CUDA=1 but nvcc was not found" in printed
