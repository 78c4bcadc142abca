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
        self.env = {key: value for key, value in os.environ.items()
                    if not key.startswith(('PIP_', 'MMCV_', 'CC', 'FORCE_', 'TORCH_', 'PYTHON'))}
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

    def start(self, *options, **env):
        return subprocess.Popen(
            [self.python, SCRIPT, 'mmcv==9.0', *options], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True, cwd=self.folder, env=self.env | env)

    def run(self, *options, **env):
        process = self.start(*options, **env)
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
    assert 'installing mmcv==9.0: it is not installed yet\n' in output
    assert re.search(r'skipping MMCV_WHEELS=\S+/wheels: .*mmcv==9\.0', output)
    assert re.search(r'compiling mmcv==9\.0 for the CPU: about \d+ minutes .* 1 files at', output)
    assert output.rstrip().endswith(
        'interrupted: what was compiled is kept. Run the same command again to continue')
    assert 'Traceback' not in output

    slow.unlink()
    status, output = machine.run()
    assert status == 0, output
    assert machine.compiled == ['first.cpp', 'second.cpp', 'second.cpp']
    wheel, folder = re.search(r'(mmcv-9\.0-cp3\S+), kept in (.*), is installed', output).groups()
    assert {path.name for path in Path(folder).iterdir()} == {'lock', 'install.log', wheel}
    assert machine.run() == (0, 'mmcv: mmcv==9.0 is installed and works\n')

    shutil.rmtree(machine.folder / 'index')
    uninstall = [machine.python, '-m', 'pip', 'uninstall', '--yes', 'mmcv']
    subprocess.run(uninstall, check=True, capture_output=True)
    assert machine.run()[0] == 0, 'it is installed from the wheel that was kept'
    subprocess.run(uninstall, check=True, capture_output=True)
    carried = dict(MMCV_WHEELS=folder, XDG_CACHE_HOME=str(machine.folder / 'other'))
    status, output = machine.run(**carried)
    assert status == 0
    assert f'{wheel}, from MMCV_WHEELS, is installed and works' in output
    assert len(machine.compiled) == 3


def test_what_does_not_compile(machine):
    machine.write_source(second='this is no C++')
    status, output = machine.run()
    assert status == 1
    assert re.search(r'\nerror: mmcv does not compile: \S*second\.cpp:1:1: error: ', output)
    assert 'Traceback' not in output.split('error: mmcv')[1]


@pytest.mark.parametrize(('output', 'told'), [
    ('c++ -Wno-error=a -c b.cpp\nb.cpp:1:1: error: no type\n', 'b.cpp:1:1: error: no type'),
    ('error: subprocess-exited-with-error\n| RuntimeError: g++ (8.5) is too old\n',
     '| RuntimeError: g++ (8.5) is too old'),
    ("ERROR: Exception:\nTraceback\nNo module named 'setuptools'\n",
     "No module named 'setuptools'"),
    ('nvcc fatal   : Unsupported gpu architecture\nerror: pip\n',
     'nvcc fatal   : Unsupported gpu architecture'),
    ('OSError: [Errno 28] No space left on device\n',
     'OSError: [Errno 28] No space left on device'),
    ('', 'no output'),
])
def test_the_first_error(output, told):
    assert install_mmcv.first_error(output) == told


def test_no_network(machine):
    shutil.rmtree(machine.folder / 'index')
    status, output = machine.run()
    assert status == 1
    assert re.search(r'\nerror: pip download fails: ERROR: Could not find a version.*mmcv==9\.0'
                     r'.*Is the package index reachable\? .*Log: ', output)


def test_what_does_not_work_is_replaced_by_what_does(machine):
    """As after an update of torch: operators of before, installed and kept; and mmcv-lite."""
    site = next(machine.folder.glob('venv/lib/python3*/site-packages'))
    (site / 'mmcv').mkdir()
    (site / 'mmcv/__init__.py').write_text('raise ImportError("_ext.so: undefined symbol")')
    for name in ('mmcv', 'mmcv_lite'):
        info = site / f'{name}-9.0.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n')
        (info / 'RECORD').write_text(
            ''.join(f'{file},,\n' for file in ('mmcv/__init__.py', f'{info.name}/METADATA',
                                               f'{info.name}/RECORD')))
    status, output = machine.run()
    assert status == 0, output
    assert 'installing mmcv==9.0: ImportError: _ext.so: undefined symbol\n' in output
    assert not (site / 'mmcv_lite-9.0.dist-info').exists()


