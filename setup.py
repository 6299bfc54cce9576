"""Everything is in pyproject.toml; this file lets older tools, and `pip install -e .`, find it."""

from setuptools import setup

setup(package_dir={"": "."})
