"""The study's drawn images, in COCO's format and evaluated like COCO."""
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from ...datasets.textured import textured_shapes
from ...validate.config import folder_problem
from .coco import Coco


class Shapes(Coco):
    """Textured shapes: AP of boxes and masks. Missing images are drawn."""

    name = 'shapes'
    data_root = Path('data/textured_shapes')
    work_dir = Path('work_dirs/study')
    bytes_of_predictions = {'bbox': 3_000_000, 'segm': 5_000_000}
    kept_checkpoints = 1
    bytes_per_parameter = 16  # with AdamW's state, and the start weights

    def prepare(self, data_root: Path) -> None:
        if not textured_shapes().is_in(data_root):
            print(f'drawing 2,500 images into {data_root} (about a minute)', flush=True)
        textured_shapes().write(data_root)

    def data_problems(self, config: Config, splits: tuple[str, ...]) -> Iterator[str]:
        data_root = Path(config.test_dataloader.dataset.data_root)
        if problem := textured_shapes().problem(data_root):
            yield problem
        elif textured_shapes().is_in(data_root):
            yield from super().data_problems(config, splits)
        elif problem := folder_problem(data_root.parent):
            yield f'{problem}: choose another --data-root'

    def describe(self, config: Config) -> dict:
        found = super().describe(config)
        return found | dict(label=f'{found["images"]:,} drawn images ({found["sha256"][:8]})')
