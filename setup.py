"""The packages of the wheel; all other metadata is in setup.cfg.

`configs/` stands at the top level of the repository and is installed as `nlhf_jax/configs`.
"""

from setuptools import find_namespace_packages, setup

setup(
  packages=[*find_namespace_packages(include=['nlhf_jax*']), 'nlhf_jax.configs'],
  package_dir={'nlhf_jax.configs': 'configs'},
)
