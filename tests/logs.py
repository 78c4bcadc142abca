"""Logs as MMEngine's LoggerHook writes them."""
import json
from pathlib import Path


def iteration(step: int, epoch: int, **scalars: float) -> dict:
    """A line of the training; the total loss is 1 / step if none is given."""
    return dict(lr=0.01, data_time=0.1, loss=1 / step, loss_cls=0.6 / step, loss_bbox=0.4 / step,
                time=0.5, epoch=epoch, iter=step, step=step) | scalars


def validation(epoch: int, ap: float) -> dict:
    """A line of the validation after an epoch."""
    return {'coco/bbox_mAP': ap, 'coco/bbox_mAP_50': 2 * ap, 'time': 0.1, 'step': epoch}


def write_lines(work_dir: Path, *lines: dict | str, attempt: str = '20260102_030405') -> Path:
    """The log of one attempt; lines that are no dictionaries are written as they are."""
    path = work_dir / attempt / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(
        line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def write_log(work_dir: Path, epochs: int, length: int = 100, interval: int = 50) -> Path:
    """The log of a whole training with ``length`` iterations in each epoch."""
    lines = []
    for epoch in range(1, epochs + 1):
        steps = range(interval, length + 1, interval)
        lines += [iteration((epoch - 1) * length + step, epoch) for step in steps]
        lines.append(validation(epoch, epoch / 100))
    return write_lines(work_dir, *lines)