def test_a_kept_wheel_that_is_broken_is_made_anew(machine):
    status, output = machine.run()
    assert status == 0, output
    wheel, = machine.folder.glob('sa_mmdet/*/*.whl')
    wheel.write_bytes(wheel.read_bytes()[:1000])
    shutil.rmtree(next(machine.folder.glob('venv/lib/python3*/site-packages/mmcv')))
    status, output = machine.run()
    assert status == 0, output
    assert re.search(rf'{wheel.name}, kept in \S+, does not work here: pip install fails', output)
    assert len(machine.compiled) == 4


def test_wheel_for_other_machines(machine):
    carried = machine.folder / 'wheels'
    status, output = machine.run('--wheel-dir', str(carried))
    assert status == 0, output
    wheel, = carried.iterdir()
    assert f'the wheel is {wheel}\n' in output
    assert not list(machine.folder.glob('venv/lib/python3*/site-packages/mmcv*'))


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Set what torch and nvidia-smi tell of the machine."""
    for name in ('FORCE_CUDA', 'TORCH_CUDA_ARCH_LIST', 'CUDA_HOME', 'CUDA_VISIBLE_DEVICES'):
        monkeypatch.delenv(name, raising=False)

    def set_up(cuda=None, hip=None, available=False, capabilities=(), smi=None, **env):
        monkeypatch.setattr(torch.version, 'cuda', cuda)
        monkeypatch.setattr(torch.version, 'hip', hip)
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: available)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda one: capabilities[one])
        answers = ''.join(f'*{field}*) printf "{text}" ;;\n' for field, text in (smi or {}).items())
        program(tmp_path / 'bin/nvidia-smi', f'case "$*" in\n{answers}*) exit 9 ;;\nesac')
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
    (dict(cuda='13.0', smi=dict(driver_version='No devices were found\\n')), None),
    (dict(cuda='13.0', available=True, smi=H100), '13.0'),
    (dict(cuda='12.6', FORCE_CUDA='1'), '12.6'),
    (dict(cuda='13.0', smi=H100, CUDA_VISIBLE_DEVICES='-1'), None),
    (dict(smi=H100), None),
], ids=['cpu', 'no_gpu', 'driver_without_gpu', 'gpu', 'forced', 'hidden', 'torch_for_the_cpu'])
def test_cuda_where_torch_has_it_and_there_is_a_gpu(gpu, machine_is, expected, capsys):
    gpu(**machine_is)
    assert install_mmcv.cuda_version() == expected
    said = capsys.readouterr().out
    assert ('built for the CPU and does not use this GPU' in said) == (machine_is == dict(smi=H100))


@pytest.mark.parametrize(('machine_is', 'message'), [
    (dict(FORCE_CUDA='1'), 'FORCE_CUDA=1, but torch .* is built for the CPU: install a torch with'),
    (dict(hip='6.4', available=True), 'torch .* is for ROCm'),
    (dict(cuda='13.0', smi=dict(H100, driver_version='550.54\\n')),
     r'cannot use .*: its driver is 550\.54, and CUDA 13\.0 may need a newer one\. Update'),
])
def test_cuda_that_cannot_be(gpu, machine_is, message):
    gpu(**machine_is)
    with pytest.raises(Problem, match=message):
        install_mmcv.cuda_version()


@pytest.mark.parametrize(('machine_is', 'expected'), [
    (dict(available=True, capabilities=[(9, 0), (8, 6), (9, 0)]), ('8.6', '9.0')),
    (dict(smi=dict(compute_cap='8.9\\n8.9\\n')), ('8.9', )),
    (dict(TORCH_CUDA_ARCH_LIST='9.0+PTX;8.0'), ('8.0', '9.0+PTX')),
    (dict(TORCH_CUDA_ARCH_LIST='8.0 Hopper;'), ('8.0', 'Hopper')),
])
def test_architectures_are_those_of_the_gpus_that_are_there(gpu, machine_is, expected):
    gpu(cuda='13.0', **machine_is)
    assert install_mmcv.cuda_architectures() == expected


def test_no_gpu_to_compile_for(gpu):
    gpu(cuda='13.0', FORCE_CUDA='1')
    with pytest.raises(Problem, match=r'no GPU is found: set TORCH_CUDA_ARCH_LIST .* 9\.0'):
        install_mmcv.cuda_architectures()


@pytest.fixture
def toolkits(monkeypatch, tmp_path):
    """Make the toolkits of the machine; those of the index are under tmp_path/nvidia."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('CXX', 'true')
    monkeypatch.delenv('CC', raising=False)
    packages = tmp_path / 'nvidia/cu13'
    for file in ('include/cublas.h', 'nvvm/bin/cicc', 'lib/libcudart.so.13', 'lib/libcudadevrt.a',
                 'lib/libnvrtc.alt.so.13'):
        (packages / file).parent.mkdir(parents=True, exist_ok=True)
        (packages / file).touch()
    monkeypatch.setattr(install_mmcv, 'find_spec', lambda name: SimpleNamespace(
        submodule_search_locations=[tmp_path / name, tmp_path / 'other']))
    asked = []
    monkeypatch.setattr(install_mmcv, 'pip', lambda wanted, *args: asked.append(args))

    def make(compiler='exit 0', index_compiler='exit 0', **versions):
        program(packages / 'bin/nvcc', index_compiler)
        for name, version in versions.items():
            program(tmp_path / name / 'bin/nvcc', f'[ "$1" != --version ] || '
                    f'{{ echo "release {version}, V"; exit; }}\n'
                    f'echo "$@" >>{tmp_path}/asked\n{compiler}')
        monkeypatch.setattr(install_mmcv, 'cuda_homes', lambda cuda: [
            tmp_path / name for name in ('absent', *versions)])

        def choose(cuda='13.0', architectures=('9.0', )):
            monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', ';'.join(architectures))
            return install_mmcv.cuda_toolkit(Wanted('mmcv', cuda)).name, asked
        return choose
    return make


