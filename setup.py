"""Builds the compiled modules with CMake and ninja; everything else is in pyproject.toml.

Environment: ``MAXMIN_NATIVE=auto|0|1``, ``MAXMIN_CUDA=auto|0|1``, ``MAXMIN_CUDA_ARCHS``, ``MAX_JOBS``
(ENVIRONMENT.md says what they do).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
DEFAULT_CUDA_ARCHS = "90a"


def choice(name: str, allowed: tuple[str, ...] = ("auto", "0", "1")) -> str:
    """The value of an environment variable that takes a few words."""
    value = os.environ.get(name, "").strip().lower() or allowed[0]
    if value not in allowed:
        raise SystemExit(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    return value


def torch_folder() -> Path:
    """Of the torch to compile against. Its headers are all that is used; any build of torch >= 2.11 will do."""
    module = importlib.import_module("torch")
    return Path(module.__file__).resolve().parent


def pybind11_include() -> Path:
    return Path(importlib.import_module("pybind11").get_include()).resolve()


def tool(name: str) -> str:
    """Path of cmake or ninja: beside this Python (pip installs them there), else on PATH."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is needed to compile: pip install {name}, or MAXMIN_NATIVE=0")
    return found


def locate(find, module: str, needed_for: str) -> Path | None:
    """Where the headers of ``needed_for`` lie; None, with one line that says so, when they may be missing."""
    try:
        return find()
    except ImportError as error:
        message = f"{module} cannot be imported here, so maxmin_kernels.{needed_for} is not built ({error})"
        if choice("MAXMIN_NATIVE") == "1":
            raise SystemExit(f"MAXMIN_NATIVE=1: {message}") from None
        hint = (
            "; pip install --no-build-isolation uses the installed one" if module == "torch" else ""
        )
        print(f"maxmin-kernels: {message}{hint}", file=sys.stderr)
        return None


@contextlib.contextmanager
def only_one_build(folder: Path) -> Iterator[None]:
    """Builds that share a folder wait for each other."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def place(built: Path, target: Path) -> None:
    """Copy in one step: a process that has the old file mapped keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy2(built, partial)
    os.replace(partial, target)


class BuildPython(build_py):
    def run(self) -> None:
        # A module that was deleted since must not come back out of an older build.
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildNative(build_ext):
    """All extensions come out of one CMake build, kept in build/ between runs."""

    def build_extensions(self) -> None:
        torch = locate(torch_folder, "torch", "_C")
        pybind11 = locate(pybind11_include, "pybind11", "_core")
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        built = {"_C": "_C.abi3.so"} if torch else {}
        if pybind11:
            built["_core"] = f"_core{suffix}"
        folder = ROOT / "build" / "native" / str(sys.implementation.cache_tag)
        with only_one_build(folder):
            if built:
                self.run_cmake(folder, torch, pybind11, suffix)
            for extension in self.extensions:
                name = extension.name.rpartition(".")[2]
                target = Path(self.get_ext_fullpath(extension.name))
                if name in built:
                    place(folder / built[name], target)
                else:  # an older build's must not be taken for this one's
                    target.unlink(missing_ok=True)

    def run_cmake(
        self, folder: Path, torch: Path | None, pybind11: Path | None, suffix: str
    ) -> None:
        definitions = {
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "MAXMIN_PYTHON_INCLUDE": sysconfig.get_path("include"),
            "MAXMIN_TORCH": torch or "",
            "MAXMIN_PYBIND11_INCLUDE": pybind11 or "",
            "MAXMIN_CORE_SUFFIX": suffix,
            "MAXMIN_CUDA": choice("MAXMIN_CUDA"),
            "MAXMIN_CUDA_ARCHS": os.environ.get("MAXMIN_CUDA_ARCHS", DEFAULT_CUDA_ARCHS),
            "MAXMIN_VERSION": self.distribution.get_version(),
        }
        cmake = tool("cmake")
        configure = [cmake, "-S", str(ROOT / "csrc"), "-B", str(folder), "-G", "Ninja"]
        build = [cmake, "--build", str(folder)]
        if "MAX_JOBS" in os.environ:
            build += ["--parallel", os.environ["MAX_JOBS"]]
        try:
            subprocess.check_call(configure + [f"-D{k}={v}" for k, v in definitions.items()])
            subprocess.check_call(build)
        except subprocess.CalledProcessError:
            raise SystemExit(
                "maxmin-kernels: the compiled modules could not be built (see above); "
                "MAXMIN_NATIVE=0 installs without them"
            ) from None

    def copy_extensions_to_source(self) -> None:
        for extension in self.extensions:
            name = self.get_ext_filename(extension.name)
            built = Path(self.build_lib) / name
            if built.exists():
                place(built, ROOT / name)
            else:
                (ROOT / name).unlink(missing_ok=True)

    def get_source_files(self) -> list[str]:
        return []  # MANIFEST.in names them

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]


def extensions() -> list[Extension]:
    if choice("MAXMIN_NATIVE") == "0":
        return []
    return [
        Extension("maxmin_kernels._C", [], py_limited_api=True),
        Extension("maxmin_kernels._core", []),
    ]


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_py": BuildPython, "build_ext": BuildNative})
