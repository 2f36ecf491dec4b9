"""The documents point to what exists: relative links, anchors, and paths of files in backticks."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = "pipelines|model|jobs|tests|conf|benchmarks|notebooks|docs"
FENCE = re.compile(r"^```.*?^```[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+\s+(.+?)\s*$", re.MULTILINE)
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]+\.\w+)(?:::\w+)?`")


def documents() -> list[Path]:
    """The Markdown files of the project, without files that Git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:  # an unpacked archive has no Git folder
        names = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/**/*.md")]
        return sorted(names)
    return sorted({path for name in listed.stdout.splitlines() if (path := ROOT / name).exists()})


def prose(path: Path) -> str:
    """The text of a document without its code blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    headings = [LINK.sub(r"\1", heading) for heading in HEADING.findall(prose(path))]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> list[str]:
    """Relative links of a document whose file or anchor does not exist."""
    broken = []
    for _, target in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", documents(), ids=ids)
def test_relative_links_and_anchors_resolve(path: Path) -> None:
    assert broken_links(path) == []


@pytest.mark.parametrize("path", documents(), ids=ids)
def test_the_text_of_a_link_that_is_a_path_names_the_file_it_opens(path: Path) -> None:
    texts = [(text.strip("`"), target.partition("#")[0]) for text, target in LINK.findall(prose(path))]
    named = [(text, target) for text, target in texts if re.fullmatch(r"[\w./-]+\.\w+", text) and target]
    assert [link for link in named if not link[1].endswith(Path(link[0]).name)] == []


@pytest.mark.parametrize("path", documents(), ids=ids)
def test_paths_in_backticks_exist(path: Path) -> None:
    named = [name for name in PATH.findall(prose(path)) if "NAME" not in name]  # NAME stands for any name.
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_names_of_code_in_the_recipes_of_contributing_exist() -> None:
    sources = [path for folder in ("pipelines", "model", "jobs", "tests") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {node.id for node in nodes if isinstance(node, ast.Name)}
    defined |= {path.stem for path in sources}
    named = set(re.findall(r"`(\w*[A-Z_]\w*)`", prose(ROOT / "CONTRIBUTING.md")))
    assert named - defined == set()
    assert len(named) > 10


def test_a_broken_link_and_a_broken_anchor_are_reported(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n[good](page.md#a-title) [bad](page.md#no) [gone](gone.md)\n```\n[code](x.md)\n```\n")
    assert broken_links(page) == ["page.md#no", "gone.md"]
