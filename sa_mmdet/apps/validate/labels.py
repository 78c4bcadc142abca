"""Which class has which label: in annotations, in metainfo and in the heads of a model."""
import difflib
from collections.abc import Iterator

from mmengine.config import ConfigDict

from .config import Doubt, listed
from .dataset import Source


def label_problems(model: ConfigDict, trained: list[Source], evaluated: list[Source]
                   ) -> Iterator[str]:
    """Yield where labels have other names, or another number, than data sets and heads say.

    Args:
        model: config of a detector.
        trained, evaluated: what it learns from, and what its predictions are looked up in.
    """
    sources = [*trained, *evaluated]
    problems = [problem for source in sources for problem in _name_problems(source)]
    yield from problems
    if problems or is_open(model):
        return
    if problem := next(filter(None, (_disagreement(sources[0], other) for other in sources)), None):
        yield problem
        return
    heads = heads_of(model)
    problems = [problem for source in sources
                for problem in _head_problems(heads, source, source in evaluated)]
    yield from [problem for problem in problems if not isinstance(problem, Doubt)] or problems


def _name_problems(source: Source) -> Iterator[str]:
    """Yield why labels would get the names of other classes, or none."""
    classes, names, path = source.classes, source.names, source.path
    if isinstance(classes, str):
        yield (f'metainfo.classes={classes!r} is neither a file nor a list of names: write '
               f'classes=({classes!r}, ) for one class, with the comma, or the path of a file with '
               'a class in each line')
        return
    if not names:
        yield (f'{path} has none of the {len(classes)} classes of its data set '
               f'({listed(classes)}): its categories are {listed(source.annotations.categories)}. '
               "Name these in the data set's metainfo=dict(classes=(...)), and their number in the "
               "heads' num_classes")
        return
    wrong = [label for label, name in enumerate(names) if [name] != classes[label:label + 1]]
    if wrong:
        label, *more = wrong
        called = repr(classes[label]) if label < len(classes) else 'nothing'
        yield (f'label {label} is {names[label]!r} in {path} and would be called {called}'
               f'{f", and {len(more)} more are wrong" if more else ""}: MMDetection numbers labels '
               "in the order of the file's categories, and takes their names from metainfo.classes"
               f'{_misspelt(source)}. {_remedy(source)}')


def _disagreement(source: Source, other: Source) -> str | None:
    """Return which label has another name in another file; None if they have the same names."""
    for label, (name, others) in enumerate(zip(source.names, other.names, strict=False)):
        if name != others:
            return (f'label {label} is {name!r} in {source.path} and {others!r} in {other.path}: '
                    'write the categories of both in the same order, and give their data sets the '
                    'same metainfo.classes')
    return None


def _head_problems(heads: dict[str, int], source: Source, evaluated: bool) -> Iterator[str]:
    """Yield the heads that have another number of classes than a file of annotations."""
    path, classes, count = source.path, source.classes, len(source.names)
    few = [option for option, number in heads.items() if number < count]
    many = [option for option, number in heads.items() if number > count]
    if few:
        yield (f'{_options(few, heads)}, and {path} has {count} classes: objects of the others '
               'would be taught as background. Give --cfg-options '
               f'{_options(few, dict.fromkeys(few, count))}')
        return
    if not many:
        return
    if max(heads[option] for option in many) > len(classes):
        problem = (f'{_options(many, heads)}, and {path} has {count} classes: MMDetection stops '
                   'when a label beyond them is evaluated (IndexError). Give --cfg-options '
                   f'{_options(many, dict.fromkeys(many, count))}')
    else:
        unknown = [name for name in classes if name not in source.names]
        problem = (f'{path} has no category for {len(unknown)} of the {len(classes)} classes '
                   f'({listed(unknown)}){_misspelt(source)}: MMDetection stops when one is '
                   'evaluated (IndexError). Add it to the file, or leave it out of '
                   'metainfo.classes and num_classes')
    yield problem if evaluated else Doubt(problem)


def _options(options: list[str], numbers: dict[str, int]) -> str:
    return ' '.join(f'{option}={numbers[option]}' for option in options)


def _near(source: Source) -> dict[str, str]:
    """Return the category that may be meant by each class that is none."""
    unnamed = [name for name in source.annotations.categories if name not in source.classes]
    near = {name: difflib.get_close_matches(name, unnamed, n=1)
            for name in source.classes if name not in source.names}
    return {name: found[0] for name, found in near.items() if found}


def _misspelt(source: Source) -> str:
    return ''.join(f' ({name!r} is none of them: did you mean {meant!r}?)'
                   for name, meant in list(_near(source).items())[:3])


def _remedy(source: Source) -> str:
    """Return what to write instead."""
    near = _near(source)
    meant = {near.get(name, name) for name in source.classes}
    names = tuple(name for name in source.annotations.categories if name in meant)
    if len(names) != len(source.classes):
        return 'Name the categories of the file, in its order, each once'
    return f'Write classes={names}'


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
