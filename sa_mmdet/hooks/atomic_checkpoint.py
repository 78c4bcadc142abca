from pathlib import Path

from mmdet.registry import HOOKS
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ..checkpoint.files import remove_unfinished, write_atomically
from ..checkpoint.read import is_whole, last_whole


class AtomicBackend(LocalBackend):
    """MMEngine's local backend, which writes each file whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file. Raises what ``sa_mmdet.checkpoint.files.atomic_file`` raises."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(filepath), obj)


class RemovingLater(AtomicBackend):
    """Keeps outdated files until the files that replace them are written."""

    def __init__(self):
        self.outdated = []

    def remove(self, filepath: str | Path) -> None:
        """Note a file for ``remove_outdated``."""
        self.outdated.append(Path(filepath))

    def remove_outdated(self) -> None:
        """Remove the noted files."""
        while self.outdated:
            self.outdated.pop().unlink(missing_ok=True)


register_backend('sa_mmdet.atomic', AtomicBackend, force=True)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook for a training that may be killed at any moment.

    A checkpoint gets its name only when it is on the disk. Only then are the checkpoints that it
    outdates (``max_keep_ckpts``, ``save_best``) removed. MMEngine writes in place, and removes
    before it writes. With ``--resume``, training resumes from the last whole checkpoint in its
    folder, even if MMEngine's note of it (last_checkpoint) is missing or wrong.

    It takes all options of CheckpointHook. If ``out_dir`` or ``backend_args`` lead to remote
    storage, files are written and removed as MMEngine does.
    """

    def before_run(self, runner: Runner) -> None:
        """Correct MMEngine's note of the last checkpoint before MMEngine resumes from it."""
        resumes_by_the_note = runner._resume and runner._load_from is None
        if resumes_by_the_note and self.out_dir is None and is_main_process():
            self._correct_note(runner)
        barrier()

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if (type(self.file_backend) is not LocalBackend  # type: ignore[has-type]
                or self.file_client_args is not None):
            return
        self.file_backend = RemovingLater()
        self.backend_args = dict(backend='sa_mmdet.atomic')
        if is_main_process():
            remove_unfinished(Path(self.out_dir))

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_outdated()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self._remove_outdated()

    def _remove_outdated(self) -> None:
        if isinstance(self.file_backend, RemovingLater):
            self.file_backend.remove_outdated()

    def _correct_note(self, runner: Runner) -> None:
        note = Path(runner.work_dir) / 'last_checkpoint'
        noted = note.read_text().strip() if note.is_file() else ''
        if noted and (Path(noted).is_dir() or is_whole(Path(noted))):
            return
        found = f'{noted} is not whole' if noted else f'{note} names no checkpoint'
        last = last_whole(note.parent, self.filename_tmpl)
        if last:
            write_atomically(note, str(last[1]))
            runner.logger.warning(f'{found}: resuming from {last[1]}')
        else:
            note.unlink(missing_ok=True)
            runner.logger.warning(f'{found}, and {note.parent} has no whole checkpoint: training '
                                  'starts from the beginning')
