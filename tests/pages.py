"""The Markdown pages of the repository: what they say to type, and where their links lead."""
import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for folder in (ROOT, ROOT / 'configs', ROOT / 'docs', ROOT / 'docs/api')
               for page in folder.glob('*.md'))

FENCED = re.compile(r'^( *)```(\S*)\n(.*?)^\1```$', re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r'(?:^|\s)# ?(.*)')
NEEDS = re.compile(r'needs .*(COCO|GPU|ImageNet|the network|a quiet machine)')


@dataclass(frozen=True)
class Block:
    """What is between two fences."""
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name under which it is to be saved: its first line, as a comment."""
        match = re.match(r'# (\S+\.py)\n', self.text)
        return match[1] if match and self.language == 'python' else None


@dataclass(frozen=True)
class Command:
    """A command, without its comment, and what the comment says of it."""
    text: str
    needs: bool
    slow: bool

    @property
    def words(self) -> list[str]:
        """The program and its arguments, without variables before it and python."""
        words = shlex.split(self.text)
        while words and (re.match(r'\w+=', words[0]) or words[0] == 'python'):
            words.pop(0)
        return words

    @property
    def sets_variable(self) -> bool:
        return not self.words


def blocks(page: Path) -> list[Block]:
    return [Block(language, textwrap.dedent(text))
            for _, language, text in FENCED.findall(page.read_text())]


def commands(block: Block) -> list[Command]:
    """Return the commands of a Bash block. A comment in its first line holds for all of them."""
    lines = block.text.replace('\\\n', ' ').splitlines()
    of_all = lines[0] if lines[0].startswith('#') else ''
    found = []
    for line in filter(None, map(str.strip, lines)):
        command = COMMENT.sub('', line)
        if command:
            said = f'{of_all} {line.removeprefix(command)}'
            found.append(Command(' '.join(command.split()), bool(NEEDS.search(said)),
                                 'takes minutes' in said))
    return found


def inline_commands(page: Path) -> list[Command]:
    """Those of make and of tools/ that stand in a sentence or a table."""
    code = re.findall(r'`([^`]+)`', prose(page))
    return [Command(text.replace(' ...', ''), True, False) for text in code
            if re.match(r'(\w+=\S+ )*(make|(python )?tools/\w+\.(py|sh))( |$)', text)]


def prose(page: Path) -> str:
    return FENCED.sub('', page.read_text())


def links(page: Path) -> list[str]:
    return re.findall(r'\]\(([^)\s]+)\)', prose(page))


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives the headings of a page."""
    names, found = [], set()
    for heading in re.findall(r'^#+ (.+)$', prose(page), re.MULTILINE):
        heading = re.sub(r'\[(.*?)\]\(.*?\)', r'\1', heading)  # a link's text
        name = re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')
        found.add(f'{name}-{names.count(name)}' if name in names else name)
        names.append(name)
    return found
