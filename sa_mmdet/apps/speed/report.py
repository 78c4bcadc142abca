"""Tables and plots of measurements."""
from collections import Counter

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Table

from ..plots import COLOURS, png, style
from .deployed import DEPLOYED
from .operator import BACKWARD, FORWARD
from .variants import ATTENTION, BASELINE, FOLDED, FORMULA

FUSED = COLOURS['vermilion']
OPERATOR_COLOURS = {'operator': FUSED, 'formula': COLOURS['grey'],
                    'compiled formula': COLOURS['sky blue'],
                    'without attention': COLOURS['green']}
NETWORK_COLOURS = {FORMULA: COLOURS['grey'], FOLDED[BASELINE]: COLOURS['sky blue'],
                   FOLDED[ATTENTION]: COLOURS['orange'], DEPLOYED: COLOURS['green']}


def operator_table(rows: list[dict]) -> Table:
    """Return time, bandwidth, host time and memory of each variant, stage by stage.

    Bandwidth counts the bytes that the floor moves. The copy in '% of copy' is the floor.
    """
    hosts = any(row['host_microseconds'] is not None for row in rows)
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in ('stage', 'pass', '', 'ms', 'GB/s', '% of copy', *(['host µs'] if hosts else []),
                 'peak MB', '× floor'):
        table.add_column(name, justify='left' if name in ('stage', 'pass', '') else 'right')
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        floor = next(other for other in rows
                     if (other['stage'], other['pass']) == (row['stage'], row['pass']))
        stage = f'{row["stage"]} {"×".join(map(str, row["shape"][1:]))}' if row['shape'] else (
            row['stage'])
        host = row['host_microseconds']
        memory = ('', '') if row['peak_bytes'] is None else (
            f'{row["peak_bytes"] / 1e6:.1f}', f'{row["peak_bytes"] / floor["peak_bytes"]:.2f}')
        table.add_row(
            stage, row['pass'], row['name'], f'{row["milliseconds"]:.3f}', f'{bandwidth(row):.1f}',
            f'{100 * floor["milliseconds"] / row["milliseconds"]:.0f}',
            *(['' if host is None else f'{host:.0f}'] if hosts else []), *memory,
            end_section=following is None or following['pass'] != row['pass'])
    return table


def operator_lines(rows: list[dict]) -> list[str]:
    """Return a sentence for each pass: how the operator compares over ResNet-50's blocks."""
    lines = []
    for pass_ in (FORWARD, BACKWARD):
        floor, operator, *others = (
            row for row in rows if row['stage'] == 'ResNet-50' and row['pass'] == pass_)
        ratio = operator['milliseconds'] / floor['milliseconds']
        lines.append(
            f'{pass_}: operator / ({floor["name"]}) = {ratio:.2f}, '
            + ''.join(f'{row["name"]} / operator = '
                      f'{row["milliseconds"] / operator["milliseconds"]:.2f}, ' for row in others)
            + f'{bandwidth(operator):.1f} of {bandwidth(floor):.1f} GB/s')
    return lines


def compiled_table(rows: list[dict]) -> Table:
    """Return what each kernel uses; the headers shorten the keys of ``compile_operator``."""
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in ('sm', 'stage', 'pass', 'kernel', 'programs', 'warps', 'registers', 'spilled',
                 'resident', 'access', 'instructions'):
        table.add_column(name, justify='left' if name in ('pass', 'kernel') else 'right')
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        count = row['instructions']
        table.add_row(
            *(str(row[key]).removesuffix('_kernel') for key in (
                'capability', 'stage', 'pass', 'kernel', 'programs', 'warps', 'registers',
                'spilled_bytes', 'resident_warps', 'access_bytes')),
            '' if count is None else f'{count:.1f}',
            end_section=following is None or following['stage'] != row['stage'])
    return table


def compiled_lines(rows: list[dict]) -> list[str]:
    """Return a sentence for each pass with its worst figures."""
    lines = []
    for pass_ in dict.fromkeys(row['pass'] for row in rows):
        of_pass = [row for row in rows if row['pass'] == pass_]
        sums = Counter()
        for row in of_pass:
            sums[row['stage'], row['capability']] += row['instructions'] or 0
        lines.append(
            f'{pass_}: at most {max(sums.values()):.0f} instructions per element, '
            f'{max(row["registers"] for row in of_pass)} registers, '
            f'{max(row["spilled_bytes"] for row in of_pass)} spilled bytes')
    return lines


def bandwidth(row: dict) -> float:
    """Return GB/s: the bytes that the floor moves, divided by the time."""
    return row['bytes'] / row['milliseconds'] / 1e6


def operator_plot(rows: list[dict], title: str) -> bytes:
    """Draw the bandwidth of each variant in each stage, and the floor's as a line, as a PNG.

    The bandwidth counts the bytes that the floor moves (see ``operator.FLOORS``).
    """
    figure = Figure(figsize=(14, 5), layout='constrained')
    for axes, pass_ in zip(figure.subplots(1, 2), (FORWARD, BACKWARD), strict=True):
        of_pass = [row for row in rows if row['pass'] == pass_]
        stages = list(dict.fromkeys(row['stage'] for row in of_pass))
        names = [name for name in OPERATOR_COLOURS if any(row['name'] == name for row in of_pass)]
        reached = {(row['stage'], row['name']): bandwidth(row) for row in of_pass}
        floor = of_pass[0]['name']
        for i, name in enumerate(names):
            width = 0.8 / len(names)
            places = [position + _offset(i, len(names), width) for position in range(len(stages))]
            bars = axes.bar(places, [reached[stage, name] for stage in stages], width,
                            color=OPERATOR_COLOURS[name], label=name)
            _annotate(axes, bars, '.1f' if max(reached.values()) < 100 else '.0f')
        for position, stage in enumerate(stages):
            axes.plot([position - 0.45, position + 0.45], [reached[stage, floor]] * 2,
                      color='black', label=floor if position == 0 else None)
        axes.set_xticks(range(len(stages)), [
            stage if stage == stages[-1] else f'stage {stage}' for stage in stages])
        axes.set_title(pass_)
        axes.set_ylabel('GB/s')
        style(axes)
        axes.legend(frameon=False, fontsize='small', loc='upper center',
                    bbox_to_anchor=(0.5, -0.08), ncols=3)
    figure.suptitle(title, fontsize='medium')
    return png(figure)


