"""A run: one row of the tables with one seed, its folder, its config and its state."""
import copy
import difflib
import fnmatch
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mmengine.config import Config

from ...checkpoint.read import last_whole
from .benchmarks.base import Benchmark
from .benchmarks.coco import Coco
from .benchmarks.imagenet import ImageNet
from .benchmarks.shapes import Shapes
from .tables import DATASETS, TASKS, Row, load_table

BENCHMARKS: dict[str, Benchmark] = {each.name: each for each in (ImageNet(), Coco(), Shapes())}
RESULT_KEYS = ('row', 'seed', 'metrics', 'logged', 'predictions', 'evaluated_on', 'start', 'epochs',
               'hours', 'batch', 'gpus', 'device', 'versions', 'commit', 'cfg_options',
               'checkpoint', 'checkpoint_sha256')


class ReproduceError(Exception):
    """The user must change something; the message says what was found and what to do."""


class RunFailed(Exception):
    """One run ended without a result; the others can continue."""


@dataclass(frozen=True)
class Settings:
    """What all runs of a work dir have in common.

    Attributes:
        root: folder with configs/ and tools/: the repository, or .mim of the installed package.
        work_dir: folder of the runs and their report.
        data_root: folder of the benchmark's data in its usual layout.
        gpus: number of processes, each with one GPU; 0 means one process on the CPU.
        slurm: partition of a Slurm cluster to run on; None means this machine.
        init: 'resnet', the start in the configs, or 'imagenet', backbones trained on ImageNet
            with their attention.
        starts: what 'imagenet' changes in the backbones' configs, by (depth, attention).
        cfg_options: overrides for all configs.
        checkpoints: models to test instead of training, by row name.
    """

    root: Path
    work_dir: Path
    data_root: Path
    gpus: int = 0
    slurm: str | None = None
    init: str = 'resnet'
    starts: dict[tuple[int, str], dict] = field(default_factory=dict)
    cfg_options: dict = field(default_factory=dict)
    checkpoints: dict[str, Path] = field(default_factory=dict)

    @property
    def tools(self) -> Path:
        return self.root / 'tools'

    def identity(self) -> dict[str, str]:
        """Return what the results depend on; all runs of a work dir have the same identity."""
        return {
            '--data-root': str(self.data_root),
            '--gpus': str(self.gpus),
            '--init': self.init,
            '--cfg-options': json.dumps(self.cfg_options, sort_keys=True, default=str),
            '--eval-only': 'yes' if self.checkpoints else 'no',
        }


@dataclass(frozen=True)
class Run:
    """One row trained with one seed, or one row's checkpoint to test."""

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
        """The run's config, outside its folder: MMEngine puts a copy of the same name there."""
        return self.settings.work_dir / 'configs' / f'{self.row.name}_seed{self.seed}.py'

    @property
    def result_file(self) -> Path:
        """The run's result, written last: if it exists, the run is finished."""
        return self.folder / 'result.json'

    @property
    def output_file(self) -> Path:
        """Everything that training and testing printed."""
        return self.folder / 'output.log'

    @property
    def benchmark(self) -> Benchmark:
        """What the run is trained and evaluated on."""
        return BENCHMARKS[self.row.dataset]

    def prediction_file(self, task: str) -> Path:
        """Return the file of everything that the test predicted."""
        return self.benchmark.prediction_file(self.folder, task)

    @property
    def finished(self) -> bool:
        return self.result_file.is_file()

    @property
    def trains(self) -> bool:
        return not self.settings.checkpoints

    @cached_property
    def config(self) -> Config:
        """The row's config with the settings, the seed and the user's options."""
        settings = self.settings
        config = Config.fromfile(settings.root / 'configs' / self.row.config)
        self.benchmark.place(config, settings.data_root)
        self.place_start(config)
        config.randomness = dict(seed=self.seed)
        config.auto_scale_lr.enable = True
        config.train_dataloader.persistent_workers = False
        config.custom_hooks = [*config.get('custom_hooks', []), dict(type='mmdet.EpochSeedHook')]
        config.default_hooks.checkpoint.max_keep_ckpts = self.benchmark.kept_checkpoints
        config.merge_from_dict(copy.deepcopy(settings.cfg_options))
        self.benchmark.save_predictions(config, self.folder)
        return config

    def place_start(self, config: Config) -> None:
        """Make a config start from the weights in the settings."""
        if self.settings.starts:
            config.model.backbone.update(self.settings.starts[self.row.depth, self.row.attention])

    @property
    def start_file(self) -> Path | None:
        """The checkpoint to start from if this command makes it, else None."""
        return None

    @property
    def start_sha256(self) -> str | None:
        """SHA-256 of ``start_file`` when the training began."""
        return None

    def make_start(self) -> None:
        """Make ``start_file``, or check that it exists, before the training begins or resumes.

        Raises:
            RunFailed: It is missing, or differs from the one that the training began with.
        """

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the evaluation: 'bbox' and 'segm' of a detector, 'accuracy' of a classifier."""
        return self.benchmark.tasks(self.row)

    @property
    def epochs(self) -> int:
        return self.config.train_cfg.max_epochs

    @property
    def final_checkpoint(self) -> Path:
        """The checkpoint that the training ends with."""
        return self.folder / f'epoch_{self.epochs}.pth'

    def last_checkpoint(self) -> tuple[int, Path | None]:
        """Return epoch and path of the last whole checkpoint; (0, None) if there is none."""
        return last_whole(self.folder) or (0, None)

    def state(self) -> str:
        """Return the progress of the run as text."""
        if self.finished:
            return 'finished'
        if not self.trains:
            return 'to be tested'
        epoch, _ = self.last_checkpoint()
        if epoch == self.epochs:
            return 'trained, to be tested'
        return f'epoch {epoch} of {self.epochs} done' if epoch else 'not started'


def read_result(path: Path, keys: tuple[str, ...] = RESULT_KEYS) -> dict:
    """Return the content of a run's result.json, which must have these keys.

    Raises:
        ReproduceError: The file is damaged or lacks a key.
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


