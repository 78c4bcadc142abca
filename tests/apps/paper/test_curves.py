import statistics
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from mmengine.visualization import LocalVisBackend

from logs import iteration, validation, write_lines, write_log
from sa_mmdet.apps.paper import curves
from sa_mmdet.apps.paper.curves import LogError, draw_curves, read_log, running_median
from sa_mmdet.apps.plots import png


def draw(monkeypatch, *logs) -> Figure:
    """The figure itself, drawn with every warning an error."""
    figures = []
    monkeypatch.setattr(curves, 'png', lambda figure: figures.append(figure) or png(figure))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        draw_curves(list(logs), 'title')
    return figures[0]


def panel(figure, label):
    axes, = (axes for axes in figure.axes if axes.get_ylabel() == label)
    return axes


def test_what_mmengine_writes_is_read(tmp_path):
    backend = LocalVisBackend(str(tmp_path / '20260102_030405/vis_data'))
    backend.add_scalars(iteration(50, 1, grad_norm=3.), step=50, file_path='20260102_030405.json')
    backend.add_scalars(validation(1, 0.25), step=1, file_path='20260102_030405.json')
    log = read_log(tmp_path)
    assert log.losses == ['loss', 'loss_cls', 'loss_bbox']
    assert [values.tolist() for values in log.curve('grad_norm')] == [[50], [3]]
    assert [values.tolist() for values in log.curve('coco/bbox_mAP')] == [[50], [25]]
    assert [values.tolist() for values in log.curve('loss_mask')] == [[], []]


def test_of_repeated_iterations_the_last_attempt_counts(tmp_path):
    """Killed in the third epoch, and resumed after the first, whose validation stays."""
    first = [iteration(step, 1) for step in (10, 20)] + [validation(1, 0.1)]
    first += [iteration(step, 2) for step in (30, 40)] + [validation(2, 0.2), iteration(50, 3)]
    second = [iteration(30, 2, loss=7.)]
    write_lines(tmp_path, *second, attempt='20260103_000000')
    write_lines(tmp_path, *first, attempt='20260102_235959')
    log = read_log(tmp_path)
    assert list(log.training) == [10, 20, 30]
    assert log.training[30]['loss'] == 7
    assert list(log.validation) == [1]


def test_lines_that_are_not_whole_are_passed_over(tmp_path):
    write_lines(tmp_path, iteration(10, 1), '\x00\x00', '[1]', '7', '{"loss": 3, "step": "x"}',
                iteration(20, 1), '{"lr": 0.01, "loss": 0.3, "ep')
    assert list(read_log(tmp_path).training) == [10, 20]


