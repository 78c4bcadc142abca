#!/usr/bin/env python
"""Install an mmcv whose operators work with this Python's torch.

An installed mmcv that works is left alone. Otherwise the wheel comes from MMCV_WHEELS or from an
earlier build on this machine, or is compiled: with CUDA if torch has it and the machine has a GPU.

  MMCV_WHEELS           folder or page of wheels to try first
  FORCE_CUDA=1          compile with CUDA even without a GPU
  TORCH_CUDA_ARCH_LIST  compute capabilities, such as "8.6;9.0" (default: those of this machine)
  CUDA_HOME             CUDA toolkit (default: this machine's, or else the package index's compiler)
  MAX_JOBS              number of files to compile at a time (default: by cores and memory)
  XDG_CACHE_HOME        folder for sa_mmdet/, where compiled wheels are kept (default: ~/.cache)
"""
import argparse
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import invalidate_caches, metadata
from importlib.util import find_spec
from pathlib import Path

try:
    import torch
except ImportError as error:
    sys.exit(f'error: {error}. Install torch first: mmcv is compiled for it')

# Minutes of one core and GB, measured with mmcv 2.1.0 and 2.3.6, GCC 12 and CUDA 13.0.
MINUTES_OF_CPU, MINUTES_OF_CUDA, MINUTES_OF_ARCHITECTURE = 10, 12, 8
GB_TO_BUILD, GB_OF_A_JOB = 2, 2

COMPILER = ('nvidia-cuda-nvcc', 'nvidia-cuda-crt', 'nvidia-nvvm', 'nvidia-cuda-cccl')
BUILD_TOOLS = {'setuptools': '<81', 'wheel': '', 'ninja': '', 'packaging': ''}

# Fails if the operators do not load or compute; prints the CUDA version they were compiled with.
GPU_FAILS = 9
CHECK = f'''
import sys, torch
device = 'cuda' if torch.cuda.is_available() else 'cpu'
try:
    boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 8.], [20., 20., 30., 30.]], device=device)
except RuntimeError as error:
    print(error, file=sys.stderr)
    sys.exit({GPU_FAILS})
from mmcv.ops import get_compiling_cuda_version, nms
version = get_compiling_cuda_version()
assert len(nms(boxes, torch.tensor([.9, .8, .7], device=device), 0.5)[1]) == 2, 'nms is wrong'
print(version)
'''

# What mmcv's CUDA files include and call.
TRIAL = '''
#include <ATen/cuda/CUDAContext.h>
#ifdef __CUDACC__
__global__ void kernel(float* x) { x[0] = 1; }
void launch(float* x) { kernel<<<1, 1, 0, at::cuda::getCurrentCUDAStream()>>>(x); }
#endif
'''


class Problem(Exception):
    """The installation cannot continue; the message says why, for the user."""


@dataclass(frozen=True)
class Wanted:
    """The mmcv to install, and what it is compiled for."""
    requirement: str  # such as onedl-mmcv==2.3.6
    cuda: str | None = None  # such as 13.0; None for the CPU only
    given_log: Path | None = None

    @property
    def name(self) -> str:
        return self.requirement.partition('==')[0]

    @property
    def log(self) -> Path:
        return self.given_log or self.folder / 'install.log'

    @cached_property
    def architectures(self) -> tuple[str, ...]:
        return cuda_architectures() if self.cuda else ()

    @cached_property
    def folder(self) -> Path:
        """Return the folder that compiles and keeps the wheel, named after what it depends on."""
        cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
        python = f'cp{sys.version_info.major}{sys.version_info.minor}'
        target = '_'.join((f'cu{self.cuda}', *self.architectures)) if self.cuda else 'cpu'
        folder = cache / 'sa_mmdet' / '_'.join((
            self.requirement.replace('==', '-'), python, platform.machine(),
            f'torch{torch.__version__}', target))
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('requirement', nargs='?', default=default_requirement(),
                        help='such as onedl-mmcv==2.3.6 (default: %(default)s)')
    parser.add_argument('--wheel-dir', type=Path, metavar='FOLDER', help='write the wheel '
                        'there, for other machines, and install nothing')
    parser.add_argument('--log', type=Path, help='file to append the output of pip to')
    args = parser.parse_args()
    try:
        wanted = Wanted(args.requirement, cuda_version(), args.log)
        if args.wheel_dir:
            args.wheel_dir.mkdir(parents=True, exist_ok=True)
            say(f'the wheel is {shutil.copy(compiled_wheel(wanted), args.wheel_dir)}')
        else:
            install(wanted)
    except Problem as problem:
        sys.exit(f'error: {problem}')
    except (OSError, RuntimeError) as error:  # no home, a full disk, someone else's folder
        sys.exit(f'error: {error}. Set XDG_CACHE_HOME to a folder that you can write to')
    except KeyboardInterrupt:
        sys.exit('\ninterrupted: what was compiled is kept. Run the same command again to continue')


