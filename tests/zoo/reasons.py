"""Why a detector cannot run, in a line that its user understands."""
import re

EXPLANATIONS = [
    (r'(\w+?)(?:_forward|_backward)?(?:_impl)?: implementation for device cpu not found',
     r'mmcv has no CPU code for its operator \1'),
    ('inconsistent with step sign',
     'MMDetection cannot paste the mask of a box outside the image on a CPU'),
    ("'SSDHead' object has no attribute 'loss_cls'",
     "MMDetection's SSD cannot predict (its issue 11063)"),
    ('Please train `detector` and `reid`', 'needs a trained detector and re-identification'),
    (r'mat1 and mat2 shapes cannot be multiplied', 'takes images of one size, and not squares'),
    (r'pip install sklearn', 'needs scikit-learn'),
    (r"No module named '(\w+)", r'needs \1'),
    (r"imports': \['(\w+)", r'needs \1'),
    (r'(?:run "mim )?install (mmpretrain)', r'needs \1'),
    (r'pip install "?([\w-]+)', r'needs \1'),
]


def explain(error: Exception) -> str:
    """Return one line; the error's own first line where nothing better is known."""
    text = f'{type(error).__name__}: {error}'
    for pattern, explanation in EXPLANATIONS:
        if match := re.search(pattern, text):
            return match.expand(explanation)
    return re.sub(r'\s+', ' ', text.partition('\n')[0])
