"""What the site shows beside docs/: mkdocs calls these functions while it builds (mkdocs.yml).

Pages stand in the site under their paths in the repository, so that one relative link serves both
the site and GitHub. Only what can be reached by links from the README or from docs/ is taken.
"""

import os
from pathlib import Path, PurePosixPath
import re

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
CODE = (".py", ".txt", ".json", ".jsonl")  # shown as pages of their own
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
LONGEST = 400  # lines of code of a page
API = re.compile(r"^\| \[`([\w.]+)`\]", re.MULTILINE)  # a row of docs/api.md


def links(text: str):
  """(target, anchor) of the relative links of a page, those in code blocks left out."""
  for match in LINK.finditer(FENCE.sub("", text)):
    if not re.match(r"[a-z]+:", match[2]):
      yield match[2], (match[3] or "")[1:]


def target(page: str, link: str) -> str:
  """The path in the repository of what a page links to."""
  return os.path.normpath(PurePosixPath(page).parent / link)


def reached() -> list[str]:
  """Paths in the repository of everything that the site shows."""
  first = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
  todo = first + [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
  found = []
  while todo:
    path = todo.pop()
    if path in found or not (ROOT / path).is_file():
      continue  # a missing target stays out, so that its link is a warning
    found.append(path)
    if path.endswith(".md"):
      todo += [target(path, link) for link, _ in links((ROOT / path).read_text())]
  return sorted(found)


def shown(path: str) -> str:
  """What a file is called in the site: code has a page."""
  return f"{path}.md" if path.endswith(CODE) else path


def on_files(files: Files, config) -> Files:
  """The files of the site, in place of those of docs/ alone; the theme's stay."""
  docs = Path(config["docs_dir"])
  kept = [file for file in files if Path(file.abs_src_path or "/").parent != docs]
  for path in reached():
    if shown(path) == path:
      kept.append(File(path, str(ROOT), config["site_dir"], config["use_directory_urls"]))
    else:
      kept.append(File.generated(config, shown(path), content=code(path)))
  return Files(kept)


def code(path: str) -> str:
  lines = (ROOT / path).read_text().splitlines()
  rest = [f"... and {len(lines) - LONGEST} more lines"] if len(lines) > LONGEST else []
  language = "python" if path.endswith(".py") else "text"
  text = "\n".join([*lines[:LONGEST], *rest])
  return f"# {PurePosixPath(path).name}\n\n`{path}`\n\n````````{language}\n{text}\n````````\n"


def on_page_markdown(markdown: str, page, config, files) -> str:
  """Links to code lead to its page; docs/api.md gets what the modules' docstrings say."""
  del config, files
  if page.file.src_uri == "docs/api.md":
    found = (f"::: v05_jax.{name}" for name in API.findall(markdown))
    markdown = "\n\n".join([markdown, *found])
  if page.file.src_uri.endswith(tuple(f"{ending}.md" for ending in CODE)):
    return markdown
  return LINK.sub(lambda m: f"{m[1]}{shown(m[2])}{m[3] or ''})", markdown)
