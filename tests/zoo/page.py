"""Write the results of detectors.py to docs/zoo/<stack>.json and docs/compatibility.md."""
import json
from collections.abc import Iterable
from pathlib import Path

from sa_mmdet.environment import versions
from zoo.families import ROUTES, family_names

DOCS = Path(__file__).parents[2] / 'docs'
PAGE = DOCS / 'compatibility.md'
BEGIN, END = '<!-- zoo: begin -->\n', '\n<!-- zoo: end -->'
WORKS, CANNOT_RUN, FAILS = 'works', 'cannot run', 'fails'
INTRODUCTION = """## In MMDetection's own configs

`make zoo` writes this. A config of every family (folder) of MMDetection's zoo gets shuffle
attention:

- In every bottleneck, if the backbone takes plugins, by the *plugin* `ShuffleAttention` at
  `after_conv3`. A `ResNet` is tried once more, replaced by `SAResNet`.
- Otherwise by `FeatureAttention`, on the maps with more than one position behind the neck, or
  behind the backbone if the neck gives none.

Each detector is built without pretrained weights. On a CPU, it computes loss and gradients of two
small random images (or two frames), and predicts. It *works* if the loss is finite, there are
predictions, and every attention parameter that isn't frozen has a finite gradient other than zero
(for `FeatureAttention`, in one of its layers). If it doesn't work, it is tried without attention.
It *cannot run* here if that stops for the same reason, and *fails* if only attention stops it."""


def write(results: list[tuple[str, str | None, str, str, dict]]) -> str:
    """Put results into those of the same versions, and into the page; return what was done.

    Args:
        results: name, config and backbone of a family, the route, and its result, which is empty
            if the route does not lead into that backbone.
    """
    file = DOCS / 'zoo' / f'{versions()["stack"]}.json'
    earlier = json.loads(file.read_text()) if file.is_file() else {}
    rows = {}
    if earlier.get('versions') == versions():
        rows = {row['family']: row for row in earlier['rows']}
    elif len(results) < len(family_names()) * len(ROUTES):
        return f'{file} is of other versions, and stays: only a run of all families replaces it'
    in_order = sorted(results, key=lambda attempt: ROUTES.index(attempt[3]))
    for name, config, backbone, route, result in in_order:
        row = rows.setdefault(name, {})
        row |= dict(family=name, config=config, backbone=backbone, routes=row.get('routes', {}))
        row['routes'] |= {route: result} if result else {}
    content = dict(versions=versions(), rows=[rows[name] for name in sorted(rows)])
    file.write_text(json.dumps(content, indent=1) + '\n')
    PAGE.write_text(page())
    return f'written: {file}, {PAGE}'


def page() -> str:
    """Return the page with the results of all stacks between its two markers."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + _render() + END + rest.partition(END)[2]


def _render() -> str:
    files = sorted((DOCS / 'zoo').glob('*.json'), reverse=True)  # openmmlab, the default, first
    stacks = {file.stem: json.loads(file.read_text()) for file in files}
    families = {}
    for stack, results in stacks.items():
        for row in results['rows']:
            families.setdefault(row['family'], {})[stack] = row
    tried, others = [], []
    for name, rows in sorted(families.items()):
        if with_routes := {stack: row for stack, row in rows.items() if row['routes']}:
            tried.append(_family(name, with_routes, len(stacks)))
        else:
            others.append(f'{name} ({next(iter(rows.values()))["backbone"]})')
    return '\n'.join([
        INTRODUCTION, '',
        *_table('stack, families tried, work, by plugin, by SAResNet, by FeatureAttention, '
                'cannot run, fail, versions',
                [_counts(stack, results) for stack, results in stacks.items()]), '',
        *_table('family, config, backbone, plugin, SAResNet, FeatureAttention, remarks', tried), '',
        'Families that were not tried, because they have no MMDetection detector that can be built '
        f'here: {", ".join(others)}.'])


def _counts(stack: str, results: dict) -> list:
    tried = [{route: result['outcome'] for route, result in row['routes'].items()}
             for row in results['rows'] if row['routes']]
    by_route = [[outcomes[route] for outcomes in tried if route in outcomes] for route in ROUTES]
    return [stack, len(tried), sum(set(outcomes.values()) == {WORKS} for outcomes in tried),
            *(f'{outcomes.count(WORKS)} of {len(outcomes)}' for outcomes in by_route),
            *(sum(word in outcomes.values() for outcomes in tried) for word in (CANNOT_RUN, FAILS)),
            ', '.join(f'{name} {version}' for name, version in results['versions'].items()
                      if name not in ('stack', 'sa_mmdet'))]


def _family(name: str, rows: dict[str, dict], stacks: int) -> list[str]:
    columns = zip(*([
        f'`{Path(row["config"]).stem}`', row['backbone'],
        *(row['routes'].get(route, {}).get('outcome', '–') for route in ROUTES)]
        for row in rows.values()), strict=True)
    remarks = {}
    for stack, row in rows.items():
        for result in row['routes'].values():
            for remark in [result.get('reason'), *result['remarks']]:
                remarks.setdefault(remark, {})[stack] = None
    notes = [f'only in {", ".join(rows)}'] if len(rows) < stacks else []
    notes += [remark if len(where) == len(rows) else f'{", ".join(where)}: {remark}'
              for remark, where in remarks.items() if remark]
    return [name, *(_merged(rows, column) for column in columns), '; '.join(notes)]


def _merged(stacks: Iterable[str], texts: tuple[str, ...]) -> str:
    """Return a cell: once if it is the same on all stacks, otherwise each with its stack."""
    if len(set(texts)) == 1:
        return texts[0]
    return '<br>'.join(f'{stack}: {text}' for stack, text in zip(stacks, texts, strict=True))


def _table(titles: str, rows: list[list]) -> list[str]:
    header = titles.split(', ')
    return ['| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in row) + ' |'
            for row in [header, ['---'] * len(header), *rows]]
