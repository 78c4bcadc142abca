"""Why a detector cannot run, in a line that its user understands."""
import re

EXPLANATIONS = [
    (r'(\w+?)(?:_forward|_backward)?(?:_impl)?: implementation for device cpu not found',
     r"mmcv has no CPU code for its operator \1"),
    ('inconsistent with step sign',
     'MMDetection cannot paste the mask of a box outside the image on a CPU'),
    (r'pip install sklearn', 'needs scikit-learn'),
    (r"No module named '(\w+)", r'needs \1'),
    (r"imports': \['(\w+)", r'needs \1'),
    (r'(?:run "mim )?install (mmpretrain)', r'needs \1'),
    (r'pip install ([\w-]+)', r'needs \1'),
]
TOO_SMALL = re.compile('input image is smaller than kernel|selected index k out of range')


def explain(error: str) -> str:
    """One line for an error; the error's own first line where nothing better is known."""
    for pattern, explanation in EXPLANATIONS:
        if match := re.search(pattern, error):
            return match.expand(explanation)
    return re.sub(r'\s+', ' ', error.strip().partition('\n')[0])


def is_too_small(error: str) -> bool:
    """Whether larger images may help: the top of the pyramid is smaller than what works on it."""
    return bool(TOO_SMALL.search(error))
