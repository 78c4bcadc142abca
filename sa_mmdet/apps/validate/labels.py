"""Check that annotations, metainfo and heads give the same label to each class."""
import difflib
from collections import Counter
from collections.abc import Iterator

from mmengine.config import ConfigDict

from .config import Doubt, listed
from .dataset import Source
from .evaluation import Counted

OTHER_PARTS = 'backbone', 'neck', 'reid', 'data_preprocessor', 'rpn_head', 'semantic_head'
MOST_NAMES = 30  # listed in a message


def label_problems(model: ConfigDict, trained: list[Source], counted: list[Counted]
                   ) -> Iterator[str]:
    """Yield how data sets and heads disagree on the names or the number of labels.

    Args:
        model: the config of a detector.
        trained: the data sets that it is trained on.
        counted: the annotations that its predictions are compared with.
    """
    sources = [*trained, *(file.source for file in counted)]
    wrong = [problem for source in sources for problem in _name_problems(source)]
    if not wrong and not is_open(model):
        wrong = list(filter(None, (_disagreement(sources[0], other) for other in sources)))[:1]
    yield from wrong
    heads = heads_of(model)
    doubts, problems = [], []
    for source, file in [*((source, None) for source in trained),
                         *((file.source, file) for file in counted)]:
        # a misspelt class alone makes the number wrong
        if not wrong or Counter(source.names) == Counter(source.classes):
            found = list(_head_problems(heads, source, file))
            doubts += [problem for problem in found if isinstance(problem, Doubt)]
            problems += [problem for problem in found if not isinstance(problem, Doubt)]
    yield from problems or doubts


def _name_problems(source: Source) -> Iterator[str]:
    """Yield why labels would get the names of other classes, or no name."""
    classes, names, path = source.classes, source.names, source.path
    if 'CLASSES' in (source.config.get('metainfo') or {}):
        yield 'MMDetection 3 ignores metainfo.CLASSES: write metainfo=dict(classes=(...))'
    elif isinstance(classes, str):
        yield (f'metainfo.classes={classes!r} is neither a file nor a list of names: write '
               f'classes=({classes!r}, ) for one class, with the comma, or give the path of a file '
               'with one class per line')
    elif not names:
        yield (f'{path} has none of the {len(classes)} classes of its data set '
               f'({listed(classes)}){_misspelt(source)}. {_remedy(source)}, and set num_classes '
               'of the heads to their number')
    elif len(source.labels) != len(dict(source.labels)):
        yield f'{path} has several categories with the same id: give each its own id'
    elif wrong := [label for label, name in enumerate(names) if [name] != classes[label:label + 1]]:
        label, *more = wrong
        called = repr(classes[label]) if label < len(classes) else 'nothing'
        yield (f'label {label} is {names[label]!r} in {path}, but would be called {called}'
               f'{f", and {len(more)} more are wrong" if more else ""}. MMDetection numbers labels '
               "in the order of the file's categories, and takes their names from metainfo.classes"
               f'{_misspelt(source)}. {_remedy(source)}')


def _disagreement(source: Source, other: Source) -> str | None:
    """Return which label has another name in another file, or None if the names agree."""
    for label, (name, others) in enumerate(zip(source.names, other.names, strict=False)):
        if name != others:
            return (f'label {label} is {name!r} in {source.path}, but {others!r} in {other.path}: '
                    'write the categories of both in the same order, and give their data sets the '
                    'same metainfo.classes')
    return None


def _head_problems(heads: dict[str, int], source: Source, counted: Counted | None
                   ) -> Iterator[str]:
    """Yield the heads whose number of classes differs from the data's."""
    path, classes = source.path, source.classes
    count = counted.labels if counted else len(source.names)
    few = {option: count for option, number in heads.items() if number < count}
    many = {option: count for option, number in heads.items() if number > count}
    found = ' '.join(f'{option}={heads[option]}' for option in few or many)
    remedy = 'Give --cfg-options ' + ' '.join(f'{option}={count}' for option in few or many)
    if few and counted:
        yield Doubt(f'{found}, but {path} has {count} classes: the others are never found. '
                    f'{remedy}')
    elif few:
        yield (f'{found}, but {path} has {count} classes: objects of the others would be learned '
               f'as background. {remedy}')
    elif many:
        if max(heads[option] for option in many) <= len(classes):
            unknown = [name for name in classes if name not in source.names]
            problem = (f'{path} has no category for {len(unknown)} of the {len(classes)} classes '
                       f'({listed(unknown)}){_misspelt(source)}: MMDetection stops with an '
                       'IndexError when one is evaluated. Add them to the file, or leave them out '
                       'of metainfo.classes and num_classes')
        else:
            problem = (f'{found}, but {path} has {count} classes: MMDetection stops with an '
                       f'IndexError when a label beyond them is evaluated. {remedy}')
        yield problem if counted else Doubt(problem)


def _near(source: Source) -> dict[str, str]:
    """Return, for each class that is not a category, the category that it may mean."""
    unnamed = {str(name).strip().casefold(): name for _, name in source.annotations.categories
               if name not in source.classes}
    near = {name: difflib.get_close_matches(str(name).strip().casefold(), unnamed, n=1)
            for name in source.classes if name not in source.names}
    return {name: unnamed[found[0]] for name, found in near.items() if found}


def _misspelt(source: Source) -> str:
    return ''.join(f' ({name!r} is not in the file: did you mean {meant!r}?)'
                   for name, meant in list(_near(source).items())[:3])


def _remedy(source: Source) -> str:
    """Return the metainfo to write instead."""
    near = _near(source)
    meant = {near.get(name, name) for name in source.classes}
    categories = tuple(dict.fromkeys(name for _, name in source.annotations.categories))
    names = tuple(name for name in categories if name in meant)
    names = names if len(names) == len(source.classes) else categories
    if len(names) > MOST_NAMES:
        return ("Give the data set metainfo=dict(classes=(...)) with the file's categories, in its "
                f'order: {listed(names)}')
    return f'Give the data set metainfo=dict(classes={names})'


def heads_of(node: ConfigDict | None, path: str = 'model') -> dict[str, int]:
    """Return the number of classes of each head of a model, by the option that sets it.

    Class-agnostic, semantic and text-driven heads are left out.
    """
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if not isinstance(node, dict) or is_open(node):
        return {}
    found = {}
    for key, value in node.items():
        if key == 'num_classes' and isinstance(value, int):
            found[f'{path}.{key}'] = value
        elif key not in OTHER_PARTS:
            found |= heads_of(value, f'{path}.{key}')
    return found


def is_open(model: ConfigDict) -> bool:
    """Return whether a model reads its classes as text, and so may be tested on any others."""
    return 'language_model' in model