def default_requirement() -> str:
    """Return the mmcv for the installed MMDetection, in its installed version if there is one."""
    name = 'onedl-mmcv' if installed('onedl-mmdetection') else 'mmcv'
    if version := installed(name):
        return f'{name}=={version}'
    return name if name == 'onedl-mmcv' else 'mmcv==2.1.0'


def installed(name: str) -> str | None:
    """Return the version of an installed package, without a local part such as +cu121."""
    try:
        return metadata.version(name).partition('+')[0]
    except metadata.PackageNotFoundError:
        return None


def install(wanted: Wanted) -> None:
    if not (problem := problem_of_installed(wanted)):
        say(f'{wanted.requirement} is installed and works')
        return
    say(f'installing {wanted.requirement}: {problem}')
    for origin, wheel in wheels(wanted):
        if problem := problem_of_wheel(wanted, wheel):
            say(f'{wheel.name}, {origin}, does not work here: {problem}')
        else:
            replace_installed(wanted, wheel)
            say(f'{wheel.name}, {origin}, is installed and works')
            return
    raise Problem(f'no wheel of {wanted.requirement} works here. Log: {wanted.log}')


def wheels(wanted: Wanted) -> Iterator[tuple[str, Path]]:
    """Yield the wheels to try in turn, each with its origin."""
    if page := os.environ.get('MMCV_WHEELS'):
        with tempfile.TemporaryDirectory() as folder:
            try:
                pip(wanted, 'download', '--no-deps', '--no-index', '--only-binary', ':all:',
                    '--find-links', page, '--dest', folder, wanted.requirement)
                yield 'from MMCV_WHEELS', next(Path(folder).iterdir())
            except Problem as problem:
                say(f'skipping MMCV_WHEELS={page}: {problem}')
    for wheel in wanted.folder.glob('*.whl'):
        yield f'kept in {wanted.folder}', wheel
        wheel.unlink()
    yield f'kept in {wanted.folder}', compiled_wheel(wanted)


def cuda_version() -> str | None:
    """Return the CUDA version to compile with, such as '13.0'; None for the CPU only."""
    version, forced = torch.version.cuda, os.environ.get('FORCE_CUDA') == '1'
    if torch.version.hip:
        raise Problem(f'torch {torch.__version__} is for ROCm, which this tool does not support')
    if forced and not version:
        raise Problem(f'FORCE_CUDA=1, but torch {torch.__version__} is built for the CPU: install '
                      'a torch with CUDA, or unset FORCE_CUDA')
    if forced or torch.cuda.is_available():
        return version
    drivers = [] if 'CUDA_VISIBLE_DEVICES' in os.environ else nvidia_smi('driver_version')
    if drivers and version:
        raise Problem(
            f'torch {torch.__version__} cannot use the NVIDIA GPU: its driver is {drivers[0]}, and '
            f'CUDA {version} may need a newer one. Update the driver, or install for the CPU only '
            'with CUDA_VISIBLE_DEVICES= before the command')
    if drivers:
        say(f'note: torch {torch.__version__} is built for the CPU and does not use this GPU')
    return None


def cuda_architectures() -> tuple[str, ...]:
    """Return the compute capabilities to compile for, such as ('8.6', '9.0')."""
    if wish := os.environ.get('TORCH_CUDA_ARCH_LIST'):
        found = re.findall('[^;, ]+', wish)
    elif torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        found = ['{}.{}'.format(*torch.cuda.get_device_capability(device)) for device in devices]
    else:
        found = nvidia_smi('compute_cap')
    if not found:
        raise Problem('FORCE_CUDA=1, but no GPU is found: set TORCH_CUDA_ARCH_LIST to the compute '
                      'capabilities of the GPUs to compile for, such as 9.0 for H100 and H200, '
                      'or "8.0;8.6" for A100 and RTX 30')
    return tuple(sorted(set(found)))


def nvidia_smi(field: str) -> list[str]:
    """Return a field of each GPU; an empty list without a GPU or driver."""
    try:
        done = subprocess.run(['nvidia-smi', f'--query-gpu={field}', '--format=csv,noheader'],
                              capture_output=True, text=True)
    except OSError:
        return []
    return re.findall(r'^\d[\d.]*$', done.stdout, re.MULTILINE)


