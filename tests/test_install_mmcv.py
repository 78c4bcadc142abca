"""tools/install_mmcv.py: how mmcv comes to be one that works, on a small one in its place."""
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / 'tools/install_mmcv.py'
spec = importlib.util.spec_from_file_location('install_mmcv', SCRIPT)
install_mmcv = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = install_mmcv  # where dataclasses look
spec.loader.exec_module(install_mmcv)
Problem, Wanted = install_mmcv.Problem, install_mmcv.Wanted

SETUP = '''
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension
setup(name='mmcv', version='9.0', packages=['mmcv', 'mmcv.ops'],
      ext_modules=[CppExtension('mmcv._ext', ['first.cpp', 'second.cpp'])],
      cmdclass={'build_ext': BuildExtension})
'''
FIRST = '''
#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ext"};
PyMODINIT_FUNC PyInit__ext() { return PyModule_Create(&module); }
'''
OPS = '''
import mmcv._ext
get_compiling_cuda_version = lambda: 'not available'
nms = lambda boxes, scores, threshold: (None, [0, 2])
'''
# A compiler that takes down what it compiles, and is slow at the second file while there is 'slow'.
COMPILER = '''#!/bin/sh
for word; do case $word in *.cpp) echo "$(basename "$word")" >>"{0}/compiled"
    case $word in *second.cpp) [ ! -e "{0}/slow" ] || sleep 60 ;; esac ;; esac; done
exec c++ "$@"
'''


