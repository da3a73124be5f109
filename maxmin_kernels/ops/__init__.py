"""One file an operation: schema, fake, autograd, choice of backend."""

import importlib
import pkgutil

from maxmin_kernels.ops._registry import backend, backends_of, call, operations, opt_in

__all__ = ["backend", "backends_of", "call", "operations", "opt_in"]

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
