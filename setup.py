"""pyproject.toml describes the package; this adds the folder in which MIM looks for its configs."""
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


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
    except OSError:  # not every file system and every user can make links
        return False
    return True


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
    else:
        shutil.copy2(source, target)


setup(cmdclass={'build_py': BuildPyWithMim})
