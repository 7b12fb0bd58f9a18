"""Documents that name files, folders, checks and each other: what they name exists."""

from __future__ import annotations

import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DECISIONS = ROOT / "docs" / "decisions"
RECORDS = sorted(DECISIONS.glob("[0-9]*.md"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def markdown_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return sorted(set(listed.stdout.split()))


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as a repository host makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(path: Path, heading: str) -> list[list[str]]:
    """Cells of the table under a heading, without its head."""
    text = path.read_text("utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def paths_in(text: str) -> list[str]:
    """What a document writes as code and means as a path of this repository."""
    return [one for one in re.findall(r"`([\w./-]+)`", text) if "/" in one or one.endswith((".py", ".toml"))]


@pytest.mark.parametrize("name", markdown_files())
def test_every_link_leads_somewhere(name: str) -> None:
    path = ROOT / name
    for target in LINK.findall(FENCED.sub("", path.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{name} links to {target}, which does not exist"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{name} links to {target}: {file or name} has no such heading"


@pytest.mark.parametrize(
    "path",
    [ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *RECORDS],
    ids=lambda p: p.name,
)
def test_every_path_that_is_named_exists(path: Path) -> None:
    inside = {entry.name for entry in (ROOT / "thinktwice").iterdir()}  # the table of the library names them alone
    for named in paths_in(path.read_text("utf-8")):
        if not named.startswith("/"):  # the path of a request
            assert (ROOT / named).exists() or named.rstrip("/") in inside, f"{path.name} names {named}"


def test_the_map_knows_every_package_and_leads_to_twenty_things() -> None:
    page = ROOT / "docs" / "architecture.md"
    find = rows(page, "Where do I find …")
    assert len(find) >= 20 and all(len(row) == 2 and paths_in(row[1]) for row in find)
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    packages = [name.rstrip("*") for name in setuptools["packages"]["find"]["include"]]
    named = " ".join(row[0] for row in rows(page, "Packages"))
    assert [name for name in packages if f"`{name}/`" not in named] == []
    parts = {p.name for p in (ROOT / "thinktwice").iterdir() if p.is_dir() and (p / "__init__.py").is_file()}
    assert [part for part in sorted(parts) if f"`{part}/`" not in named] == []


def test_the_guide_names_the_tests_of_every_folder() -> None:
    named = {one for row in rows(ROOT / "CONTRIBUTING.md", "Tests") for one in paths_in(row[1])}
    folders = {f"tests/{p.name}" for p in (ROOT / "tests").iterdir() if (p / "__init__.py").is_file()}
    assert folders - named == set()


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.name)
def test_a_decision_record_is_short_and_complete(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 40
    assert text.startswith(f"# {path.name[:4]}: ")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
    assert re.search(r"^Status: (accepted|replaced by \[\d{4}\])", text, re.MULTILINE)


def test_the_index_lists_every_decision_once_and_in_order() -> None:
    listed = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\)", (DECISIONS / "README.md").read_text("utf-8"), re.MULTILINE)
    assert [name for _, name in listed] == [path.name for path in RECORDS]
    assert [number for number, _ in listed] == [f"{i:04d}" for i in range(1, len(RECORDS) + 1)]


def test_pre_commit_runs_the_checks_of_make_lint() -> None:
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    lint = [line.strip().removeprefix("@").replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    settings: dict[str, Any] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    hooks = [hook for repo in settings["repos"] for hook in repo["hooks"]]
    assert [repo["repo"] for repo in settings["repos"]] == ["local"], "another repository has versions of its own"
    assert [hook["entry"] for hook in hooks] == lint
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in hooks)
    assert not any({"files", "types", "exclude", "stages"} & hook.keys() for hook in hooks), "a filter would skip files"


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.name)
def test_an_issue_form_is_one(path: Path) -> None:
    form: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert {part["type"] for part in fields} <= {"textarea", "input", "dropdown", "checkboxes"}
    ids = [part["id"] for part in fields]
    assert len(ids) == len(set(ids)) > 0 and all(part["attributes"]["label"] for part in fields)
    assert any(part.get("validations", {}).get("required") for part in fields)


def test_the_forms_and_the_pull_request_template_are_there() -> None:
    folder = ROOT / ".github"
    assert {p.stem for p in (folder / "ISSUE_TEMPLATE").glob("*.yml")} == {"bug_report", "feature_request"}
    assert "make lint" in (folder / "pull_request_template.md").read_text("utf-8")
