"""Build the compiled parts where there is a compiler; install without them where there is none."""

import glob
import os
import shutil
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, LinkError

PROGRAMS = ("train", "sample", "evaluate", "prepare", "report")


class BuildWithWhatThereIs(build_ext):
    """Add OpenMP if this compiler knows it; that the extensions themselves are optional, setuptools sees to."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.cython_c_in_temp = True  # so that the C that Cython writes does not lie among the sources

    def build_extensions(self) -> None:
        if self._compiles("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }", "-fopenmp"):
            for extension in self.extensions:
                extension.extra_compile_args.append("-fopenmp")
                extension.extra_link_args.append("-fopenmp")
        super().build_extensions()

    def _compiles(self, program: str, flag: str) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=[flag])
                self.compiler.link_executable(objects, str(Path(folder, "probe")), extra_postargs=[flag])
            except (CompileError, LinkError):
                return False
        return True


class BuildWithPrograms(build_py):
    """Put the programs and their configuration into the package, where they are found without a clone."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            home = Path(self.build_lib, "flows", "home")
            options = (path for path in Path("conf").rglob("*.yaml") if path.parts[1] != "local")  # this machine's
            for path in [*options, *(Path(f"{name}.py") for name in PROGRAMS)]:
                (home / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, home / path)


# On Windows the wheel is for any Python and machine: the kernels' vectors are an extension of gcc and clang.
setup(
    ext_modules=[]
    if os.name == "nt"
    else [
        Extension(
            "flows.kernels._compiled",
            sources=[
                "csrc/_compiled.pyx",
                "csrc/autoregressive.c",
                "csrc/convolution.c",
                "csrc/mapped_convolution.c",
                "csrc/masked_autoregressive.c",
                "csrc/spectrum.c",
            ],
            depends=glob.glob("csrc/*.h"),
            include_dirs=["csrc"],
            # Fused multiply-add halves the work; vectors as local variables need no ABI, so its warning is moot.
            extra_compile_args=["-O3", "-ffp-contract=fast", "-Wno-psabi"],
            optional=True,
        ),
    ],
    cmdclass={"build_ext": BuildWithWhatThereIs, "build_py": BuildWithPrograms},
)
