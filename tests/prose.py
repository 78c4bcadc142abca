"""Lint the prose of the pages for ``make lint``, with proselint's checks and ours.

Ours are a vocabulary and two limits on the length of sentences. Tables, headings and code have no
sentences.
"""
import re
import sys
from collections.abc import Iterator
from statistics import mean

from proselint.checks import __register__ as OF_PROSELINT
from proselint.config import DEFAULT
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, CheckResult, types
from proselint.tools import LintFile

from pages import FENCED, PAGES, ROOT

LONGEST = 35  # words in a sentence
LONGEST_MEAN = 16  # words in a page's mean sentence

# What reads as translated, as regular expressions, and what to write.
WORDS = {
    r'(?:is|are) no \w+ of': '"is not a ... of"',
    r'(?:that|those) of': 'the noun',
    r'told (?:from|apart)': '"distinguished"',
    r'mend(?:s|ed|ing)?': '"fix"',
    r'(?-i:Where) (?:there|it|they|that|this|a|an|no|the|all)': '"If"',
    r'(?:only|even|also|except) where': '"if"',
    r'in the place of': '"instead of"',
    r'unless given': '"default: ..."',
    r'for want of': '"because ... is missing"',
    r'(?:of|by) which': 'two sentences',
    r'of yours': '"your"',
    r'(?:has|have) to be': '"must be"',
    r'go(?:es)? on (?:as|from|to|where|with)': '"continue"',
    r'anew': '"again"',
    r'likewise': '"also"',
    r'the other way round': '"the opposite"',
    r'what is to be': '"what to"',
    r'beside': '"next to"',
}
SECOND_IDEA = r'[:;] (?:it|they|this|that|there|we|you|its|their|otherwise|without|so|then)\b'

UNREAD = re.compile(rf'{FENCED.pattern}|<!--.*?-->|(?<=\])\([^)\s]+\)', FENCED.flags)
CODE = re.compile(r'`[^`]+`')
BLOCK = re.compile(r'(?:(?!\n\s*\n|\n *(?:[-*|]|\d+\.) ).)+', re.DOTALL)
MARKER = re.compile(r'\s*(?:(?:[-*]|\d+\.) )?')
SENTENCE = re.compile(r'\S.*?(?:(?<!\.\.)[.?!][)*"]*(?=\s)|$)', re.DOTALL)


def main() -> None:
    found = [(page, *problem) for page in PAGES for problem in problems(page.read_text())]
    for page, line, column, message in found:
        print(f'{page.relative_to(ROOT)}:{line}:{column}: {message}')
    sys.exit(bool(found))


def problems(page: str) -> list[tuple[int, int, str]]:
    """Return the line, the column and the description of every problem."""
    results = LintFile('page', blank(page)).lint(DEFAULT | dict(checks=CHECKS))
    return [(*result.pos, result.check_result.message) for result in results]


def blank(text: str) -> str:
    """Return the text with spaces for blocks of code and addresses, and ``_`` for inline code."""
    text = UNREAD.sub(lambda unread: re.sub(r'[^\n]', ' ', unread[0]), text)
    return CODE.sub(lambda code: re.sub(r'[^\n]', '_', code[0]), text)


def sentences(text: str) -> Iterator[re.Match]:
    for block in BLOCK.finditer(text):
        start = MARKER.match(text, *block.span()).end()
        if start < block.end() and text[start] not in '#|!<':
            yield from SENTENCE.finditer(text, start, block.end())


def length(sentence: re.Match) -> int:
    """Return the number of words. Code is one word."""
    return sum('_' in word or any(map(str.isalnum, word)) for word in sentence[0].split())


def long_sentences(text: str, check: Check) -> Iterator[CheckResult]:
    for sentence in sentences(text):
        if length(sentence) > LONGEST:
            yield CheckResult(check.path, check.message.format(length(sentence)),
                              sentence.span(), None)


def long_mean(text: str, check: Check) -> Iterator[CheckResult]:
    lengths = [*map(length, sentences(text))]
    if lengths and mean(lengths) > LONGEST_MEAN:
        yield CheckResult(check.path, check.message.format(mean(lengths)), (1, len(text)), None)


def over_lines(pattern: str) -> str:
    """Return a pattern that also matches words with a line break between them."""
    return pattern.replace(' ', r'(?: |\n *)')


OURS = (
    Check(types.PreferredForms({over_lines(habit): word for habit, word in WORDS.items()}),
          path='ours.words', message='Write {}, not "{}".'),
    Check(types.ExistenceSimple(over_lines(SECOND_IDEA)), path='ours.ideas',
          message='"{}" joins two ideas. Write two sentences.'),
    Check(long_sentences, path='ours.sentence',
          message=f'This sentence has {{}} words. Write at most {LONGEST}.'),
    Check(long_mean, path='ours.mean',
          message=f'The mean sentence has {{:.1f}} words. Write at most {LONGEST_MEAN}.'),
)
# Off: quotes and dots as people type them, "resume" without accents, planes of "10s", and code that
# is named twice.
OFF = ('typography', 'spelling', 'dates_times', 'lexical_illusions')
CHECKS = {'ours': True, **DEFAULT['checks'], **dict.fromkeys(OFF, False)}
CheckRegistry().checks[:] = [*OF_PROSELINT, *OURS]

if __name__ == '__main__':
    main()
