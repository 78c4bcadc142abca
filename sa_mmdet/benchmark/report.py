"""Measurements of the operator as a table and as a plot."""
import io

from matplotlib.figure import Figure
from rich.table import Table

from .operator import BACKWARD, FLOORS, FORWARD

COLOURS = {'operator': '#D55E00', 'formula': '#999999', 'compiled formula': '#56B4E9'}


def operator_table(rows: list[dict]) -> Table:
    """Time, its ratio to the floor's, and memory of each contestant, stage by stage."""
    table = Table()
    for name in ('stage', 'pass', '', 'ms', '× floor', 'peak MB', '× floor'):
        table.add_column(name, justify='right' if name[:1] in ('m', '×', 'p') else 'left')
    for row in rows:
        floor = _floor(rows, row)
        stage = f'{row["stage"]} {"×".join(map(str, row["shape"]))}' if row['shape'] else (
            f'{row["stage"]}, 16 blocks')
        memory = ('', '') if row['peak_bytes'] is None else (
            f'{row["peak_bytes"] / 1e6:.1f}', f'{row["peak_bytes"] / floor["peak_bytes"]:.2f}')
        table.add_row(stage, row['pass'], row['name'], f'{row["milliseconds"]:.2f}',
                      f'{row["milliseconds"] / floor["milliseconds"]:.2f}', *memory,
                      end_section=row is rows[-1])
    return table


def _floor(rows: list[dict], row: dict) -> dict:
    return next(other for other in rows if (other['stage'], other['pass'], other['name']) == (
        row['stage'], row['pass'], FLOORS[row['pass']]))


def operator_plot(rows: list[dict], title: str) -> bytes:
    """Bandwidth of each contestant in each stage, the floor's as a line, as a PNG.

    The bytes are those that the floor moves: 2 tensors of x's size forward, 5 forward and backward.
    """
    figure = Figure(figsize=(12, 5), layout='constrained')
    for axes, pass_ in zip(figure.subplots(1, 2), (FORWARD, BACKWARD), strict=True):
        of_pass = [row for row in rows if row['pass'] == pass_]
        stages = list(dict.fromkeys(row['stage'] for row in of_pass))
        names = [name for name in COLOURS if any(row['name'] == name for row in of_pass)]
        bandwidth = {(row['stage'], row['name']): row['bytes'] / row['milliseconds'] / 1e6
                     for row in of_pass}
        for i, name in enumerate(names):
            places = [position + (i + 0.5) * 0.8 / len(names) - 0.4
                      for position in range(len(stages))]
            bars = axes.bar(places, [bandwidth[stage, name] for stage in stages],
                            width=0.8 / len(names), color=COLOURS[name], label=name)
            for bar in bars:
                axes.annotate(f'{bar.get_height():.1f}', (bar.get_x() + bar.get_width() / 2, 0),
                              xytext=(0, 2), textcoords='offset points', ha='center',
                              fontsize='small')
        for position, stage in enumerate(stages):
            axes.plot([position - 0.45, position + 0.45], [bandwidth[stage, FLOORS[pass_]]] * 2,
                      color='black', label=FLOORS[pass_] if position == 0 else None)
        axes.set_xticks(range(len(stages)), [
            stage if stage == stages[-1] else f'stage {stage}' for stage in stages])
        axes.set_title(pass_)
        axes.set_ylabel('GB/s')
        axes.grid(axis='y', alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(frameon=False, fontsize='small', loc='upper center',
                    bbox_to_anchor=(0.5, -0.08), ncols=4)
    figure.suptitle(title, fontsize='medium')
    png = io.BytesIO()
    figure.savefig(png, dpi=120, format='png')
    return png.getvalue()
