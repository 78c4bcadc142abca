from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from ....checkpoint.files import sha256
from ..tables import Row

SPLITS = ('train', 'val', 'test')
TOLERANCE = 1e-6


class Benchmark(ABC):
    """A data set with its metrics: where it lies, what it must hold, how a run's figures are made.

    A run is evaluated by tasks: 'bbox' and 'segm' of a detector, 'accuracy' of a classifier. For
    each of them the test saves what was predicted for every image, and the figures are computed
    from that file.

    Attributes:
        name: 'ImageNet', 'COCO' or 'shapes'.
        data_root, work_dir: the usual places, relative to the folder of a command.
        scope: MMEngine's, in which models are built; also the package whose tools train and test.
        dataset_keys: what the config of a data set must say.
        bytes_of_predictions: for all images, by task.
        kept_checkpoints: of a run, the last ones.
        bytes_per_parameter: of a checkpoint, with what its optimizer keeps.
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
        """Return what a row is evaluated by."""

    @abstractmethod
    def place(self, config: Config, data_root: Path) -> None:
        """Have a config read the data under ``data_root``."""

    @abstractmethod
    def save_predictions(self, config: Config, folder: Path) -> None:
        """Have the test of a config save its predictions in a folder."""

    @abstractmethod
    def prediction_file(self, folder: Path, task: str) -> Path:
        """Return what ``save_predictions`` has the test write."""

    def prepare(self, data_root: Path) -> None:  # noqa: B027
        """Make the data that is missing under ``data_root``, if it can be made here."""

    def software_problem(self) -> str | None:
        """For people: what is missing to train on it at all, beyond what the package needs."""
        return None

    @abstractmethod
    def data_problems(self, config: Config, splits: tuple[str, ...]) -> Iterator[str]:
        """Yield what is wrong with the data of a config, sentences for people.

        Args:
            config: of a run.
            splits: what is read of it, all of 'train', 'val' and 'test' or 'test' alone.
        """

    @abstractmethod
    def describe(self, config: Config) -> dict:
        """Return what a config is tested on.

        Returns:
            'images', their number; 'is_papers', whether they are those of the paper; 'label', for
            people; and what ``change`` and ``evaluate`` need.
        """

    @abstractmethod
    def change(self, evaluated_on: dict) -> str | None:
        """For people: whether what ``describe`` told of is not there any more, or another now."""

    @abstractmethod
    def evaluate(self, evaluated_on: dict, predictions: Path, task: str) -> dict[str, float]:
        """Return the metrics of predictions, in [0, 1]; -1 where there is nothing to count.

        Raises:
            ValueError: the file is not of these images.
        """

    @abstractmethod
    def logged(self, task: str) -> dict[str, str]:
        """Return the name that the test logs each metric under."""

    @abstractmethod
    def is_as_logged(self, value: float, logged: float) -> bool:
        """Return whether a metric is what the test logged, to the log's precision."""

    def differs_from_log(self, result: dict, task: str) -> list[str]:
        """Return the metrics of a run's result that are not what its test logged."""
        logged, names = result['logged'], self.logged(task)
        return [f'{task} {metric} is {value:.6f}, logged {logged[names[metric]]}'
                for metric, value in result['metrics'][task].items()
                if not self.is_as_logged(value, logged[names[metric]])]

    def check_result(self, result: dict, folder: Path) -> list[str]:
        """Evaluate a finished run's predictions again.

        Args:
            result: the content of its result.json.
            folder: where its files are.

        Returns:
            What is wrong, nothing if the files and every figure are as they were.
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
        yield from (f'{task} {name} is {metrics[name]:.6f}, reported {value:.6f}'
                    for name, value in result['metrics'][task].items()
                    if abs(metrics[name] - value) > TOLERANCE)
        if result['logged']:
            yield from self.differs_from_log(result | dict(metrics={task: metrics}), task)