def comparison_table(rows: list[dict]) -> Table:
    """Return time and memory of each variant with their ratios to the baseline, by pass."""
    table = Table()
    base = rows[0]['name']
    for name in ('pass', '', 'ms', f'× {base}', 'quartiles', 'peak MB', f'× {base}'):
        table.add_column(name, justify='left' if name in ('pass', '') else 'right')
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        is_base = row['name'] == base
        table.add_row(
            row['pass'], row['name'], f'{row["milliseconds"]:.1f}', f'{row["time_ratio"]:.3f}',
            '' if is_base else ' – '.join(f'{ratio:.3f}' for ratio in row['time_ratio_quartiles']),
            f'{row["peak_bytes"] / 1e6:.1f}', f'{row["memory_ratio"]:.3f}',
            end_section=following is None or following['pass'] != row['pass'])
    return table


def comparison_lines(rows: list[dict]) -> list[str]:
    """Return a sentence for each pass and variant with its ratios to the baseline."""
    base = rows[0]['name']
    return [f'{row["pass"]}: {row["name"]} / {base} = {row["time_ratio"]:.2f} in time '
            f'(quartiles {" to ".join(f"{q:.2f}" for q in row["time_ratio_quartiles"])}), '
            f'{row["memory_ratio"]:.2f} in peak memory'
            + (f', {row["graph_ratio"]:.2f} as a CUDA graph' if row['graph_ratio'] else '')
            for row in rows if row['name'] != base]


def file_lines(rows: list[dict]) -> list[str]:
    """Return a sentence for each runtime with the sizes of the networks' files."""
    sizes: dict[str, list[str]] = {}
    for row in rows:
        sizes.setdefault(row['pass'], []).append(f'{row["name"]} {row["file_bytes"] / 1e6:.1f} MB')
    return [f'{pass_}: file sizes: {", ".join(of_pass)}' for pass_, of_pass in sizes.items()]


def comparison_plot(rows: list[dict], title: str) -> bytes:
    """Draw the ratios of time and peak memory to the baseline's, a line at 1, as a PNG.

    The whiskers span the quartiles of the rounds' ratios. CUDA graphs have a panel if they were
    timed.
    """
    base = rows[0]['name']
    passes = list(dict.fromkeys(row['pass'] for row in rows))
    names = list(dict.fromkeys(row['name'] for row in rows if row['name'] != base))
    of_pass = {pass_: [row['name'] for row in rows if row['pass'] == pass_][1:] for pass_ in passes}
    width = 0.8 / len(names)
    panels = {'time_ratio': 'time', 'graph_ratio': 'time as a CUDA graph',
              'memory_ratio': 'peak memory'}
    if rows[0]['graph_ratio'] is None:
        del panels['graph_ratio']
    figure = Figure(figsize=(4.5 * len(panels), 4.5), layout='constrained')
    all_axes = figure.subplots(1, len(panels), sharey=True)
    for axes, (key, what) in zip(all_axes, panels.items(), strict=True):
        for name in names:
            of_name = [row for row in rows if row['name'] == name]
            places = [passes.index(row['pass']) + _offset(
                of_pass[row['pass']].index(name), len(of_pass[row['pass']]), width)
                for row in of_name]
            bars = axes.bar(places, [row[key] for row in of_name], width,
                            color=NETWORK_COLOURS.get(name, FUSED), label=name)
            _annotate(axes, bars, '.2f')
            if key == 'time_ratio':
                quartiles = [row['time_ratio_quartiles'] for row in of_name]
                axes.vlines(places, *zip(*quartiles, strict=True), color='black', linewidth=1)
        axes.axhline(1, color='black', label=base)
        axes.margins(x=0.15, y=0.08)
        axes.set_xticks(range(len(passes)), passes,
                        fontsize='medium' if len(passes) < 3 else 'small')
        axes.set_title(what)
        style(axes)
    all_axes[0].set_ylabel(f"multiple of {base}'s")
    figure.legend(*all_axes[0].get_legend_handles_labels(), frameon=False, fontsize='small',
                  loc='outside lower center', ncols=4)
    figure.suptitle(title.replace(': ', ':\n'), fontsize='medium')
    return png(figure)


def _offset(i: int, bars: int, width: float) -> float:
    """Return the offset of the ``i``-th bar from the middle of its group."""
    return (i + 0.5 - bars / 2) * width


def _annotate(axes: Axes, bars, format_: str) -> None:
    """Write each bar's height at its foot."""
    for bar in bars:
        axes.annotate(f'{bar.get_height():{format_}}', (bar.get_x() + bar.get_width() / 2, 0),
                      xytext=(0, 2), textcoords='offset points', ha='center', fontsize='x-small')