def problem_of_installed(wanted: Wanted) -> str | None:
    """Return why the installed mmcv is not the wanted one, or None."""
    found, version = installed(wanted.name), wanted.requirement.partition('==')[2]
    if found is None:
        return 'it is not installed yet'
    if version not in ('', found):
        return f'{wanted.name} {found} is installed'
    return problem_of_import(wanted)


def problem_of_wheel(wanted: Wanted, wheel: Path) -> str | None:
    """Return why the mmcv in a wheel does not work here, or None."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            pip(wanted, 'install', '--no-deps', '--no-index', '--target', folder, wheel)
        except Problem as problem:
            return str(problem)
        return problem_of_import(wanted, folder)


def problem_of_import(wanted: Wanted, folder: str = '') -> str | None:
    """Return why the mmcv in a folder, or in this Python, does not work, or None.

    Raises:
        Problem: mmcv is not the cause.
    """
    path = os.pathsep.join(filter(None, (folder, os.environ.get('PYTHONPATH'))))
    done = subprocess.run([sys.executable, '-P', '-c', CHECK], capture_output=True, text=True,
                          env=os.environ | {'PYTHONPATH': path})
    problem = last_line(done.stderr)
    if done.returncode == GPU_FAILS:
        raise Problem(f'torch cannot use the GPU now: {problem}')
    if done.returncode and re.search(r"No module named '(?!mmcv)", problem):
        raise Problem(f'a package that mmcv needs is not installed: {problem}')
    if done.returncode:
        return problem
    if wanted.cuda and last_line(done.stdout) == 'not available':
        return f'its operators are compiled for the CPU only, but torch has CUDA {wanted.cuda}'
    return None


def replace_installed(wanted: Wanted, wheel: Path) -> None:
    """Install a wheel, after removing other packages imported as mmcv, whose files would mix."""
    others = set(metadata.packages_distributions().get('mmcv', ())) - {wanted.name}
    if others:
        pip(wanted, 'uninstall', '--yes', *others)
    pip(wanted, 'install', '--no-deps', '--no-index', '--force-reinstall', '--find-links',
        wheel.parent, wanted.requirement)


def compiled_wheel(wanted: Wanted) -> Path:
    """Return the wheel compiled before, or compile it; one process at a time."""
    with (wanted.folder / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f'waiting for another installation in {wanted.folder}')
            fcntl.flock(lock, fcntl.LOCK_EX)
        return next(wanted.folder.glob('*.whl'), None) or build(wanted)


def build(wanted: Wanted) -> Path:
    """Compile mmcv from source, reusing what an interrupted build compiled."""
    source, free = wanted.folder / 'source', shutil.disk_usage(wanted.folder).free / 1e9
    if free < GB_TO_BUILD and not source.exists():
        raise Problem(f'compiling mmcv needs {GB_TO_BUILD} GB in {wanted.folder}, but only '
                      f'{free:.1f} GB are free: make room, or set XDG_CACHE_HOME to a folder on a '
                      'larger disk')
    cores = len(os.sched_getaffinity(0))
    jobs = os.environ.get('MAX_JOBS') or str(max(1, min(cores, memory() // GB_OF_A_JOB)))
    if not (jobs.isdigit() and int(jobs)):
        raise Problem(f'MAX_JOBS={jobs}: expected a number of files to compile at a time')
    env = os.environ | build_tools(wanted) | {
        'MAX_JOBS': jobs, 'MMCV_WITH_OPS': '1', 'CFLAGS': os.environ.get('CFLAGS', '-g0')}
    minutes, target = MINUTES_OF_CPU, 'the CPU'
    if wanted.cuda:
        env |= {'FORCE_CUDA': '1', 'TORCH_CUDA_ARCH_LIST': ';'.join(wanted.architectures),
                'CUDA_HOME': str(cuda_toolkit(wanted))}
        minutes += MINUTES_OF_CUDA + MINUTES_OF_ARCHITECTURE * len(wanted.architectures)
        target = f'compute capability {", ".join(wanted.architectures)}'
    if not source.exists():
        with whole(source) as folder:
            pip(wanted, 'download', '--no-deps', '--no-build-isolation', '--no-binary', ':all:',
                '--dest', folder, wanted.requirement, env=env)
            shutil.unpack_archive(next(folder.glob('*.tar.gz')), folder)
    say(f'compiling {wanted.requirement} for {target}: about '
        f'{max(1, round(minutes / min(int(jobs), cores)))} minutes on {cores} cores, '
        f'{jobs} files at a time. If interrupted, run the same command again to continue')
    compile_wheel(wanted, source, env)
    wheel = next(source.glob('*.whl'))
    wheel = wheel.rename(wanted.folder / wheel.name)
    for name in ('source', 'cuda', 'tools'):
        shutil.rmtree(wanted.folder / name, ignore_errors=True)
    return wheel


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Create a folder that appears only when its content is complete."""
    partial = folder.with_suffix('.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    yield partial
    partial.rename(folder)


def memory() -> int:
    """Return the memory of this machine or container, in GB."""
    limit, size = Path('/sys/fs/cgroup/memory.max'), os.sysconf('SC_PAGE_SIZE')
    of_machine = size * os.sysconf('SC_PHYS_PAGES')
    text = limit.read_text().strip() if limit.exists() else ''
    return min(of_machine, int(text) if text.isdigit() else of_machine) // 10**9


def build_tools(wanted: Wanted) -> dict[str, str]:
    """Install the missing build tools, and return the environment variables to find them.

    They go into a separate folder, so that the environment itself keeps its setuptools.
    """
    tools = wanted.folder / 'tools'
    missing = [f'{name}{bound}' for name, bound in BUILD_TOOLS.items() if not fits(name, bound)]
    if missing and not tools.exists():
        with whole(tools) as folder:
            pip(wanted, 'install', '--target', folder, *missing)
    path = os.pathsep.join(filter(None, (str(tools), os.environ.get('PYTHONPATH'))))
    return {'PATH': f'{tools / "bin"}:{Path(sys.executable).parent}:{os.environ["PATH"]}',
            'PYTHONPATH': path}


def fits(name: str, bound: str) -> bool:
    version = installed(name)
    return bool(version) and (not bound or int(version.split('.')[0]) < int(bound[1:]))


def cuda_toolkit(wanted: Wanted) -> Path:
    """Return a CUDA toolkit for this torch: the machine's, or else the package index's."""
    cuda, of_same_major = wanted.cuda, None
    for home in cuda_homes(cuda):
        version = toolkit_version(home)
        if version is None:
            continue
        problem = problem_of_toolkit(home, wanted.architectures)
        if not problem and version == cuda:
            say(f'using CUDA {cuda} in {home}')
            return home
        if not problem and version.split('.')[0] == cuda.split('.')[0]:
            of_same_major = of_same_major or home
        say(f'skipping CUDA {version} in {home}: '
            f'{problem or f"torch {torch.__version__} has CUDA {cuda}"}')
    if int(cuda.split('.')[0]) >= 13:
        return toolkit_of_index(wanted)
    if of_same_major:
        say(f'using CUDA in {of_same_major} all the same')
        return of_same_major
    raise Problem(f'no compiler found for CUDA {cuda}, which torch {torch.__version__} uses. The '
                  f'package index has one for CUDA 13 and later. Install the CUDA toolkit {cuda} '
                  'and set CUDA_HOME to it')


def cuda_homes(cuda: str) -> list[Path]:
    """Return where a CUDA toolkit may be, in order of preference."""
    nvcc = shutil.which('nvcc')
    homes = [os.environ.get('CUDA_HOME'), nvcc and Path(nvcc).resolve().parents[1],
             f'/usr/local/cuda-{cuda}', '/usr/local/cuda']
    return list(dict.fromkeys(Path(home).resolve() for home in homes if home))


def toolkit_version(home: Path) -> str | None:
    """Return the CUDA version of a toolkit, such as '13.0'; None if it has no compiler."""
    try:
        done = subprocess.run([home / 'bin/nvcc', '--version'], capture_output=True, text=True)
    except OSError:
        return None
    found = re.search(r'release (\d+\.\d+)', done.stdout)
    return found and found[1]


def toolkit_of_index(wanted: Wanted) -> Path:
    """Install the compiler for torch's exact CUDA version, next to torch's CUDA libraries."""
    cuda, home = wanted.cuda, wanted.folder / 'cuda'
    say(f'installing the CUDA {cuda} compiler from the package index')
    pip(wanted, 'install', '--no-deps', *(f'{name}=={cuda}.*' for name in COMPILER))
    lay_out_toolkit(home, f'cu{cuda.split(".")[0]}')
    if problem := problem_of_toolkit(home, wanted.architectures):
        raise Problem(f'CUDA {cuda} from the package index does not compile here: {problem}. '
                      'TORCH_CUDA_ARCH_LIST sets the GPUs, CC and CXX the C++ compiler')
    return home


def lay_out_toolkit(home: Path, name: str) -> None:
    """Link the files of NVIDIA's packages as a CUDA toolkit has them, with plain .so in lib64."""
    shutil.rmtree(home, ignore_errors=True)
    invalidate_caches()
    for packages in find_spec('nvidia').submodule_search_locations:
        for file in Path(packages).resolve().glob(f'{name}/*/*'):
            links = [home / file.parent.name / file.name]
            if file.parent.name == 'lib':
                links.append(home / 'lib64' / re.sub(r'(\.so)\..*', r'\1', file.name))
            for link in links:
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    link.symlink_to(file)


def problem_of_toolkit(home: Path, architectures: tuple[str, ...]) -> str | None:
    """Compile and link as for mmcv; return the first error of the compilers, or None."""
    includes = [f'-I{Path(torch.__file__).parent / "include"}', f'-I{home / "include"}']
    numbers = [one.replace('.', '').removesuffix('+PTX') for one in architectures
               if one[0].isdigit()]  # torch takes names too, such as Hopper
    with tempfile.TemporaryDirectory() as folder:
        for name, command in {
            'trial.cu': [home / 'bin/nvcc', '-shared', '-Xcompiler', '-fPIC', '-std=c++17',
                         '-o', Path(folder, 'trial.so'), f'-L{home / "lib64"}', '-lcudart',
                         *(f'-gencode=arch=compute_{one},code=sm_{one}' for one in numbers),
                         *(['-ccbin', os.environ['CC']] if 'CC' in os.environ else [])],
            'trial.cpp': [os.environ.get('CXX', 'c++'), '-fsyntax-only', '-std=c++17'],
        }.items():
            source = Path(folder, name)
            source.write_text(TRIAL)
            done = subprocess.run([*command, *includes, source], capture_output=True, text=True)
            if done.returncode:
                return first_error(done.stderr)
    return None


def compile_wheel(wanted: Wanted, source: Path, env: dict[str, str]) -> None:
    """Compile mmcv in its source folder, so that the objects stay there; show the progress."""
    package = next(path for path in source.iterdir() if path.is_dir())
    command = pip_command('wheel', '-v', '--no-deps', '--no-build-isolation', '--wheel-dir',
                          source, package)
    with (wanted.log.open('a') as log,
          subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           errors='replace', env=env) as process):
        progress, lines = Progress(), []
        for line in process.stdout:
            log.write(line)
            lines.append(line)
            if found := re.match(r'\s*\[(\d+)/(\d+)\]', line):
                progress.show(*map(int, found.groups()))
    progress.end()
    if process.returncode:
        raise Problem(f'mmcv does not compile: {first_error("".join(lines))}\nIt needs a C++17 '
                      f"compiler, Python's headers (python3-dev) and {GB_OF_A_JOB} GB of memory "
                      f'for each file at a time. MAX_JOBS=1 needs the least. Log: {wanted.log}')


