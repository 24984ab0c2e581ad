"""Drives CMake. The package is described in pyproject.toml, the build in CMakeLists.txt.

Environment: PIPERT_WERROR, PIPERT_CUDA, PIPERT_CUDA_ARCHITECTURES (CMakeLists.txt says what they
mean), CMAKE_BUILD_TYPE, CMAKE_BUILD_PARALLEL_LEVEL, CMAKE_ARGS.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).resolve().parent
BUILD = SOURCE / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}"  # kept between builds
FORWARDED = ("PIPERT_WERROR", "PIPERT_CUDA", "PIPERT_CUDA_ARCHITECTURES", "CMAKE_BUILD_TYPE")


class CMakeBuild(build_ext):
    """Builds _C with CMake and Ninja, in place or into the folder that a wheel is made of."""

    def run(self) -> None:
        """Configures, builds and installs into the package's folder."""
        in_place = self.inplace or self.editable_mode
        package = SOURCE / "pipert" if in_place else Path(self.build_lib).resolve() / "pipert"
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
        cmake, ninja = (shutil.which(tool, path=path) for tool in ("cmake", "ninja"))
        if not (cmake and ninja):
            sys.exit("pipert: building needs CMake and Ninja: pip install cmake ninja")
        options = [
            f"-D{name}={os.environ[name]}" if name in os.environ else f"-U{name}"
            for name in FORWARDED
        ]
        options += [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        options += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        for arguments in (
            ["-G", "Ninja", "-S", str(SOURCE), "-B", str(BUILD), *options],
            ["--build", str(BUILD)],
            ["--install", str(BUILD), "--prefix", str(package), "--component", "python"],
        ):
            if subprocess.call([cmake, *arguments]):
                sys.exit("pipert: the C++ build failed; the reason stands above")


setup(ext_modules=[Extension("pipert._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