@pytest.mark.parametrize(('machine_is', 'cuda'), [
    (dict(a='12.4', b='13.0'), '13.0'), (dict(a='11.8', b='12.6', c='12.1'), '12.4')],
    ids=['exact', 'cuda12_of_another_minor_version'])
def test_the_machines_toolkit_is_taken(toolkits, machine_is, cuda):
    assert toolkits(**machine_is)(cuda) == ('b', [])


def test_a_toolkit_is_tried_as_mmcv_will_use_it(toolkits, tmp_path, monkeypatch):
    monkeypatch.setenv('CC', 'gcc-14')
    toolkits(a='13.0')(architectures=('8.6', '9.0+PTX', 'Hopper'))
    asked = (tmp_path / 'asked').read_text()
    assert re.findall(r'-gencode=(\S+)', asked) == ['arch=compute_86,code=sm_86',
                                                   'arch=compute_90,code=sm_90']
    assert '-ccbin gcc-14' in asked
    assert f'-I{tmp_path}/a/include' in asked


@pytest.mark.parametrize(('machine_is', 'said'), [
    (dict(), ''),
    (dict(a='12.4'), 'skipping CUDA 12.4 in .*/a: torch .* has CUDA 13.0'),
    (dict(a='13.1'), 'skipping CUDA 13.1 in .*/a: torch .* has CUDA 13.0'),
    (dict(a='13.0', compiler='echo "fatal error: cusparse.h: No" >&2; exit 1'),
     'skipping CUDA 13.0 in .*/a: fatal error: cusparse.h: No'),
], ids=['none', 'older', 'newer', 'incomplete'])
def test_else_the_index_has_the_compiler_of_exactly_torchs_version(
        toolkits, machine_is, said, capsys):
    name, (asked, ) = toolkits(**machine_is)()
    assert name == 'cuda'
    assert set(asked[2:]) == {'nvidia-cuda-nvcc==13.0.*', 'nvidia-cuda-crt==13.0.*',
                              'nvidia-nvvm==13.0.*', 'nvidia-cuda-cccl==13.0.*'}
    output = capsys.readouterr().out
    assert re.search(f'{said}.*installing the CUDA 13.0 compiler from the package index', output,
                     re.DOTALL)


def test_layout_of_the_indexs_compiler(toolkits, tmp_path):
    """Packages may be in two folders, as in an environment upon another."""
    (tmp_path / 'other/cu13/include').mkdir(parents=True)
    (tmp_path / 'other/cu13/include/cusparse.h').touch()
    toolkits()()
    toolkits()()  # again, as after an interruption
    home, = tmp_path.glob('cache/sa_mmdet/*/cuda')
    assert {str(path.relative_to(home)) for path in home.rglob('*') if not path.is_dir()} == {
        'bin/nvcc', 'include/cublas.h', 'include/cusparse.h', 'lib/libcudadevrt.a',
        'lib/libcudart.so.13', 'lib/libnvrtc.alt.so.13', 'lib64/libcudadevrt.a',
        'lib64/libcudart.so', 'lib64/libnvrtc.alt.so'}
    assert (home / 'nvvm/bin/cicc').exists()
    assert (home / 'lib64/libcudart.so').exists()