class Progress:
    """A progress line, rewritten on a terminal, otherwise printed once a minute."""

    def __init__(self) -> None:
        self.start = self.shown = time.monotonic()
        self.terminal = sys.stdout.isatty()

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self.terminal and now - self.shown < 60:
            return
        self.shown = now
        text = f'{done} of {total} objects after {(now - self.start) / 60:.0f} minutes'
        say(text, start='\r' if self.terminal else '', end='\x1b[K' if self.terminal else '\n')

    def end(self) -> None:
        if self.terminal:
            print('\r\x1b[K', end='', flush=True)


def pip_command(*args: object) -> list[str]:
    return [sys.executable, '-m', 'pip', '--disable-pip-version-check', *map(str, args)]


def pip(wanted: Wanted, *args: object, env: dict[str, str] | None = None) -> None:
    """Run pip, and append its output to the log.

    Raises:
        Problem: pip fails; the message has its first error.
    """
    done = subprocess.run(pip_command(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors='replace', env=env)
    with wanted.log.open('a') as log:
        log.write(f'=== pip {" ".join(map(str, args))}\n{done.stdout}')
    if done.returncode:
        index = '' if '--no-index' in args else (
            'Is the package index reachable? pip honours PIP_INDEX_URL and its other settings. ')
        raise Problem(f'pip {args[0]} fails: {first_error(done.stdout)}. {index}Log: {wanted.log}')


def first_error(output: str) -> str:
    """Return the first line of the output of a compiler, Python or pip that reports an error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = re.compile(r'(error|fatal)\s*:(?! Exception:$| subprocess-exited)|No space left', re.I)
    return next(filter(told.search, lines), lines[-1] if lines else 'no output')


def last_line(output: str) -> str:
    return (output.strip().splitlines() or ['no output'])[-1]


def say(text: str, start: str = '', end: str = '\n') -> None:
    print(f'{start}mmcv: {text}', end=end, flush=True)


if __name__ == '__main__':
    main()
