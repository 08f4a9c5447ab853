"""What pyproject.toml cannot say yet: the compiled loops of the service."""

from setuptools import Extension, setup

# Optional: without a C compiler the install goes through, and numpy does what the loops would.
LOOPS = Extension(
    "service._kernels",
    ["service/_kernels.c"],
    depends=["service/_ids.h", "service/_reading.h"],
    extra_compile_args=["-O3"],
    optional=True,
)

setup(ext_modules=[LOOPS])
