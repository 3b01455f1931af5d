"""The examples in the documents are tests: block after block, page by page."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
  parsers=[PythonCodeBlockParser(), SkipParser()],
  patterns=["README.md", "docs/sources.md", "docs/howto/*.md"],
).pytest()
