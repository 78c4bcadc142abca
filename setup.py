"""Add to the package what pyproject.toml cannot describe.

This is the folder in which MIM looks for the package's configs, and the optional C++ operator. The
operator's build needs a C++ compiler and torch, which pip only shows to the build with
--no-build-isolation. If it cannot be built, the package installs without it and says so.
SA_MMDET_BUILD=1 in the environment makes that an error, and SA_MMDET_BUILD=0 skips the build.
"""
import os
import platform
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

OPERATOR = Path('sa_mmdet/ops')

# The compiler flags that ATen's vectors need for each CPU capability.
INSTRUCTIONS = {
    'default': [],
    'avx2': ['-mavx2', '-mfma', '-mf16c'],
    'avx512': ['-mavx512f', '-mavx512bw', '-mavx512vl', '-mavx512dq', '-mfma', '-mf16c'],
}
# No contraction into FMA: it would round terms that should cancel in different ways.
OPTIONS = ['-O3', '-g0', '-fopenmp', '-ffp-contract=off', '-fvisibility=hidden', '-Wno-psabi',
           '-Wno-unknown-pragmas', '-Wno-uninitialized', '-Wno-maybe-uninitialized']


class BuildPyWithMim(build_py):
    """Put configs and tools into sa_mmdet/.mim: links if the install is editable, else copies."""

    def run(self):
        super().run()
        mim = Path('' if self.editable_mode else self.build_lib, 'sa_mmdet', '.mim')
        if mim.exists():
            shutil.rmtree(mim)
        mim.mkdir(parents=True)
        for source in map(Path, ('configs', 'tools', 'model-index.yml')):
            if not (self.editable_mode and link(source, mim / source)):
                copy(source, mim / source)


def link(source: Path, target: Path) -> bool:
    try:
        target.symlink_to(Path('../..', source), target_is_directory=source.is_dir())
    except OSError:  # not every file system and user can make links
        return False
    return True


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
    else:
        shutil.copy2(source, target)


def operator_in_cpp() -> tuple[list, dict]:
    """Return the extensions and the command that builds them, or nothing to skip the build."""
    wish = os.environ.get('SA_MMDET_BUILD', '')
    if wish not in ('', '0', '1'):
        sys.exit(f'SA_MMDET_BUILD={wish}: must be 1 (required), 0 (skipped) or unset (optional)')
    if wish == '0':
        return [], {}
    if find_spec('torch') is None:
        message = ('sa_mmdet is installed without its C++ operator: its build found no torch. '
                   'Install torch, then install sa_mmdet with --no-build-isolation.')
        if wish == '1':
            sys.exit(message)
        print(message, file=sys.stderr)
        return [], {}

    from torch.utils.cpp_extension import BuildExtension, CppExtension

    machine = platform.machine().lower()
    capabilities = INSTRUCTIONS if machine in ('x86_64', 'amd64') else ['default']
    sources = OPERATOR / 'csrc'
    extensions = [
        CppExtension(
            '.'.join((*OPERATOR.parts, f'_cpu_{capability}')),
            [str(sources / f'{capability}.cpp')],
            depends=sorted(map(str, sources.glob('*.h'))),
            extra_compile_args=[*OPTIONS, *INSTRUCTIONS[capability]],
            extra_link_args=['-fopenmp'],
            optional=wish != '1') for capability in capabilities
    ]
    # Only without ninja does setuptools accept that an optional extension fails.
    build_ext = BuildExtension.with_options(use_ninja=False, no_python_abi_suffix=True)
    return extensions, {'build_ext': build_ext}


extensions, build_command = operator_in_cpp()
setup(ext_modules=extensions, cmdclass={'build_py': BuildPyWithMim, **build_command})
