"""Puts the configs, which lie at the top of the repository, into the package that is built."""

from pathlib import Path
from shutil import copytree, rmtree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies `configs` to `lightning_uda/configs`; an editable install reads them where they lie."""

    def run(self) -> None:
        """Builds the package."""
        super().run()
        if not self.editable_mode:
            built = Path(self.build_lib, "lightning_uda", "configs")
            rmtree(built, ignore_errors=True)  # of an earlier build
            copytree("configs", built)


setup(cmdclass={"build_py": BuildWithConfigs})
