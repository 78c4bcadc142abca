import runpy
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[3] / 'tools/benchmark.py'


@pytest.fixture
def run_tool(monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
        code = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as exit_:
            code = exit_.code
        output = capsys.readouterr()
        return code, f'{output.out}{output.err}{code}'
    return run
