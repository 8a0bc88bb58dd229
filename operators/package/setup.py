"""Names the wheel after its machine alone: the library is called from C, and so is for every Python."""

from __future__ import annotations

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel


class MachineCode(Distribution):
    """A distribution for one kind of machine, although none of its modules is an extension."""

    def has_ext_modules(self) -> bool:
        """Say so, which has the files installed where those of a machine are."""
        return True


class PlatformWheel(bdist_wheel):
    """A wheel for any Python on such a machine."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return any Python 3, no binary interface of Python, and this machine; manylinux is not claimed."""
        return "py3", "none", super().get_tag()[2]


setup(distclass=MachineCode, cmdclass={"bdist_wheel": PlatformWheel})
