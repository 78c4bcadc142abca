"""One HTML page with all pictures, which needs no other file."""
import base64
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np

from ...checkpoint.files import write_atomically

QUALITY = 90  # percent

STYLE = '''
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1280px;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; border-top: 1px solid #888; padding-top: 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { opacity: .7; } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1rem 0 2rem; } img { max-width: 100%; }
figcaption, .remark { font-size: .9rem; opacity: .8; }
'''


@dataclass(frozen=True)
class Drawing:
    """A picture with its explanation.

    Attributes:
        name: name of the PNG file, without suffix.
        png: content of the file.
        caption: a sentence or two.
        least_width: width on the page, in pixels, to which a smaller picture is enlarged.
    """

    name: str
    png: bytes
    caption: str
    least_width: int = 0


@dataclass(frozen=True)
class Section:
    """One image on the page: heading, pictures, and remarks on what could not be drawn."""

    heading: str
    drawings: list[Drawing]
    remarks: list[str]


def write_page(path: Path, title: str, facts: dict[str, str], sections: list[Section]) -> None:
    """Write a page with all its pictures inside, completely or not at all.

    Args:
        path: path of the .html file, whose folder must exist.
        title: title of the page.
        facts: facts about the models and the machine, by name.
        sections: sections in order.
    """
    definitions = ''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>\n'
                          for name, value in facts.items())
    write_atomically(path, f'''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<dl>
{definitions}</dl>
{"".join(map(_section, sections))}</body>
</html>
''')


def _section(section: Section) -> str:
    remarks = ''.join(f'<p class="remark">{escape(remark)}</p>\n' for remark in section.remarks)
    return (f'<section>\n<h2>{escape(section.heading)}</h2>\n{remarks}'
            f'{"".join(map(_figure, section.drawings))}</section>\n')


def _figure(drawing: Drawing) -> str:
    kind, content = _smaller(drawing.png)
    width = f' style="min-width: min(100%, {drawing.least_width}px)"' if drawing.least_width else ''
    return (f'<figure>\n<img{width} alt="{escape(drawing.name)}" '
            f'src="data:image/{kind};base64,{base64.b64encode(content).decode()}">\n'
            f'<figcaption>{escape(drawing.caption)}</figcaption>\n</figure>\n')


def _smaller(png: bytes) -> tuple[str, bytes]:
    """Return a PNG, or the same picture as WebP if that is smaller, as for photographs."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    webp = cv2.imencode('.webp', image, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])[1].tobytes()
    return ('webp', webp) if len(webp) < len(png) else ('png', png)
