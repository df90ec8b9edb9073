"""Every example of docs/extending.md is a file outside of the package, and a training step runs with it."""

from pathlib import Path
import re

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
EXAMPLES = {
  match[1]: match[2].splitlines()
  for match in re.finditer(r"```python\n# (\w+)\.py: .*?\n(.*?)```", PAGE.read_text(), re.DOTALL)
}
