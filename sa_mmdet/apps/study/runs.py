"""The runs of the study: six networks from one start, and three ways to continue one of them."""
import copy
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed

from ...checkpoint.files import atomic_file, sha256, write_atomically
from ...checkpoint.read import is_whole
from ..paper.runs import Run, RunFailed, match_rows, nearest
from ..paper.tables import Row


@dataclass(frozen=True)
class StudyRow(Row):
    """A Mask R-CNN of the study, which is in no table of the paper.

    Attributes:
        label: name in the report.
        suffix: suffix of the name, which distinguishes rows that share a config.
        continued: whether it starts from the end of the plain network's training.
        converted: whether a plain network's weights are converted for its attention.
    """

    table: int = 0
    detector: str = 'Mask R-CNN'
    backbone: str = 'ResNet-50'
    attention: str = 'none'
    gflops: float = 1.  # all take about the same time
    label: str = ''
    suffix: str = ''
    continued: bool = False
    converted: bool = True

    @property
    def name(self) -> str:
        return super().name + self.suffix

    @property
    def config(self) -> Path:
        return Path('study') / f'{super().name}_fpn_textured-shapes.py'

    @property
    def dataset(self) -> str:
        return 'shapes'


PLAIN = StudyRow(label='no attention')
FROM_SCRATCH = (PLAIN, *(StudyRow(attention=attention, label=attention)
                         for attention in ('SE', 'ECA', 'SGE', 'CBAM', 'SA')))
STAYS_PLAIN, CONVERTED, UNCONVERTED = CONTINUED = (
    StudyRow(suffix='_continued', continued=True, label='no attention, continued'),
    StudyRow(attention='SA', suffix='_converted', continued=True, label='SA, converted'),
    StudyRow(attention='SA', suffix='_unconverted', continued=True, converted=False,
             label='SA, not converted'))
ROWS = {row.name: row for row in (*FROM_SCRATCH, *CONTINUED)}


class StudyRun(Run):
    """A run of the study.

    With the same seed, networks that are trained from scratch start from the same random weights,
    except in the attention. The others start from the plain network's last checkpoint.
    """

    @cached_property
    def plain(self) -> 'StudyRun':
        """The run of the network without attention with the same seed."""
        return StudyRun(PLAIN, self.seed, self.settings)

    @cached_property
    def start_file(self) -> Path:
        """The checkpoint to start from: the plain network's last one, or random weights."""
        if self.row.continued:
            return self.plain.final_checkpoint
        return self.settings.work_dir / 'starts' / f'{self.row.name}_seed{self.seed}.pth'

    @property
    def start_sha256(self) -> str | None:
        note = self._start_note
        return note.read_text() if note.is_file() else None

    @property
    def _start_note(self) -> Path:
        return self.folder / 'start.sha256'

    def place_start(self, config: Config) -> None:
        """Make a config start from ``start_file``; if that is trained already, validate each epoch.
        """
        config.model.init_cfg = dict(type='Pretrained', checkpoint=str(self.start_file))
        if not self.row.converted:
            config.model.backbone.convert_weights = False
        if self.row.continued:
            config.train_cfg.val_begin = 1
            config.custom_hooks = [*config.get('custom_hooks', []),
                                   dict(type='mmdet.InitialValidationHook')]

    def make_start(self) -> None:
        """Draw random weights, or check that the network to continue exists; record which it is.

        Raises:
            RunFailed: The network to continue has no checkpoint, or was trained again since this
                run began.
        """
        if not is_whole(self.start_file):
            if self.row.continued:
                raise RunFailed(self._nothing_to_continue())
            self._draw_start()
        found, (begun, _) = sha256(self.start_file), self.last_checkpoint()
        noted = self.start_sha256 if begun else None
        if self.row.continued and noted not in (None, found):
            raise RunFailed(f'{self.start_file} has changed since {self.name} began: remove '
                            f'{self.folder}, and the same command trains that run again')
        if noted is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._start_note, found)

    def _nothing_to_continue(self) -> str:
        plain = self.plain
        remedy = (f'restore it, or remove {plain.result_file} and the folders of the runs that '
                  'continue it' if plain.finished else 'fix what stopped its training')
        return (f'{self.name} continues {plain.name}, whose last checkpoint {self.start_file} is '
                f'missing or damaged: {remedy}. Then the same command resumes')

    def _draw_start(self) -> None:
        weights = initial_weights(self.config, self.seed) | initial_weights(
            self.plain.config, self.seed)
        self.start_file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.start_file) as file:
            torch.save(dict(state_dict=weights), file)


def initial_weights(config: Config, seed: int) -> dict[str, torch.Tensor]:
    """Return the random weights of a config's model with a seed, without its ``init_cfg``."""
    init_default_scope('mmdet')
    set_random_seed(seed)
    model = MODELS.build(dict(copy.deepcopy(config.model), init_cfg=None))
    logging.disable(logging.INFO)  # MMEngine logs how each parameter was drawn
    try:
        model.init_weights()
    finally:
        logging.disable(logging.NOTSET)
    return model.state_dict()


def study_rows(patterns: list[str]) -> list[StudyRow]:
    """Return the rows of the study, with the plain network first if another one continues it.

    Args:
        patterns: row names, with '*' and '?' allowed. No pattern means all rows.

    Raises:
        ReproduceError: A pattern matches no row of the study.
    """
    rows = match_rows(ROWS, patterns, lambda pattern: (
        f'{pattern!r} is not a row of the study: {nearest(pattern, list(ROWS))}'))
    if any(row.continued for row in rows) and PLAIN not in rows:
        rows = [PLAIN, *rows]
    return rows
