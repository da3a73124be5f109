"""Make the environments of the peers that are packages, one each.

    python benchmarks/peers/setup.py [FOLDER]          default: .venv/peers

Nothing of them is imported by this project. Licences: lcl-choice MIT, lccm BSD-3-Clause, searchlogit MIT, jax Apache-2.0.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

# lccm is of 2017, for Python 2: it wants the NumPy that still has what it calls.
PACKAGES = {
    "lcl": ["lcl-choice==0.1.46"],
    "jax": ["jax[cpu]==0.10.2"],
    "lccm": ["lccm==0.1.20", "numpy==1.23.5", "scipy==1.10.1", "pandas==1.5.3"],
    "searchlogit": ["searchlogit==0.3.159", "numpy==2.4.6", "scipy==1.17.1", "pandas==3.1.1"],
}


def make(name: str, folder: Path) -> Path:
    """The Python of one environment, made if it is not there whole."""
    home = folder / name
    python, done = home / "bin" / "python", home / "installed"
    if done.exists():
        return python
    venv.create(home, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, *PACKAGES[name]], check=True)
    if name == "lccm":
        where = next(home.glob("lib/python*/site-packages/lccm"))
        translate = [str(python), "-W", "ignore", "-m", "lib2to3", "-w", "-n", str(where)]
        subprocess.run(translate, check=True, capture_output=True)
    done.touch()
    return python


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".venv/peers").absolute()
    failed = 0
    for name in PACKAGES:
        try:
            print(make(name, folder), flush=True)
        except subprocess.CalledProcessError as error:
            failed += 1
            print(f"{name}: {' '.join(error.cmd[:5])} … failed with {error.returncode}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
