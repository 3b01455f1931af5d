"""The documentation site.

sphinx-build -W --keep-going -b html docs docs/_build
"""

from pathlib import Path
import shutil

import ddi_jax

project = "ddi_jax"
author = "The ddi_jax authors"
copyright = author
version = release = ddi_jax.__version__

extensions = [
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "sphinx.ext.viewcode",
  "sphinx.ext.mathjax",
  "myst_nb",
]
exclude_patterns = ["_build"]

# Single backticks in docstrings: a link where it names an object, else code.
default_role = "py:obj"
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # The outputs are kept; CI executes the notebooks by itself.

# Sphinx reads what lies below this folder only.
_HERE = Path(__file__).parent
shutil.copytree(_HERE.parent / "notebooks", _HERE / "notebooks", dirs_exist_ok=True)

html_theme = "sphinx_book_theme"
html_title = "ddi_jax"
html_theme_options = {
  "use_download_button": False,
  "show_toc_level": 2,
  "navbar_persistent": [],  # The search field stands in the sidebar already.
}


def _docstring_to_rst(app, what, name, obj, options, lines):
  """Docstrings are plain text: `|x|` is a norm, an indented paragraph a formula."""
  del app, what, name, obj, options
  result = []
  in_formula = False
  last = ""  # the last line that is not blank
  for line in lines:
    indented = not line.strip() or line.startswith(" ")
    starts_block = line.startswith(" ") and result and not result[-1].strip()
    if starts_block and last and not last.startswith(" "):
      result += ["::", ""]
      in_formula = True
    in_formula = in_formula and indented
    last = line if line.strip() else last
    result.append(line if in_formula else _escape(line))
  lines[:] = result


def _escape(line):
  if line.lstrip().startswith((">>>", "...")):
    return line
  parts = line.split("`")  # The odd ones stand in backticks.
  for index in range(0, len(parts), 2):
    parts[index] = parts[index].replace("|", "\\|").replace(" *,", " \\*,")
    if index and parts[index][:1].isalnum():
      parts[index] = "\\ " + parts[index]  # `Name`s
  return "`".join(parts)


def setup(app):
  """Registers the hook, before napoleon's."""
  app.connect("autodoc-process-docstring", _docstring_to_rst, priority=100)
