"""The build of the optional extension `prefork._native`; everything else about the package is in pyproject.toml.

Without a C compiler, without Python's headers or elsewhere than on Linux the install works all the same, and streams
run in pure Python.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import sys
import textwrap

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

with open("src/prefork/_version.py") as file:
    VERSION = file.read().split('"')[-2]

# -g0, because Python's own flags ask for debug information, which makes the extension four times as large.
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Bytes of peers arrive here. The checks cost 0.5 % of the instructions of a 1 KiB echo.
FLAGS += ["-fstack-protector-strong", "-fstack-clash-protection", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
LINK_FLAGS = ["-Wl,-z,relro,-z,now"]


class OptionalBuild(build_ext):
    """Build the extension if it can be built; otherwise say in one line what the install goes without."""

    def run(self) -> None:
        # What an earlier build left may have other flags: it is neither kept nor installed if this build fails.
        for extension in self.extensions:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._built_path(extension))
        try:
            super().run()
        except Exception as exc:
            self._go_without(exc)

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as exc:
            self._go_without(exc)

    def _go_without(self, exc: Exception) -> None:
        if os.environ.get("PREFORK_REQUIRE_NATIVE"):
            raise exc
        # Shortened, because setuptools may say the compiler's whole command.
        reason = textwrap.shorten(str(exc) or type(exc).__name__, 120)
        sys.stderr.write(f"prefork: installed without the compiled core, streams run in pure Python: {reason}\n")

    def copy_extensions_to_source(self) -> None:
        """Copy what was built. What an earlier build left is removed: it may not fit the sources any more."""
        for extension in self.extensions:
            if not os.path.exists(self._built_path(extension)):
                self.extensions = []
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.get_ext_fullpath(extension.name))
        super().copy_extensions_to_source()

    def _built_path(self, extension: Extension) -> str:
        return os.path.join(self.build_lib, self.get_ext_filename(self.get_ext_fullname(extension.name)))


native = Extension(
    "prefork._native",
    sources=sorted(glob.glob("native/*.c")),
    depends=sorted(glob.glob("native/*.h")),
    include_dirs=["native"],
    define_macros=[("PREFORK_VERSION", f'"{VERSION}"')],
    extra_compile_args=FLAGS + os.environ.get("PREFORK_CFLAGS", "").split(),
    extra_link_args=LINK_FLAGS + os.environ.get("PREFORK_LDFLAGS", "").split(),
)

is_supported = sys.platform == "linux" and platform.python_implementation() == "CPython"
setup(ext_modules=[native] if is_supported else [], cmdclass={"build_ext": OptionalBuild})