@pytest.mark.parametrize(('machine_is', 'cuda', 'message'), [
    (dict(a='11.8'), '12.6',
     r'no compiler found for CUDA 12\.6.*Install the CUDA toolkit 12\.6 and set CUDA_HOME to it'),
    (dict(index_compiler='echo "error: unsupported GNU version!" >&2; exit 1'), '13.0',
     '13.0 from the package index does not compile here: error: unsupported GNU version!.*CXX'),
], ids=['cuda12', 'host_compiler'])
def test_no_compiler(toolkits, machine_is, cuda, message):
    with pytest.raises(Problem, match=message):
        toolkits(**machine_is)(cuda)


@pytest.mark.parametrize(('free', 'jobs', 'message'), [
    (10**9, '1', r'compiling mmcv needs \d GB in .*, but only 1\.0 GB are free: make room, or set'),
    (10**12, 'many', 'MAX_JOBS=many: expected a number of files'),
    (10**12, '0', 'MAX_JOBS=0: expected a number of files'),
])
def test_before_it_compiles(monkeypatch, tmp_path, free, jobs, message):
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: SimpleNamespace(free=free))
    monkeypatch.setenv('MAX_JOBS', jobs)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    with pytest.raises(Problem, match=message):
        install_mmcv.build(Wanted('mmcv==9.0'))


@pytest.fixture
def checked(monkeypatch):
    """Set what the check of an installed mmcv 9.0 ends with."""
    monkeypatch.setattr(install_mmcv, 'installed', lambda name: '9.0')

    def end(returncode, stdout='', stderr=''):
        done = SimpleNamespace(returncode=returncode, stdout=stdout, stderr=stderr)
        monkeypatch.setattr(subprocess, 'run', lambda *args, **kwargs: done)
    return end


@pytest.mark.parametrize(('end', 'message'), [
    (dict(returncode=1, stderr="ModuleNotFoundError: No module named 'mmengine'"),
     "a package that mmcv needs is not installed: ModuleNotFoundError: No module named 'mmengine'"),
    (dict(returncode=install_mmcv.GPU_FAILS, stderr='CUDA out of memory'),
     'torch cannot use the GPU now: CUDA out of memory'),
], ids=['requirement', 'busy_gpu'])
def test_what_another_mmcv_would_not_mend(checked, end, message):
    checked(**end)
    with pytest.raises(Problem, match=message):
        install_mmcv.problem_of_installed(Wanted('mmcv==9.0'))


@pytest.mark.parametrize(('end', 'wanted', 'problem'), [
    (dict(returncode=0, stdout='13.0\n'), Wanted('mmcv==9.0', '13.0'), None),
    (dict(returncode=0, stdout='13.0\n'), Wanted('mmcv==9.0'), None),
    (dict(returncode=0, stdout='loaded\nnot available\n'), Wanted('mmcv'), None),
    (dict(returncode=0, stdout='not available\n'), Wanted('mmcv==9.0', '13.0'),
     'its operators are compiled for the CPU only, but torch has CUDA 13.0'),
    (dict(returncode=1, stderr="No module named 'mmcv._ext'"), Wanted('mmcv'),
     "No module named 'mmcv._ext'"),
    (dict(returncode=0, stdout='13.0\n'), Wanted('mmcv==9.1'), 'mmcv 9.0 is installed'),
])
def test_whether_the_installed_mmcv_is_the_one_that_is_wanted(checked, end, wanted, problem):
    checked(**end)
    assert install_mmcv.problem_of_installed(wanted) == problem


@pytest.mark.parametrize(('installed', 'expected'), [
    ({'mmcv': '2.1.0+cu121', 'mmdet': '3.3.0'}, 'mmcv==2.1.0'),
    ({'mmdet': '3.3.0'}, 'mmcv==2.1.0'),
    ({'onedl-mmcv': '2.3.6', 'mmcv': '2.1.0', 'onedl-mmdetection': '3.5.1'}, 'onedl-mmcv==2.3.6'),
    ({'onedl-mmdetection': '3.5.1'}, 'onedl-mmcv'),
])
def test_the_mmcv_of_the_installed_mmdetection(monkeypatch, installed, expected):
    def version(name):
        if name not in installed:
            raise install_mmcv.metadata.PackageNotFoundError
        return installed[name]
    monkeypatch.setattr(install_mmcv.metadata, 'version', version)
    assert install_mmcv.default_requirement() == expected
