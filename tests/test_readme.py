"""The README's example runs as printed and gives the line that its comment promises."""

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_example_prints_what_its_comment_says() -> None:
    code = re.search(r"<!-- example[^\n]*-->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code[1], "README.md", "exec"), {})  # noqa: S102 - our own file
    promised = re.findall(r"# (\[.*\])$", code[1].strip(), re.MULTILINE)
    assert [out.getvalue().strip()] == promised


def test_every_local_link_exists() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
