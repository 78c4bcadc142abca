"""A run: one row of the tables with one seed, its folder, its config and its state."""
import copy
import difflib
import fnmatch
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mmengine.config import Config

from ..analysis.paper import TASKS, Row, load_table
from ..checkpoint.read import last_whole

TABLES = tuple(TASKS)
SPLITS = ('train', 'val', 'test')
RESULT_KEYS = ('row', 'seed', 'metrics', 'logged', 'detections', 'evaluated_on', 'start', 'epochs',
               'hours', 'batch', 'gpus', 'device', 'versions', 'commit', 'cfg_options',
               'checkpoint', 'checkpoint_sha256')


class ReproduceError(Exception):
    """Something that the user has to change; the message says what was found, and what to do."""


@dataclass(frozen=True)
class Settings:
    """What all runs of a work dir have in common.

    Attributes:
        root: folder with configs/ and tools/: the repository, or .mim of the installed package.
        work_dir: folder of the runs and their report.
        data_root: folder of COCO 2017 in MMDetection's usual layout.
        gpus: processes, each with one GPU; 0 is one process on the CPU.
        slurm: partition of a Slurm cluster to run on; None is this machine.
        init: 'resnet', the start of the configs, or 'imagenet', backbones trained on ImageNet
            with their attention.
        init_cfgs: the backbones' ``init_cfg`` for 'imagenet', by (depth, attention).
        cfg_options: overrides of all configs.
        checkpoints: detectors to test instead of training them, by the names of their rows.
    """

    root: Path
    work_dir: Path
    data_root: Path
    gpus: int = 0
    slurm: str | None = None
    init: str = 'resnet'
    init_cfgs: dict[tuple[int, str], dict] = field(default_factory=dict)
    cfg_options: dict = field(default_factory=dict)
    checkpoints: dict[str, Path] = field(default_factory=dict)

    @property
    def tools(self) -> Path:
        return self.root / 'tools'

    def identity(self) -> dict[str, str]:
        """What the results depend on: a work dir holds runs of one identity."""
        return {
            '--data-root': str(self.data_root),
            '--gpus': str(self.gpus),
            '--init': self.init,
            '--cfg-options': json.dumps(self.cfg_options, sort_keys=True, default=str),
            '--eval-only': 'yes' if self.checkpoints else 'no',
        }


@dataclass(frozen=True)
class Run:
    """One row trained with one seed, or one row's checkpoint to be tested."""

    row: Row
    seed: int
    settings: Settings

    @property
    def name(self) -> str:
        return f'{self.row.name} seed {self.seed}'

    @property
    def folder(self) -> Path:
        return self.settings.work_dir / self.row.name / f'seed{self.seed}'

    @property
    def config_file(self) -> Path:
        """Not in the run's folder, where MMEngine puts its own copy under the same name."""
        return self.settings.work_dir / 'configs' / f'{self.row.name}_seed{self.seed}.py'

    @property
    def result_file(self) -> Path:
        """Written when all is done: its existence says that the run is finished."""
        return self.folder / 'result.json'

    @property
    def output_file(self) -> Path:
        """All that training and testing printed."""
        return self.folder / 'output.log'

    @property
    def detections(self) -> Path:
        """Beginning of the names of the files with all detections."""
        return self.folder / 'detections'

    @property
    def finished(self) -> bool:
        return self.result_file.is_file()

    @property
    def trains(self) -> bool:
        return not self.settings.checkpoints

    @cached_property
    def config(self) -> Config:
        """The row's config with the settings, the seed and the user's options in it."""
        settings = self.settings
        config = Config.fromfile(settings.root / 'configs' / self.row.config)
        for split in SPLITS:
            config[f'{split}_dataloader'].dataset.data_root = f'{settings.data_root}/'
        for split in SPLITS[1:]:
            evaluator = copy.deepcopy(config[f'{split}_evaluator'])
            annotations = config[f'{split}_dataloader'].dataset.ann_file
            evaluator.ann_file = str(settings.data_root / annotations)
            config[f'{split}_evaluator'] = evaluator
        if settings.init_cfgs:
            key = config.model.backbone.depth, self.row.attention
            config.model.backbone.init_cfg = dict(settings.init_cfgs[key])
        config.randomness = dict(seed=self.seed)
        config.auto_scale_lr.enable = True
        config.train_dataloader.persistent_workers = False
        config.custom_hooks = [*config.get('custom_hooks', []), dict(type='EpochSeedHook')]
        config.default_hooks.checkpoint.max_keep_ckpts = 2
        config.merge_from_dict(copy.deepcopy(settings.cfg_options))
        if isinstance(config.test_evaluator, dict):
            config.test_evaluator.outfile_prefix = str(self.detections)
        return config

    @property
    def tasks(self) -> tuple[str, ...]:
        """'bbox', and 'segm' where the detector predicts masks."""
        return ('bbox', 'segm') if self.row.detector == 'Mask R-CNN' else ('bbox', )

    @property
    def epochs(self) -> int:
        return self.config.train_cfg.max_epochs

    def last_checkpoint(self) -> tuple[int, Path | None]:
        """The last whole checkpoint and its epoch; (0, None) where there is none."""
        return last_whole(self.folder) or (0, None)

    def state(self) -> str:
        """For people: how far the run has come."""
        if self.finished:
            return 'finished'
        if not self.trains:
            return 'to be tested'
        epoch, _ = self.last_checkpoint()
        if epoch == self.epochs:
            return 'trained, to be tested'
        return f'epoch {epoch} of {self.epochs} done' if epoch else 'not started'


def read_result(path: Path, keys: tuple[str, ...] = RESULT_KEYS) -> dict:
    """The content of a run's result.json, with these keys at least.

    Raises:
        ReproduceError: the file is damaged, or not such a one.
    """
    try:
        result = json.loads(path.read_text())
        lacking = [key for key in keys if key not in result]
        problem = f'it lacks {", ".join(lacking[:3])}' if lacking else None
    except (ValueError, TypeError) as error:
        problem = str(error)
    if problem:
        raise ReproduceError(f'{path} is damaged ({problem}): remove it to test again')
    return result


def select_rows(tables: list[int], patterns: list[str]) -> list[Row]:
    """The rows of the tables, each once, in the paper's order.

    Args:
        tables: of 3 and 4, which share the rows of Mask R-CNN.
        patterns: names of rows, such as 'mask-rcnn_sa-r50', '*' and '?' allowed; none is all.

    Raises:
        ReproduceError: a pattern is no row of these tables.
    """
    rows = {}
    for table in tables:
        for row in load_table(table):
            rows.setdefault(row.name, row)
    chosen = set()
    for pattern in patterns or ['*']:
        matching = fnmatch.filter(rows, pattern)
        if not matching:
            raise ReproduceError(_unknown_row(pattern, tables))
        chosen.update(matching)
    return [row for name, row in rows.items() if name in chosen]


def _unknown_row(name: str, tables: list[int]) -> str:
    every = {row.name: table for table in TABLES for row in load_table(table)}
    listed = ' and '.join(map(str, tables))
    if name in every:
        return f'{name} is a row of Table {every[name]}: add --table {every[name]}'
    near = difflib.get_close_matches(name, every, n=1, cutoff=0.3)
    hint = f'did you mean {near[0]}?' if near else f'they are {", ".join(every)}'
    return f'Table {listed} has no row {name!r}: {hint}'


def plan_runs(rows: list[Row], seeds: int, settings: Settings) -> list[Run]:
    """Every row with every seed: first all rows with seed 0, then all with seed 1, ..."""
    return [Run(row, seed, settings) for seed in range(seeds) for row in rows]
