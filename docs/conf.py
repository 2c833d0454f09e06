"""Sphinx's settings for the documentation site: these pages as they are, with every link checked.

make docs      # build/docs/index.html; a broken link or reference fails
"""

project = "normbench"
copyright = "The normbench authors"
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
html_theme = "furo"
html_title = "normbench"
exclude_patterns = ["conf.py"]
nitpicky = True
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