class Machine:
    """An environment with torch and without mmcv, and an index with the source of mmcv 9.0."""

    def __init__(self, folder):
        self.folder = folder
        subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder / 'venv'], check=True)
        self.python = folder / 'venv/bin/python'
        visible = folder / 'visible'
        visible.mkdir()
        for package in Path(torch.__file__).parents[1].iterdir():
            if not re.match(r'(onedl[-_])?mm|__editable__', package.name):
                (visible / package.name).symlink_to(package)
        (next(folder.glob('venv/lib/python3*/site-packages')) / 'visible.pth').write_text(
            str(visible))
        self.write_source(second='int second() { return 2; }')
        (folder / 'compiler').write_text(COMPILER.format(folder))
        (folder / 'compiler').chmod(0o755)
        (folder / 'wheels').mkdir()
        self.env = {key: value for key, value in os.environ.items() if not key.startswith('PIP_')}
        self.env |= dict(
            PIP_NO_INDEX='1', PIP_FIND_LINKS=str(folder / 'index'), XDG_CACHE_HOME=str(folder),
            CXX=str(folder / 'compiler'), MAX_JOBS='1', CUDA_VISIBLE_DEVICES='')

    def write_source(self, second):
        source = self.folder / 'mmcv-9.0'
        (source / 'mmcv/ops').mkdir(parents=True, exist_ok=True)
        for name, text in {'setup.py': SETUP, 'first.cpp': FIRST, 'second.cpp': second,
                           'mmcv/__init__.py': '', 'mmcv/ops/__init__.py': OPS}.items():
            (source / name).write_text(text)
        (self.folder / 'index').mkdir(exist_ok=True)
        with tarfile.open(self.folder / 'index/mmcv-9.0.tar.gz', 'w:gz') as archive:
            archive.add(source, 'mmcv-9.0')

    def start(self, **env):
        return subprocess.Popen(
            [self.python, SCRIPT, 'mmcv==9.0'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True, cwd=self.folder, env=self.env | env)

    def run(self, **env):
        process = self.start(**env)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    @property
    def compiled(self):
        file = self.folder / 'compiled'
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_interrupted_it_goes_on_and_what_was_compiled_is_kept(machine):
    slow = machine.folder / 'slow'
    slow.touch()
    process = machine.start(MMCV_WHEELS=str(machine.folder / 'wheels'))
    deadline = time.monotonic() + 60
    while 'second.cpp' not in machine.compiled and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert 'mmcv==9.0 is to be installed: mmcv is not there' in output
    assert re.search(r'MMCV_WHEELS=\S+/wheels has no wheel for this Python: .*mmcv==9\.0', output)
    assert 'compiling mmcv==9.0 for the CPU: about 15 minutes with 1 jobs' in output
    assert output.rstrip().endswith(
        'interrupted: what was compiled is kept, run the same command again to go on')
    assert 'Traceback' not in output

    slow.unlink()
    status, output = machine.run()
    assert status == 0, output
    assert machine.compiled == ['first.cpp', 'second.cpp', 'second.cpp']
    folder = Path(re.search(r'mmcv==9.0 works; its wheel is kept in (.*)\n', output)[1])
    wheel, = (path.name for path in folder.iterdir() if path.name not in ('lock', 'install.log'))
    assert wheel.startswith('mmcv-9.0-cp3')
    assert machine.run() == (0, 'mmcv: mmcv==9.0 is installed and works\n')

    shutil.rmtree(machine.folder / 'index')
    uninstall = [machine.python, '-m', 'pip', 'uninstall', '--yes', 'mmcv']
    subprocess.run(uninstall, check=True, capture_output=True)
    assert machine.run()[0] == 0, 'it is installed from the wheel that was kept'
    subprocess.run(uninstall, check=True, capture_output=True)
    carried = dict(MMCV_WHEELS=str(folder), XDG_CACHE_HOME=str(machine.folder / 'other'))
    status, output = machine.run(**carried)
    assert status == 0
    assert f'{wheel} of MMCV_WHEELS works' in output
    assert len(machine.compiled) == 3


def test_what_does_not_compile(machine):
    machine.write_source(second='this is no C++')
    status, output = machine.run()
    assert status == 1
    assert re.search(r'\nerror: mmcv does not compile: \S*second\.cpp:1:1: error: ', output)
    assert 'Traceback' not in output.split('error: mmcv')[1]


def test_no_network(machine):
    shutil.rmtree(machine.folder / 'index')
    status, output = machine.run()
    assert status == 1
    assert re.search(r'\nerror: pip download fails: ERROR: Could not find a version.*mmcv==9\.0'
                     r'.* \(log: \S+; pip honours PIP_INDEX_URL', output)


def test_one_that_does_not_load_is_replaced(machine):
    """As after an update of torch: it has the version that is wanted, and operators of before."""
    broken = next(machine.folder.glob('venv/lib/python3*/site-packages'))
    (broken / 'mmcv').mkdir()
    (broken / 'mmcv/__init__.py').write_text('raise ImportError("_ext.so: undefined symbol")')
    (broken / 'mmcv-9.0.dist-info').mkdir()
    (broken / 'mmcv-9.0.dist-info/METADATA').write_text('Metadata-Version: 2.1\nName: mmcv\n'
                                                        'Version: 9.0\n')
    (broken / 'mmcv-9.0.dist-info/RECORD').write_text('mmcv/__init__.py,,\n')
    status, output = machine.run()
    assert status == 0, output
    assert 'is to be installed: ImportError: _ext.so: undefined symbol' in output


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Set what torch and nvidia-smi tell of the machine."""
    for name in ('FORCE_CUDA', 'TORCH_CUDA_ARCH_LIST', 'CUDA_HOME', 'CUDA_VISIBLE_DEVICES'):
        monkeypatch.delenv(name, raising=False)

    def set_up(cuda=None, available=False, capabilities=(), smi=None, **env):
        monkeypatch.setattr(torch.version, 'cuda', cuda)
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: available)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda one: capabilities[one])
        if smi:
            answers = ''.join(f'*{field}*) printf "{text}" ;;\n' for field, text in smi.items())
            program(tmp_path / 'bin/nvidia-smi', f'case "$*" in\n{answers}esac')
        monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
        for name, value in env.items():
            monkeypatch.setenv(name, value)
    return set_up


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)


H100 = dict(driver_version='580.65.06\\n', compute_cap='9.0\\n')


@pytest.mark.parametrize(('machine_is', 'expected'), [
    (dict(), None),
    (dict(cuda='13.0'), None),
    (dict(cuda='13.0', available=True, smi=H100), '13.0'),
    (dict(cuda='12.6', FORCE_CUDA='1'), '12.6'),
    (dict(cuda='13.0', smi=H100, CUDA_VISIBLE_DEVICES=''), None),
    (dict(smi=H100), None),
], ids=['cpu', 'no_gpu', 'gpu', 'forced', 'hidden_gpu', 'gpu_but_torch_for_cpu'])
def test_cuda_where_torch_has_it_and_there_is_a_gpu(gpu, machine_is, expected, capsys):
    gpu(**machine_is)
    assert install_mmcv.cuda_version() == expected
    said = capsys.readouterr().out
    assert ('built for the CPU and does not use the GPU' in said) == (machine_is == dict(smi=H100))


@pytest.mark.parametrize(('machine_is', 'message'), [
    (dict(FORCE_CUDA='1'), 'FORCE_CUDA=1, but torch .* is built for the CPU: install one with'),
    (dict(cuda='13.0', smi=dict(H100, driver_version='550.54\\n')),
     r'torch \S+ cannot use: its driver is 550\.54, CUDA 13\.0 may need a newer one\. Update it'),
])
def test_cuda_that_cannot_be(gpu, machine_is, message):
    gpu(**machine_is)
    with pytest.raises(Problem, match=message):
        install_mmcv.cuda_version()


@pytest.mark.parametrize(('machine_is', 'expected'), [
    (dict(available=True, capabilities=[(9, 0), (8, 6), (9, 0)]), ('8.6', '9.0')),
    (dict(smi=dict(compute_cap='8.9\\n8.9\\n')), ('8.9', )),
    (dict(TORCH_CUDA_ARCH_LIST='8.0;9.0+PTX'), ('8.0', '9.0+PTX')),
    (dict(TORCH_CUDA_ARCH_LIST='8.0 9.0'), ('8.0', '9.0')),
])
def test_architectures_are_those_of_the_gpus_that_are_there(gpu, machine_is, expected):
    gpu(cuda='13.0', **machine_is)
    assert install_mmcv.cuda_architectures() == expected


def test_no_gpu_to_compile_for(gpu):
    gpu(cuda='13.0', FORCE_CUDA='1')
    with pytest.raises(Problem, match=r'for which is to be compiled.*TORCH_CUDA_ARCH_LIST=9\.0'):
        install_mmcv.cuda_architectures()


@pytest.fixture
def toolkits(monkeypatch, tmp_path):
    """A function that makes the toolkits of the machine; the index's is in tmp_path/index."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    packages = tmp_path / 'index/nvidia/cu13'
    for name in ('bin', 'include', 'nvvm', 'lib'):
        (packages / name).mkdir(parents=True)
    for library in ('libcudart.so.13', 'libcudart_static.a', 'libnvrtc.alt.so.13'):
        (packages / 'lib' / library).touch()
    monkeypatch.setattr(install_mmcv.metadata, 'distribution', lambda name: SimpleNamespace(
        locate_file=lambda path: tmp_path / 'index' / path))
    asked = []
    monkeypatch.setattr(install_mmcv, 'pip', lambda wanted, *args: asked.append(args))

    def make(compiler='exit 0', index_compiler='exit 0', **versions):
        program(packages / 'bin/nvcc', index_compiler)
        homes = []
        for name, version in versions.items():
            home = tmp_path / name
            (home / 'include').mkdir(parents=True)
            (home / 'include/cuda_runtime.h').touch()
            program(home / 'bin/nvcc', f'[ "$1" != --version ] || {{ echo "release {version}, V";'
                    f' exit; }}\n{compiler}')
            homes.append(home)
        monkeypatch.setattr(install_mmcv, 'cuda_homes', lambda cuda: homes)

        def choose(cuda='13.0'):
            return install_mmcv.cuda_toolkit(Wanted('mmcv', cuda, ('9.0', ))).name, asked
        return choose
    return make


def test_the_machines_toolkit_of_torchs_version_is_taken(toolkits):
    assert toolkits(a='12.4', b='13.0')() == ('b', [])


@pytest.mark.parametrize('machine_is', [
    dict(), dict(a='12.4'), dict(a='13.1'), dict(a='13.0', compiler='echo "cusparse.h"; exit 1')],
    ids=['none', 'older', 'newer', 'incomplete'])
def test_else_the_index_has_the_compiler_of_exactly_torchs_version(toolkits, machine_is, capsys):
    name, (asked, ) = toolkits(**machine_is)()
    assert name == 'cuda'
    assert set(asked[2:]) == {'nvidia-cuda-nvcc==13.0.*', 'nvidia-cuda-crt==13.0.*',
                              'nvidia-nvvm==13.0.*', 'nvidia-cuda-cccl==13.0.*'}
    said = capsys.readouterr().out
    assert 'the compiler of CUDA 13.0 is taken from the package index' in said
    assert bool(machine_is) == (f'{machine_is.get("a")} of ' in said)


def test_layout_of_the_indexs_compiler(toolkits, tmp_path):
    toolkits()()
    toolkits()()  # again, as after an interruption
    home, = tmp_path.glob('cache/sa_mmdet/*/cuda')
    assert {path.name for path in (home / 'lib64').iterdir()} == {
        'libcudart.so', 'libcudart_static.a', 'libnvrtc.alt.so'}
    assert (home / 'lib64/libcudart.so').exists()
    assert (home / 'bin/nvcc').exists()


@pytest.mark.parametrize(('machine_is', 'cuda', 'message'), [
    (dict(), '12.6', r'no compiler of CUDA 12\.6.*Install the CUDA toolkit 12\.6 and set CUDA_'),
    (dict(index_compiler='echo "error: unsupported GNU version!" >&2; exit 1'), '13.0',
     'CUDA 13.0 of the package index does not compile here: error: unsupported GNU version!'),
], ids=['cuda12', 'host_compiler'])
def test_no_compiler(toolkits, machine_is, cuda, message):
    with pytest.raises(Problem, match=message):
        toolkits(**machine_is)(cuda)


@pytest.mark.parametrize(('free', 'jobs', 'message'), [
    (10**9, '1', r'compiling mmcv needs \d GB in .*, 1\.0 are free: make room, or set XDG_CACHE_'),
    (10**12, 'many', 'MAX_JOBS=many: must be a number of files'),
    (10**12, '0', 'MAX_JOBS=0: must be a number of files'),
])
def test_before_it_compiles(monkeypatch, tmp_path, free, jobs, message):
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: SimpleNamespace(free=free))
    monkeypatch.setenv('MAX_JOBS', jobs)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    with pytest.raises(Problem, match=message):
        install_mmcv.build(Wanted('mmcv==9.0'))


