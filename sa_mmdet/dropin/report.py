"""The page of what the families of configs do with attention, of the results of all stacks."""
from collections.abc import Callable, Iterator
from pathlib import Path

from ..checkpoint.files import write_atomically
from .changes import BACKBONE, PLUGIN
from .matrix import CANNOT_RUN, FAILS, WORKS, MatrixError, read_results

BEGIN, END = '<!-- dropin: begin -->', '<!-- dropin: end -->'
NEW_PAGE = f"""# Compatibility

What sa_mmdet was tried with.

{BEGIN}
{END}
"""
INTRODUCTION = """## In MMDetection's own configs

Written by `make dropin`. A config of every family (folder) of MMDetection's zoo whose backbone
takes plugins gets shuffle attention in every bottleneck: by the *plugin* `ShuffleAttention` at
`after_conv3`, and where the backbone is a `ResNet`, by `SAResNet` in its place. Each detector is
built without pretrained weights, computes loss and gradients of two small random images (or two
frames), and predicts, on a CPU. It *works* if the loss is finite, every attention parameter that
is not frozen has a finite gradient other than zero, and there are predictions. What does not work
is tried again as MMDetection has it, without attention: it *cannot run* here if that stops for the
same reason, and *fails* if only attention stops it."""
ROUTES = (PLUGIN, BACKBONE)
NONE = '–'


def write_page(docs: Path) -> Path:
    """Render ``docs/dropin/*.json`` into docs/compatibility.md, between the two markers only.

    The page is made where it is missing. Raises MatrixError where it has not both markers.
    """
    page = docs / 'compatibility.md'
    text = page.read_text() if page.is_file() else NEW_PAGE
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise MatrixError(f'{page} has not both lines {BEGIN} and {END}, between which the results '
                          'belong: add them, or remove the page to have it written anew')
    write_atomically(page, f'{before}{BEGIN}\n{render(read_stacks(docs / "dropin"))}\n{END}{after}')
    return page


def read_stacks(folder: Path) -> dict[str, dict]:
    """The results of all stacks, the default one first."""
    results = [read_results(file) for file in sorted(folder.glob('*.json'))]
    results.sort(key=lambda result: result['versions']['stack'] != 'openmmlab')
    return {result['versions']['stack']: result for result in results}


def render(stacks: dict[str, dict]) -> str:
    """The part of the page that is written: counts, the table of families, the other families."""
    families = {stack: {row['family']: row for row in result['rows']}
                for stack, result in stacks.items()}
    names = sorted({name for rows in families.values() for name in rows})
    lines = [INTRODUCTION, '', *_counts(stacks), '', *_table(names, families), '',
             'Families without a backbone that takes plugins, which were not tried: '
             + '; '.join(_others(names, families)) + '.']
    return '\n'.join(lines)


def row_in_words(row: dict) -> str:
    """A row in a line, for a terminal."""
    if not row['routes']:
        return f'{row["family"]}: not tried: {row["backbone"]}'
    routes = '; '.join(', '.join([f'{route} {result["outcome"]}', *_notes(result)])
                       for route, result in row['routes'].items())
    return f'{row["config"]} ({row["backbone"]}): {routes}'


def _counts(stacks: dict[str, dict]) -> list[str]:
    lines = _header(['stack', 'families tried', 'work', 'by plugin', 'by SAResNet', CANNOT_RUN,
                     'fail', 'versions'])
    for stack, result in stacks.items():
        tried = [{route: value['outcome'] for route, value in row['routes'].items()}
                 for row in result['rows'] if row['routes']]
        versions = ', '.join(f'{name} {version}' for name, version in result['versions'].items()
                             if name not in ('stack', 'sa_mmdet'))
        lines.append(_line([
            stack, len(tried), sum(set(routes.values()) == {WORKS} for routes in tried),
            *(_working(tried, route) for route in ROUTES),
            *(sum(outcome in routes.values() for routes in tried)
              for outcome in (CANNOT_RUN, FAILS)), versions]))
    return lines


def _working(tried: list[dict[str, str]], route: str) -> str:
    outcomes = [routes[route] for routes in tried if route in routes]
    return f'{outcomes.count(WORKS)} of {len(outcomes)}'


def _table(names: list[str], families: dict[str, dict]) -> list[str]:
    lines = _header(['family', 'config', 'backbone', 'plugin', 'SAResNet', 'remarks'])
    for name in names:
        rows = {stack: rows[name] for stack, rows in families.items()
                if name in rows and rows[name]['routes']}
        if rows:
            lines.append(_line([
                name,
                _common(rows, lambda row: f'`{Path(row["config"]).stem}`'),
                _common(rows, lambda row: row['backbone']),
                *(_common(rows, lambda row, route=route: _outcome(row, route))
                  for route in ROUTES),
                '; '.join(_remarks(rows, set(families)))]))
    return lines


def _common(rows: dict[str, dict], cell: Callable[[dict], str]) -> str:
    """A cell: once if it is the same on all stacks, otherwise each with its stack."""
    cells = {stack: cell(row) for stack, row in rows.items()}
    if len(set(cells.values())) == 1:
        return next(iter(cells.values()))
    return '<br>'.join(f'{stack}: {text}' for stack, text in cells.items())


def _outcome(row: dict, route: str) -> str:
    return row['routes'][route]['outcome'] if route in row['routes'] else NONE


def _remarks(rows: dict[str, dict], stacks: set[str]) -> Iterator[str]:
    """What there is to say of a family, with its stack where it is not of all."""
    if set(rows) != stacks:
        yield f'only in {", ".join(rows)}'
    told = {}
    for stack, row in rows.items():
        for result in row['routes'].values():
            for note in _notes(result):
                told.setdefault(note, dict.fromkeys([stack]))[stack] = None
    for note, where in told.items():
        yield note if set(where) == set(rows) else f'{", ".join(where)}: {note}'


def _notes(result: dict) -> list[str]:
    return [*([result['reason']] if 'reason' in result else []), *result['remarks']]


def _others(names: list[str], families: dict[str, dict]) -> Iterator[str]:
    for name in names:
        rows = [rows[name] for rows in families.values() if name in rows]
        if not any(row['routes'] for row in rows):
            yield f'{name} ({rows[0]["backbone"]})'


def _header(titles: list[str]) -> list[str]:
    return [_line(titles), _line(['---'] * len(titles))]


def _line(cells: list) -> str:
    return '| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in cells) + ' |'
