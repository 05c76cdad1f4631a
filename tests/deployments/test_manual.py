"""The README and the pages beside it: every setting is in them, and what they point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployments import declared
from deployments.manual import PAGE, page
from tasks.settings import Settings

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = sorted([CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md"), *CHECKOUT.glob("SECURITY.md")])


def test_the_page_of_settings_is_what_is_declared() -> None:
    assert PAGE.read_text() == page(), "run python -m deployments.manual"


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_every_setting_says_what_it_is(field: str) -> None:
    assert Settings.model_fields[field].description


@pytest.mark.parametrize("one", PAGES, ids=lambda one: one.name)
def test_links_lead_somewhere(one: Path) -> None:
    text = one.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert (one.parent / target).exists(), f"{one.name} points to {target}"
    for path in re.findall(r"`((?:tasks|flows|ml|trading|deployments|tests|docs|expectations)/[\w./-]+)`", text):
        assert (CHECKOUT / path).exists(), f"{one.name} names {path}"
    for module in re.findall(r"python -m (deployments\.[\w.]+)", text):
        place = CHECKOUT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), f"{one.name} names {module}"
    for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE):
        assert f"\n{target}:" in (CHECKOUT / "Makefile").read_text(), f"{one.name} names make {target}"


def test_the_deployments_of_a_second_group_can_be_declared(tmp_path: Path) -> None:
    [blocks] = re.findall(r"```yaml\n(.*?)```", (CHECKOUT / "docs" / "scale.md").read_text(), re.DOTALL)
    ours = declared.FILE.read_text()
    whole = tmp_path / "prefect.yaml"
    whole.write_text(ours.replace("\ndeployments:\n", f"\ndeployments:\n{blocks}", 1))
    first = {one.name: one for one in declared.read()}
    more = {one.name: one for one in declared.read(whole) if one.name not in first}
    assert set(more) == {"ingest-2", "train-2"}
    for name, one in more.items():
        sent, known = declared.as_sent(one), declared.as_sent(first[name.removesuffix("-2")])
        assert sent["entrypoint"] == known["entrypoint"]
        assert sent["parameters"].keys() <= known["parameters"].keys()
        assert sent["parameters"]["symbols"] != known["parameters"]["symbols"]
