"""Sphinx configuration of the documentation: ``make docs`` builds it into ``docs/_build/html``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from lclm_jax import __version__

project = "lclm_jax"
author = "the lclm_jax authors"
copyright = "the lclm_jax authors, Apache-2.0"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "config_pages",
    "command_pages",
    "module_pages",
    "literals",
]
exclude_patterns = ["_build", "_ext"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 4
suppress_warnings = [
    "myst.header",  # recorded reports begin their sections where a program put them
    "ref.python",  # a short name in a docstring that several classes have: any of them will do
]

nitpicky = True
# Types of other projects: their documentation is not at hand when this one is built offline.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!lclm_jax\.).*"),
    (r"py:.*", r"lclm_jax\..*\._\w+"),  # private names have no entry
]

napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = ["lm_eval"]  # its own environment has it
autodoc_default_options = {"members": True, "undoc-members": False, "ignore-module-all": True}
toc_object_entries = False
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

highlight_language = "none"  # of blocks that name no language

html_theme = "pydata_sphinx_theme"
html_title = "lclm_jax"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
copybutton_prompt_text = "$ "
