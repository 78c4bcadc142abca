"""Sphinx: the Markdown pages of the repository as HTML, and the API from the docstrings.

The source folder is the repository's root, so that links between all pages lead where they do
elsewhere: ``sphinx -c docs . docs/_build/html``.
"""
from sa_mmdet.version import __version__

project = 'sa_mmdet'
author = copyright = 'the authors of sa_mmdet'
version = release = __version__
language = 'en_GB'

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
root_doc = 'docs/index'
include_patterns = ['*.md', 'configs/*.md', 'docs/**.md']
exclude_patterns = ['.*', 'build', 'data', 'work_dirs', 'docs/_build']
html_theme = 'furo'
html_title = 'sa_mmdet'

myst_heading_anchors = 3  # as GitHub makes them
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_member_order = 'bysource'
autodoc_inherit_docstrings = False
napoleon_custom_sections = [('Shape', 'returns_style')]
napoleon_use_rtype = False
