"""Charts of the paper's tables."""
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..plots import COLOURS, png, style
from .tables import DECIMALS, METRICS, NAMES, TASKS, Summary

KIND_COLOURS = {'none': COLOURS['grey'], 'SE': COLOURS['orange'], 'CBAM': COLOURS['purple'],
                'ECA': COLOURS['sky blue'], 'SGE': COLOURS['green'], 'SA': COLOURS['vermilion']}


def draw_table(table: int, summaries: list[Summary]) -> bytes:
    """Draw the first metric of every row, and its gain over the row without attention, as a PNG.

    In Table 1 the gain is over the whole module. Bars show what was measured, with the standard
    deviation over seeds. Black lines show the paper's values, if both are for the same images. A
    row that was not run has no bar.
    """
    comparable = all(summary.comparable for summary in summaries)
    task = TASKS[table]
    first = METRICS[task][0]
    figure = Figure(figsize=(11, 8), layout='constrained')
    upper, lower = figure.subplots(2)
    _draw(upper, summaries, comparable, f'{NAMES[task]} (%)', lambda s: s.measured.get(first),
          lambda s: s.row.metrics[first])
    compared = [summary for summary in summaries if summary.paper_gain is not None]
    _draw(lower, compared, comparable,
          f'gain in {NAMES[task]}\nover {"origin" if table == 1 else "ResNet"} (points)',
          lambda s: s.gain, lambda s: s.paper_gain)
    upper.legend(*_legend(summaries, comparable), ncols=7, loc='lower left',
                 bbox_to_anchor=(0, 1.02), frameon=False)
    labels = dict.fromkeys(s.evaluated_on for s in summaries if s.evaluated_on)
    title = f', measured on {"; ".join(labels)}' if labels else ': no row was run'
    figure.suptitle(f'Table {table}{title}', x=0.01, ha='left', fontsize='large')
    return png(figure)


def _draw(axes: Axes, summaries: list[Summary], comparable: bool, label: str, measured,
          paper) -> None:
    position, ticks, names, previous = 0., [], [], None
    for summary in summaries:
        row = summary.row
        group = row.variant or '\n'.join(filter(None, (row.detector, row.backbone)))
        if previous not in (None, group):
            position += 0.8
        previous = group
        value = measured(summary)
        if value is None:
            axes.annotate('not run', (position, 0), xytext=(0, 3), textcoords='offset points',
                          rotation=90, ha='center', va='bottom', fontsize='small', color='#555555')
        else:
            mean, error = getattr(value, 'mean', value), getattr(value, 'std', None)
            axes.bar(position, mean, width=0.8, yerr=error, capsize=3,
                     color=KIND_COLOURS[row.attention])
            below = mean < 0
            axes.annotate(f'{mean:.{DECIMALS[TASKS[row.table]]}f}', (position, 0),
                          xytext=(0, -3 if below else 3), textcoords='offset points', ha='center',
                          fontsize='small', va='top' if below else 'bottom')
        if comparable:
            axes.plot([position - 0.45, position + 0.45], [paper(summary)] * 2, color='black',
                      linewidth=1.5)
        ticks.append(position)
        names.append(group)
        position += 1
    groups = list(dict.fromkeys(names))
    centres = [[tick for tick, name in zip(ticks, names, strict=True) if name == group]
               for group in groups]
    axes.set_xticks([sum(c) / len(c) for c in centres], groups)
    axes.set_xlim(-0.7, position - 0.3)
    if not axes.dataLim.height > 1e-3:  # nothing is drawn, or bars of no height
        axes.set_ylim(0, 1)
    axes.axhline(0, color='black', linewidth=0.8)
    axes.set_ylabel(label)
    style(axes)
    axes.tick_params(axis='x', length=0)


def _legend(summaries: list[Summary], comparable: bool) -> tuple[list, list]:
    kinds = list(dict.fromkeys(summary.row.attention for summary in summaries))
    handles = [Patch(color=KIND_COLOURS[kind]) for kind in kinds]
    names = ['ResNet' if kind == 'none' else f'+ {kind}' for kind in kinds]
    if comparable:
        handles.append(Line2D([], [], color='black', linewidth=1.5))
        names.append('paper')
    return handles, names
