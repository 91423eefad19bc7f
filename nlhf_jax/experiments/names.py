"""The functions that a config may call by their names."""

import inspect
from collections.abc import Callable
from types import ModuleType


def functions(module: ModuleType, gives: type) -> dict[str, Callable]:
  """The public functions of a module that say that they return `gives`."""
  return {
    name: member
    for name, member in inspect.getmembers(module, inspect.isfunction)
    if inspect.signature(member).return_annotation is gives and not name.startswith('_')
  }
