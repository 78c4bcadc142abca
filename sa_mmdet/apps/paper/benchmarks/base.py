from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from ....checkpoint.files import sha256
from ..tables import Row

SPLITS = ('train', 'val', 'test')
TOLERANCE = 1e-6


class Benchmark(ABC):
    """A data set with its metrics: where it is, what it must contain, how runs are evaluated.

    A run is evaluated by task: 'bbox' and 'segm' for a detector, 'accuracy' for a classifier. For
    each task the test saves what was predicted for every image. The metrics are computed from that
    file.

    Attributes:
        name: 'ImageNet', 'COCO' or 'shapes'.
        data_root, work_dir: default folders, relative to the current one.
        scope: MMEngine's scope for models, and the package whose tools train and test them.
        dataset_keys: keys that the config of a data set must set.
        bytes_of_predictions: bytes for all images, by task.
        kept_checkpoints: how many of the last checkpoints a run keeps.
        bytes_per_parameter: bytes in a checkpoint, including the optimizer's state.
    """

    name: str
    data_root: Path
    work_dir: Path
    scope: str
    dataset_keys: tuple[str, ...]
    bytes_of_predictions: dict[str, int]
    kept_checkpoints = 2
    bytes_per_parameter = 8

    @abstractmethod
    def tasks(self, row: Row) -> tuple[str, ...]:
        """Return the tasks that a row is evaluated by."""

    @abstractmethod
    def place(self, config: Config, data_root: Path) -> None:
        """Make a config read the data under ``data_root``."""

    @abstractmethod
    def save_predictions(self, config: Config, folder: Path) -> None:
        """Make the test of a config save its predictions in a folder."""

    @abstractmethod
    def prediction_file(self, folder: Path, task: str) -> Path:
        """Return the file that ``save_predictions`` makes the test write."""

    def prepare(self, data_root: Path) -> None:  # noqa: B027
        """Create what is missing under ``data_root``, if it can be created."""

    def software_problem(self) -> str | None:
        """Return a sentence on missing software that the package itself doesn't need, or None."""
        return None

    @abstractmethod
    def data_problems(self, config: Config, splits: tuple[str, ...]) -> Iterator[str]:
        """Yield what is wrong with the data of a config, as sentences.

        Args:
            config: config of a run.
            splits: the splits that are read: all of 'train', 'val' and 'test', or only 'test'.
        """

    @abstractmethod
    def describe(self, config: Config) -> dict:
        """Return what a config is tested on.

        Returns:
            'images', their number; 'is_papers', whether they are the paper's; 'label', a readable
            name; and what ``change`` and ``evaluate`` need.
        """

    @abstractmethod
    def change(self, evaluated_on: dict) -> str | None:
        """Return a sentence if what ``describe`` returned is gone or has changed, else None."""

    @abstractmethod
    def evaluate(self, evaluated_on: dict, predictions: Path, task: str) -> dict[str, float]:
        """Return the metrics of predictions, in [0, 1]; -1 if there is nothing to count.

        Raises:
            ValueError: The file is not from these images.
        """

    @abstractmethod
    def logged(self, task: str) -> dict[str, str]:
        """Return the name under which the test logs each metric."""

    @abstractmethod
    def is_as_logged(self, value: float, logged: float) -> bool:
        """Return whether a metric equals what the test logged, to the log's precision."""

    def differs_from_log(self, result: dict, task: str) -> list[str]:
        """Return a sentence for each metric of a result that differs from what its test logged."""
        logged, names = result['logged'], self.logged(task)
        return [f'{task} {metric} is {value:.6f}, but the test logged {logged[names[metric]]}'
                for metric, value in result['metrics'][task].items()
                if not self.is_as_logged(value, logged[names[metric]])]

    def check_result(self, result: dict, folder: Path) -> list[str]:
        """Evaluate a finished run's predictions again.

        Args:
            result: the content of its result.json.
            folder: folder of its files.

        Returns:
            What is wrong; empty if the files and every figure are unchanged.
        """
        evaluated_on = result['evaluated_on']
        try:
            change = self.change(evaluated_on)
        except (OSError, ValueError) as error:
            change = str(error)
        if change:
            return [change]
        return [problem for task, saved in result['predictions'].items()
                for problem in self._check_task(result, task, folder / saved['file'],
                                                saved['sha256'])]

    def _check_task(self, result: dict, task: str, path: Path, digest: str) -> Iterator[str]:
        if not path.is_file():
            yield f'{path} does not exist'
            return
        if sha256(path) != digest:
            yield f'{path} was changed after it was evaluated: its SHA-256 differs'
        try:
            metrics = self.evaluate(result['evaluated_on'], path, task)
        except Exception as error:  # a changed file can be wrong in any way
            yield f'{path} cannot be evaluated: {error!r}'
            return
        yield from (f'{task} {name} is {metrics[name]:.6f}, but {value:.6f} was reported'
                    for name, value in result['metrics'][task].items()
                    if abs(metrics[name] - value) > TOLERANCE)
        if result['logged']:
            yield from self.differs_from_log(result | dict(metrics={task: metrics}), task)
