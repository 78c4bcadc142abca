"""The prose linter finds what it should, and leaves code and tables alone."""
import pytest

from pages import PAGES, ROOT

pytest.importorskip('proselint', reason='proselint is not installed: make install')
import prose

SHORT = 'A short sentence. ' * 9


@pytest.mark.parametrize(('text', 'line', 'message'), [
    ('One.\n\nIt is mended now.', 3, 'Write "fix", not "mended".'),
    ('Where there is a GPU, use it.', 1, 'Write "If", not "Where there".'),
    ('This is so: it joins.', 1, '": it" joins two ideas. Write two sentences.'),
    (f'{SHORT}\n- It has {"word " * 34}.', 2, 'This sentence has 36 words. Write at most 35.'),
    (f'{"word " * 17}', 1, 'The mean sentence has 17.0 words. Write at most 16.'),
    ('One of those\n  of two.', 1, 'Write the noun, not "those\n  of".'),
    (f'A first sentence. mmcv begins {"word " * 32}. {SHORT * 2}', None, None),
    ('Start it where the config is.', None, None),
    ('# A heading alone', None, None),
    ('`mended`\n\n```bash\nmended\n```\n\n[a page](mended.md)', None, None),
    (f'# {"word " * 40}\n\n| {"word " * 40} |\n\n1. A list.', None, None),
    (f'`{"word " * 40}` is one word. So is [this]({"x" * 99}).', None, None),
])
def test_problems(text, line, message):
    found = [(line, text) for line, _, text in prose.problems(text)]
    assert found == ([(line, message)] if message else [])


@pytest.mark.parametrize(('problems', 'status'), [([], 0), ([(2, 7, 'Write "fix".')], 1)],
                         ids=['good', 'bad'])
def test_all_pages_are_linted(monkeypatch, capsys, problems, status):
    monkeypatch.setattr(prose, 'problems', lambda page: problems)
    with pytest.raises(SystemExit) as end:
        prose.main()
    assert end.value.code == status
    lines = [f'{page.relative_to(ROOT)}:2:7: Write "fix".' for page in PAGES]
    assert capsys.readouterr().out.splitlines() == (lines if problems else [])
