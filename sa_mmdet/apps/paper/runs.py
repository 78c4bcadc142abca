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
    """Something that the user has to change; the message says what was found, and what to do."""


class RunFailed(Exception):
    """One run ended without a result; the others can go on."""


@dataclass(frozen=True)
class Settings:
    """What all runs of a work dir have in common.

    Attributes:
        root: folder with configs/ and tools/: the repository, or .mim of the installed package.
        work_dir: folder of the runs and their report.
        data_root: folder of the benchmark's data in its usual layout.
        gpus: processes, each with one GPU; 0 is one process on the CPU.
        slurm: partition of a Slurm cluster to run on; None is this machine.
        init: 'resnet', the start of the configs, or 'imagenet', backbones trained on ImageNet
            with their attention.
        starts: what 'imagenet' changes of the backbones' configs, by (depth, attention).
        cfg_options: overrides of all configs.
        checkpoints: models to test instead of training them, by the names of their rows.
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
        """Return what the results depend on: a work dir holds runs of one identity."""
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
    def benchmark(self) -> Benchmark:
        """What it is trained and evaluated on."""
        return BENCHMARKS[self.row.dataset]

    def prediction_file(self, task: str) -> Path:
        """Return all that was predicted in the test."""
        return self.benchmark.prediction_file(self.folder, task)

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
        """Have a config start from the weights that the settings give."""
        if self.settings.starts:
            config.model.backbone.update(self.settings.starts[self.row.depth, self.row.attention])

    @property
    def start_file(self) -> Path | None:
        """The checkpoint to start from, if this command makes it; None otherwise."""
        return None

    @property
    def start_sha256(self) -> str | None:
        """SHA-256 that ``start_file`` had when the training began."""
        return None

    def make_start(self) -> None:
        """Make ``start_file``, or check that it is there, before the training begins or resumes.

        Raises:
            RunFailed: there is none, or another one than the training began with.
        """

    @property
    def tasks(self) -> tuple[str, ...]:
        """By which it is evaluated: 'bbox' and 'segm' of a detector, 'accuracy' of a classifier."""
        return self.benchmark.tasks(self.row)

    @property
    def epochs(self) -> int:
        return self.config.train_cfg.max_epochs

    @property
    def final_checkpoint(self) -> Path:
        """What the training ends with."""
        return self.folder / f'epoch_{self.epochs}.pth'

    def last_checkpoint(self) -> tuple[int, Path | None]:
        """Return the last whole checkpoint and its epoch; (0, None) where there is none."""
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
    """Return the content of a run's result.json, with these keys at least.

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


def benchmark_of(result: dict) -> Benchmark:
    """Return the benchmark of a run by its result; older ones do not name it."""
    name = result.get('dataset') or ('ImageNet' if 'accuracy' in result['metrics'] else 'COCO')
    return BENCHMARKS[name]


def dataset_of(tables: list[int]) -> str:
    """Return the data set that tables are measured on: 'ImageNet' or 'COCO'.

    Raises:
        ReproduceError: they are of both.
    """
    datasets = [name for name, measured in DATASETS.items() if set(measured) & set(tables)]
    if len(datasets) > 1:
        raise ReproduceError(
            f'--table {" ".join(map(str, tables))}: Tables 1 and 2 are of ImageNet, 3 and 4 of '
            'COCO. Run them one after the other; the detectors start from the classifiers by '
            '--init imagenet=...')
    return datasets[0]


def select_rows(tables: list[int], patterns: list[str]) -> list[Row]:
    """Return the rows of the tables, each once, in the paper's order.

    Args:
        tables: of 1 and 2, which share SA-ResNet-50, or of 3 and 4, which share Mask R-CNN.
        patterns: names of rows, such as 'mask-rcnn_sa-r50', '*' and '?' allowed; none is all.

    Raises:
        ReproduceError: a pattern is no row of these tables, or they are of two data sets.
    """
    dataset_of(tables)
    rows = {}
    for table in tables:
        for row in load_table(table):
            rows.setdefault(row.name, row)
    return match_rows(rows, patterns, lambda pattern: _unknown_row(pattern, tables))


def match_rows(rows: dict[str, Row], patterns: list[str], unknown: Callable[[str], str]
               ) -> list[Row]:
    """Return the rows whose names match a pattern, in their order; all where there is none.

    Args:
        rows: by their names.
        patterns: names, '*' and '?' allowed.
        unknown: what to tell of a pattern that no name matches.

    Raises:
        ReproduceError: there is such a pattern.
    """
    chosen = set()
    for pattern in patterns or ['*']:
        matching = fnmatch.filter(rows, pattern)
        if not matching:
            raise ReproduceError(unknown(pattern))
        chosen.update(matching)
    return [row for name, row in rows.items() if name in chosen]


def nearest(name: str, names: list[str]) -> str:
    """For people: the name that was meant perhaps, or all of them."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    return f'did you mean {near[0]}?' if near else f'they are {", ".join(dict.fromkeys(names))}'


def _unknown_row(name: str, tables: list[int]) -> str:
    every = {row.name: table for table in TASKS for row in load_table(table)}
    name = next(iter(fnmatch.filter(every, name)), name)
    listed = ' and '.join(map(str, tables))
    if name in every:
        other = every[name]
        add = 'add' if dataset_of(tables) == dataset_of([other]) else 'give'
        return f'{name} is a row of Table {other}: {add} --table {other}'
    rows = [row.name for table in DATASETS[dataset_of(tables)] for row in load_table(table)]
    return f'Table {listed} has no row {name!r}: {nearest(name, rows)}'


def plan_runs(rows: list[Row], seeds: int, settings: Settings, kind: type[Run] = Run) -> list[Run]:
    """Return every row with every seed: first all rows with seed 0, then all with seed 1, ..."""
    return [kind(row, seed, settings) for seed in range(seeds) for row in rows]