@pytest.mark.parametrize(('lines', 'message'), [
    (None, 'has no training log (*/vis_data/scalars.json)'),
    ([], 'is empty, damaged or another kind of log'),
    (['{"loss": 1, "st'], 'is empty, damaged or another kind of log'),
    ([validation(1, 0.3)], 'no iterations of an epoch-based training'),
    ([{'loss': 1., 'iter': 50, 'step': 50}], 'no iterations of an epoch-based training'),
], ids=str)
def test_logs_without_a_training(lines, message, tmp_path):
    if lines is not None:
        write_lines(tmp_path, *lines)
    with pytest.raises(LogError) as error:
        read_log(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_log_that_cannot_be_read(tmp_path):
    (tmp_path / '20260102_030405/vis_data/scalars.json').mkdir(parents=True)
    with pytest.raises(LogError, match=r'scalars\.json cannot be read: Is a directory'):
        read_log(tmp_path)


@pytest.mark.parametrize(('length', 'interval'), [(100, 50), (60, 50), (7330, 50), (40, 40)])
def test_ap_stands_where_its_epoch_ends(length, interval, tmp_path):
    write_log(tmp_path, epochs=3, length=length, interval=interval)
    iterations, ap = read_log(tmp_path).curve('coco/bbox_mAP')
    assert iterations == pytest.approx([length, 2 * length, 3 * length])
    assert ap == pytest.approx([1, 2, 3])


def test_running_median():
    values = np.random.default_rng(0).normal(size=500)  # 2 % of it are 5 on each side, and itself
    smooth = running_median(values)
    assert smooth.shape == values.shape
    assert smooth[5:-5] == pytest.approx(
        [statistics.median(values[i - 5:i + 6]) for i in range(5, 495)])
    assert running_median(np.full(300, 2.)) == pytest.approx(np.full(300, 2.))


def test_panels_show_what_was_logged(tmp_path, monkeypatch):
    write_log(tmp_path, epochs=3)
    figure = draw(monkeypatch, read_log(tmp_path))
    assert [axes.get_ylabel() for axes in figure.axes] == [
        'loss', 'validation AP (%)', 'learning rate']
    loss, ap = panel(figure, 'loss'), panel(figure, 'validation AP (%)')
    steps = np.arange(50, 301, 50)
    for line, share in zip(loss.lines, (1, 0.6, 0.4), strict=True):
        assert line.get_xdata() == pytest.approx(steps)
        assert line.get_ydata() == pytest.approx(share / steps)
    assert [text.get_text() for text in loss.get_legend().texts] == [
        'total', 'loss_cls', 'loss_bbox']
    assert (loss.get_yscale(), ap.get_yscale()) == ('log', 'linear')
    line, = ap.lines
    assert line.get_xydata() == pytest.approx(np.array([[100, 1], [200, 2], [300, 3]]))
    above = loss.child_axes[0]
    assert (above.get_xlabel(), figure.axes[-1].get_xlabel()) == ('epoch', 'iteration')
    places = [axes.transData.transform((x, 1))[0] for axes, x in ((above, 2), (loss, 200))]
    assert places[0] == pytest.approx(places[1])


def test_the_norm_of_the_gradient_where_it_was_logged(tmp_path, monkeypatch):
    write_lines(tmp_path, *(iteration(step, 1, grad_norm=step / 2) for step in (10, 20)))
    figure = draw(monkeypatch, read_log(tmp_path))
    assert panel(figure, 'gradient norm').lines[0].get_ydata() == pytest.approx([5, 10])
    assert not any('AP' in axes.get_ylabel() for axes in figure.axes)


def test_long_curves_are_drawn_as_logged_and_smooth(tmp_path, monkeypatch):
    """But not the learning rate, whose steps are meant."""
    write_lines(tmp_path, *(iteration(step, 1, loss=2. + step % 2) for step in range(1, 301)))
    log = read_log(tmp_path)
    figure = draw(monkeypatch, log)
    logged, smooth = panel(figure, 'loss').lines[:2]
    assert logged.get_ydata() == pytest.approx(log.curve('loss')[1])
    assert smooth.get_ydata() == pytest.approx(running_median(log.curve('loss')[1]))
    assert logged.get_alpha() < 0.5
    assert smooth.get_alpha() is None
    legend = [text.get_text() for text in panel(figure, 'loss').get_legend().texts]
    assert legend[-2:] == ['as logged', 'running median']
    assert len(panel(figure, 'learning rate').lines) == 1


def test_seeds_are_thin_lines_of_the_same_colour(tmp_path, monkeypatch):
    for seed in '012':
        write_log(tmp_path / seed, epochs=2)
    alone = draw(monkeypatch, read_log(tmp_path / '0'))
    figure = draw(monkeypatch, *(read_log(tmp_path / seed) for seed in '012'))
    lines, line = (panel(f, 'validation AP (%)').lines for f in (figure, alone))
    assert len(lines) == 3
    assert {line.get_color() for line in lines} == {line[0].get_color()}
    assert lines[0].get_linewidth() < line[0].get_linewidth()
    colours = [line.get_color() for line in panel(figure, 'loss').lines]
    assert len(colours) == 9
    assert len(set(colours)) == 3


@pytest.mark.parametrize(('ap', 'top'), [(0., 1), (0.005, 1), (0.4, 40)])
def test_ap_is_drawn_from_0(ap, top, tmp_path, monkeypatch):
    write_lines(tmp_path, iteration(10, 1), validation(1, 0.), iteration(20, 2), validation(2, ap))
    axes = panel(draw(monkeypatch, read_log(tmp_path)), 'validation AP (%)')
    assert axes.get_ylim() == (0, pytest.approx(top, rel=0.1))
    assert [text.get_text() for text in axes.get_legend().texts] == ['box']


def test_ap_without_objects_is_left_out(tmp_path):
    write_lines(tmp_path, iteration(10, 1), validation(1, -1), iteration(20, 2), validation(2, 0.))
    assert [values.tolist() for values in read_log(tmp_path).curve('coco/bbox_mAP')] == [[20], [0]]


def test_what_has_no_logarithm_is_left_out(tmp_path, monkeypatch):
    """A loss of 0, of NaN, or without any value above 0; a far outlier does not hide the rest."""
    write_lines(tmp_path, iteration(10, 1, loss=float('nan'), loss_bbox=0., grad_norm=float('inf')),
                iteration(20, 1, loss_bbox=0., lr=0.), iteration(30, 1, loss_bbox=1e-30))
    figure = draw(monkeypatch, read_log(tmp_path))
    loss = panel(figure, 'loss')
    assert np.isinf(loss.yaxis.get_transform().transform([0.]))  # not drawn, instead of far below
    bottom, top = loss.get_ylim()
    assert bottom == pytest.approx(top / 1e4)
    write_lines(tmp_path, iteration(10, 1, loss=float('nan'), loss_cls=0., loss_bbox=0., lr=0.),
                attempt='20260103_000000')
    draw(monkeypatch, read_log(tmp_path))


def test_nothing_overlaps(tmp_path, monkeypatch):
    for seed in '01':
        write_log(tmp_path / seed, epochs=12, length=700)
    figure = draw(monkeypatch, *(read_log(tmp_path / seed) for seed in '01'))
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    boxes = [item.get_window_extent() for item in (*figure.axes, *legends)]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(figure.bbox.containsx(x) and figure.bbox.containsy(y)
               for box in boxes for x, y in (box.min, box.max))
    for axes in figure.axes:
        labels = [label.get_window_extent() for label in axes.get_yticklabels()
                  if axes.bbox.y0 <= label.get_window_extent().y0 <= axes.bbox.y1]
        assert not any(a.overlaps(b) for i, a in enumerate(labels) for b in labels[:i])