def test_what_mmcv_requires_is_missing(monkeypatch):
    """Compiling would not help, and what was compiled is not at fault."""
    monkeypatch.setattr(install_mmcv, 'installed', lambda name: '9.0')
    done = SimpleNamespace(returncode=1, stderr="ModuleNotFoundError: No module named 'mmengine'")
    monkeypatch.setattr(subprocess, 'run', lambda *args, **kwargs: done)
    with pytest.raises(Problem, match="requires more: ModuleNotFoundError: No module named 'mmen"):
        install_mmcv.problem_of_installed(Wanted('mmcv==9.0'))
    done.stderr = "ModuleNotFoundError: No module named 'mmcv._ext'"
    assert install_mmcv.problem_of_installed(Wanted('mmcv==9.0')) == done.stderr


def test_mmcv_for_the_cpu_under_a_torch_that_uses_the_gpu(monkeypatch):
    monkeypatch.setattr(install_mmcv, 'installed', lambda name: '9.0')
    done = SimpleNamespace(returncode=0, stdout='loaded\nnot available\n')
    monkeypatch.setattr(subprocess, 'run', lambda *args, **kwargs: done)
    problem = install_mmcv.problem_of_installed
    with_cuda, without = Wanted('mmcv==9.0', '13.0'), Wanted('mmcv==9.0')
    assert problem(with_cuda) == ('its operators are compiled for the CPU alone, torch is for '
                                  'CUDA 13.0')
    assert problem(without) is None
    done.stdout = '13.0\n'
    assert problem(with_cuda) is None
    assert problem(without) is None
    assert problem(Wanted('mmcv==9.1')) == 'mmcv 9.0 is there'
