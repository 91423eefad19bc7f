"""Python runs this file first where its folder is on PYTHONPATH: it finds no PyTorch then."""

from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec


def find_other(name, path=None, target=None):
  return None if name == 'torch' else find_spec(name, path, target)


PathFinder.find_spec = find_other
