"""Which class has which label: in annotations, in metainfo and in the heads of a model."""
import difflib
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import ConfigDict
from mmengine.fileio import list_from_file

from .annotations import Annotations
from .config import Doubt, listed


def class_names(value: object) -> list[str] | str | None:
    """Return the classes of a data set, as MMEngine reads what its config says of them.

    Args:
        value: ``metainfo.classes``: the names, or the path of a file with a name in each line.

    Returns:
        The names; the text itself where there is no such file; None where nothing is said.
    """
    if isinstance(value, str):
        return list_from_file(value) if Path(value).is_file() else value
    return list(value) if value else None


def labelled(annotations: Annotations, classes: list[str]) -> list[str]:
    """Return the categories that MMDetection gives the labels 0, 1, 2, ...

    They are those that ``classes`` name, in the order of the file of annotations.
    """
    return [name for name in annotations.categories if name in classes]


def label_problems(path: Path, annotations: Annotations, classes: list[str] | str
                   ) -> Iterator[str]:
    """Yield why labels would get the names of other classes, or none."""
    if isinstance(classes, str):
        yield (f'metainfo.classes={classes!r} is neither a file nor a list of names: write '
               f'classes=({classes!r}, ) for one class, with the comma, or the path of a file with '
               'a class in each line')
        return
    names = labelled(annotations, classes)
    if not names:
        yield (f'{path} has none of the {len(classes)} classes of its data set '
               f'({listed(classes)}): its categories are {listed(annotations.categories)}. Name '
               "these in the data set's metainfo=dict(classes=(...)), and their number in the "
               "heads' num_classes")
        return
    wrong = [label for label, name in enumerate(names) if [name] != classes[label:label + 1]]
    if wrong:
        label, *more = wrong
        called = repr(classes[label]) if label < len(classes) else 'nothing'
        yield (f'label {label} is {names[label]!r} in {path} and would be called {called}'
               f'{f", and {len(more)} more are wrong" if more else ""}: MMDetection numbers labels '
               "in the order of the file's categories, and takes their names from metainfo.classes"
               f'{_misspelt(annotations, classes)}. {_remedy(annotations, classes)}')


def disagreement(path: Path, names: list[str], other_path: Path, others: list[str]) -> str | None:
    """Return which label has another name in another file; None if they have the same names."""
    for label, (name, other) in enumerate(zip(names, others, strict=False)):
        if name != other:
            return (f'label {label} is {name!r} in {path} and {other!r} in {other_path}: write the '
                    'categories of both in the same order, and give their data sets the same '
                    'metainfo.classes')
    return None


def head_problems(heads: dict[str, int], path: Path, annotations: Annotations, classes: list[str],
                  evaluated: bool) -> Iterator[str]:
    """Yield the heads that have another number of classes than a file of annotations.

    Args:
        heads: ``heads_of`` a model.
        path, annotations: the file.
        classes: of its data set.
        evaluated: whether predictions are looked up in the file.
    """
    count = len(labelled(annotations, classes))
    few = {option: number for option, number in heads.items() if number < count}
    many = {option: number for option, number in heads.items() if number > count}
    if few:
        yield (f'{_options(few)}, and {path} has {count} classes: objects of the others would be '
               f'taught as background. Give --cfg-options {_options(few, count)}')
    elif many and max(many.values()) > len(classes):
        problem = (f'{_options(many)}, and {path} has {count} classes: MMDetection stops when a '
                   'label beyond them is evaluated (IndexError). Give --cfg-options '
                   f'{_options(many, count)}')
        yield problem if evaluated else Doubt(problem)
    elif many:
        unknown = [name for name in classes if name not in annotations.categories]
        problem = (f'{path} has no category for {len(unknown)} of the {len(classes)} classes '
                   f'({listed(unknown)}){_misspelt(annotations, classes)}: MMDetection stops when '
                   'one is evaluated (IndexError). Add it to the file, or leave it out of '
                   'metainfo.classes and num_classes')
        yield problem if evaluated else Doubt(problem)


def heads_of(node: ConfigDict | None, path: str = 'model') -> dict[str, int]:
    """Return the number of classes of each head of a model, by the option that sets it.

    Heads for other classes are left out: for objects as such, for stuff, for words of a text.
    """
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if not isinstance(node, dict) or is_open(node):
        return {}
    found = {}
    for key, value in node.items():
        if key == 'num_classes' and isinstance(value, int):
            found[f'{path}.{key}'] = value
        elif key not in ('rpn_head', 'semantic_head'):
            found |= heads_of(value, f'{path}.{key}')
    return found


def is_open(model: ConfigDict) -> bool:
    """Return whether a model is told its classes by a text, and may be tested on any others."""
    return 'language_model' in model


def _options(heads: dict[str, int], count: int | None = None) -> str:
    return ' '.join(f'{option}={heads[option] if count is None else count}' for option in heads)


def _near(annotations: Annotations, classes: list[str]) -> dict[str, str]:
    """Return the category that may be meant by each class that is none."""
    unnamed = [name for name in annotations.categories if name not in classes]
    found = {name: difflib.get_close_matches(name, unnamed, n=1)
             for name in classes if name not in annotations.categories}
    return {name: near[0] for name, near in found.items() if near}


def _misspelt(annotations: Annotations, classes: list[str]) -> str:
    near = _near(annotations, classes)
    return ''.join(f' ({name!r} is none of them: did you mean {meant!r}?)'
                   for name, meant in list(near.items())[:3])


def _remedy(annotations: Annotations, classes: list[str]) -> str:
    """Return what to write instead."""
    near = _near(annotations, classes)
    names = dict.fromkeys(labelled(annotations, [near.get(name, name) for name in classes]))
    if len(names) < len(classes):
        return 'Name the categories of the file, in its order, or add those that it lacks'
    return f'Write classes={tuple(names)}'
