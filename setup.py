"""The C++ kernels. Everything else about the package stands in pyproject.toml."""

from pathlib import Path

import pybind11
from setuptools import Extension, setup

FOLDER = Path("csrc") / "cpu"
FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-g0"]

setup(
    ext_modules=[
        Extension(
            "megatron_lwz.kernels._cpu",
            sources=sorted(str(source) for source in FOLDER.glob("*.cpp")),
            depends=sorted(str(header) for header in FOLDER.glob("*.h")),
            include_dirs=[pybind11.get_include()],
            extra_compile_args=FLAGS,
            extra_link_args=["-ldl", "-pthread"],  # part of the C library from glibc 2.34 on
            language="c++",
            optional=True,  # without a compiler the build warns and goes on; plain torch does the work then
        )
    ]
)