def benchmark_of(result: dict) -> Benchmark:
    """Return the benchmark of a run from its result; older results don't name it."""
    name = result.get('dataset') or ('ImageNet' if 'accuracy' in result['metrics'] else 'COCO')
    return BENCHMARKS[name]


def dataset_of(tables: list[int]) -> str:
    """Return the data set that tables are measured on: 'ImageNet' or 'COCO'.

    Raises:
        ReproduceError: The tables are measured on both.
    """
    datasets = [name for name, measured in DATASETS.items() if set(measured) & set(tables)]
    if len(datasets) > 1:
        raise ReproduceError(
            f'--table {" ".join(map(str, tables))}: Tables 1 and 2 use ImageNet, 3 and 4 use COCO. '
            'Run them one after the other. Pass --init imagenet=... to start the detectors from '
            'the classifiers')
    return datasets[0]


def select_rows(tables: list[int], patterns: list[str]) -> list[Row]:
    """Return the rows of the tables, each once, in the paper's order.

    Args:
        tables: some of 1 and 2, which share SA-ResNet-50, or of 3 and 4, which share Mask R-CNN.
        patterns: row names such as 'mask-rcnn_sa-r50', with '*' and '?' allowed. No pattern means
            all rows.

    Raises:
        ReproduceError: A pattern matches no row of these tables, or they use two data sets.
    """
    dataset_of(tables)
    rows = {}
    for table in tables:
        for row in load_table(table):
            rows.setdefault(row.name, row)
    return match_rows(rows, patterns, lambda pattern: _unknown_row(pattern, tables))


def match_rows(rows: dict[str, Row], patterns: list[str], unknown: Callable[[str], str]
               ) -> list[Row]:
    """Return the rows whose names match a pattern, in their order; all if there is no pattern.

    Args:
        rows: rows by name.
        patterns: names, with '*' and '?' allowed.
        unknown: returns the message for a pattern that matches no name.

    Raises:
        ReproduceError: A pattern matches no name.
    """
    chosen = set()
    for pattern in patterns or ['*']:
        matching = fnmatch.filter(rows, pattern)
        if not matching:
            raise ReproduceError(unknown(pattern))
        chosen.update(matching)
    return [row for name, row in rows.items() if name in chosen]


def nearest(name: str, names: list[str]) -> str:
    """Return a question about the name that was probably meant, or a list of all names."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    return f'did you mean {near[0]}?' if near else f'choose from {", ".join(dict.fromkeys(names))}'


def _unknown_row(name: str, tables: list[int]) -> str:
    every = {row.name: table for table in TASKS for row in load_table(table)}
    name = next(iter(fnmatch.filter(every, name)), name)
    listed = ' or '.join(map(str, tables))
    if name in every:
        other = every[name]
        add = 'add' if dataset_of(tables) == dataset_of([other]) else 'pass'
        return f'{name} is a row of Table {other}: {add} --table {other}'
    rows = [row.name for table in DATASETS[dataset_of(tables)] for row in load_table(table)]
    return f'{name!r} is not a row of Table {listed}: {nearest(name, rows)}'


def plan_runs(rows: list[Row], seeds: int, settings: Settings, kind: type[Run] = Run) -> list[Run]:
    """Return every row with every seed: first all rows with seed 0, then with seed 1, ..."""
    return [kind(row, seed, settings) for seed in range(seeds) for row in rows]
