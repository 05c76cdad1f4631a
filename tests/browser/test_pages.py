"""A person's path through the pages, in a real browser on a machine without internet: Prefect, MLflow, our reports.

Each step leaves a picture in ``.tradeflows-screenshots`` (or the folder that SCREENSHOTS names).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from tests.browser.visits import CHECKOUT, Visit

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from tests.browser.conftest import Desk

pytestmark = pytest.mark.integration

DECLARED: dict[str, str] = {
    one["name"]: one["description"] for one in yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]
}
# what a report shows where somebody forgot that people read it; "None." and "None has ..." are sentences
RAW = re.compile(r"\bNone\b(?!\.| has\b)|\bnan\b|\binf\b|NaN|\{'|\{\"|\(\)")
INSIDE = """table => {
    const box = table.closest('.p-table') ?? table, edge = box.getBoundingClientRect().right;
    return [...table.querySelectorAll('th')].filter(one => one.getBoundingClientRect().right <= edge + 1)
        .map(one => one.innerText.trim());
}"""
DRAWN = (
    """canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(one => one > 0)"""
)


def expect(what: Any) -> Any:
    from playwright.sync_api import expect as waits

    return waits(what)


def state(page: Page) -> Locator:
    """The word for the state of the flow run that the page is about."""
    return page.locator(".page-heading-flow-run .state-badge")


def tab(page: Page, name: str) -> None:
    page.locator(".p-tab", has_text=name).click()


def open_report(page: Page, desk: Desk, run: str, key: str) -> Locator:
    """From a run's page to one of its reports; what stands in it."""
    page.goto(f"{desk.prefect}/runs/flow-run/{run}")
    expect(state(page)).to_have_text("Completed")
    tab(page, "Artifacts")
    page.locator(".artifact-card", has=page.get_by_text(key, exact=True)).first.click()
    expect(page.get_by_text("Show raw data")).to_be_visible()
    return page.locator("article.markdown-renderer").last


def readable(report: Locator) -> list[list[str]]:
    """The columns of each table that are to be seen without a scroll bar, of a report that is fit for people."""
    text = report.inner_text()
    assert not RAW.search(text), text
    found: list[list[str]] = report.locator("table").evaluate_all(f"tables => tables.map({INSIDE})")
    return found


def follow(page: Page, link: Locator, to: str) -> Page:
    """Click on a link that opens a page of its own, on the server that runs now."""
    with page.expect_popup() as opened:
        link.click()
    assert opened.value.url.startswith(to)
    return opened.value


def test_prefect_opens_where_there_is_no_internet(visit: Visit, desk: Desk) -> None:
    visit.page.goto(desk.prefect)
    expect(visit.page).to_have_url(re.compile(r"/dashboard"))
    pools = visit.page.get_by_text("Active Work Pools")
    expect(pools).to_be_visible()
    expect(visit.page.get_by_role("link", name="tradeflows")).to_be_visible()
    visit.shoot("01-prefect-dashboard")


def test_every_deployment_is_listed_and_says_what_it_is_for(visit: Visit, desk: Desk) -> None:
    page = visit.page
    page.goto(f"{desk.prefect}/deployments")
    for at, name in enumerate(sorted(DECLARED)):
        if at == 10:
            visit.shoot("02-prefect-deployments")
            page.locator(".p-pager__buttons button").nth(2).click()
        expect(page.get_by_role("link", name=name, exact=True).first).to_be_visible()
    page.goto(f"{desk.prefect}/deployments")
    page.get_by_role("link", name="analyse", exact=True).first.click()
    tab(page, "Description")
    expect(page.get_by_text(DECLARED["analyse"], exact=True)).to_be_visible()
    visit.shoot("03-prefect-description")


def test_ingest_is_started_from_its_form_and_watched_until_its_report(visit: Visit, desk: Desk) -> None:
    page = visit.page
    page.goto(f"{desk.prefect}/deployments")
    page.get_by_role("link", name="ingest", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    form = page.locator("form")
    schema = httpx.get(f"{desk.prefect}/api/deployments/name/ingest/ingest").json()["parameter_openapi_schema"]
    for name, parameter in schema["properties"].items():
        expect(_field(form, schema, name)).to_contain_text(parameter["description"])
    symbols, days = (_field(form, schema, name) for name in ("symbols", "days"))
    symbols.locator("textarea").first.fill("SOLSIM")
    symbols.locator(".schema-form-property-array-item").nth(1).get_by_role("button").first.click()
    expect(symbols.locator("textarea")).to_have_count(1)
    days.locator("input").fill("30")
    visit.shoot("04-prefect-form")
    run = _submitted(page)

    page.locator(f"a[href$='/flow-run/{run}']").click()
    expect(state(page)).to_have_text("Completed")
    visit.shoot("05-prefect-run")
    tab(page, "Parameters")
    expect(page.get_by_text("SOLSIM").first).to_be_visible()
    tab(page, "Artifacts")
    expect(page.locator(".artifact-card")).to_have_count(3)
    visit.shoot("06-prefect-artifacts")

    report = open_report(page, desk, run, "ingest-1h")
    expect(report).to_contain_text("720 candles added")
    [columns] = readable(report)
    assert columns == ["symbol", "data", "windows", "stored", "added", "changed", "quarantined", "gaps", "source"]
    expect(report.get_by_role("row").nth(1)).to_contain_text("simulated")
    visit.shoot("07-prefect-report")
    report = open_report(page, desk, run, "data-quality-1h")
    assert {"symbol", "data", "coverage", "last candle", "behind", "gaps"} <= set(readable(report)[0])
    visit.shoot("08-prefect-quality")


def _field(form: Locator, schema: dict[str, Any], name: str) -> Locator:
    """The part of the form that is about one parameter, by its title, which is not the name that programs use."""
    parameter = schema["properties"][name]
    title = parameter.get("title") or schema["definitions"][parameter["$ref"].rpartition("/")[2]]["title"]
    assert title != name
    whole = re.compile(rf"^\s*{re.escape(title)}( \(Optional\))?\s*$")
    heading = form.page.locator(".schema-form-property__label", has_text=whole)
    return form.locator(".p-label", has=heading).first


def _submitted(page: Page) -> str:
    """Send the form; the id of the run."""
    for _ in range(20):
        with page.expect_response(lambda one: one.url.endswith("/create_flow_run")) as made:
            page.get_by_role("button", name="Submit").click()
        # the database is busy, the page says so, and one clicks again
        if made.value.status != 503:
            break
    assert made.value.status == 201, made.value.text()
    return str(made.value.json()["id"])


def test_an_analysis_is_run_again_from_its_page(visit: Visit, desk: Desk) -> None:
    page = visit.page
    page.goto(f"{desk.prefect}/runs/flow-run/{desk.runs['analyse']}")
    expect(state(page)).to_have_text("Completed")
    page.locator(".page-heading-flow-run").get_by_role("button", name="Retry").click()
    page.locator(".p-modal").get_by_role("button", name="Retry").click()
    expect(state(page)).not_to_have_text("Completed")
    visit.shoot("09-prefect-again")
    expect(state(page)).to_have_text("Completed")
    tab(page, "Details")
    expect(page.locator(".p-key-value", has_text="Run Count")).to_contain_text("2")
    visit.shoot("10-prefect-again-done")
    report = open_report(page, desk, desk.runs["analyse"], "analyse-1d")
    [columns] = readable(report)
    assert {"symbol", "data", "signal", "model", "technical", "price", "bar closed"} <= set(columns)
    expect(report.get_by_role("row").nth(1)).to_contain_text("sample")
    visit.shoot("11-prefect-analysis")


def test_the_reports_lead_to_the_pages_of_mlflow(visit: Visit, desk: Desk) -> None:
    page = visit.page
    report = open_report(page, desk, desk.runs["train again"], "train-nasdaq-1d")
    estimators, folds = readable(report)
    assert estimators[-1] == "trades" and folds[-1] == "logistic"
    visit.shoot("12-prefect-training")
    training = follow(page, report.get_by_role("link", name="MLflow run"), desk.mlflow)
    expect(training.get_by_role("heading", name=re.compile("^logistic 20"))).to_be_visible()
    # the pages of training runs, not those of language models
    expect(training.get_by_role("link", name="Model registry")).to_be_visible()
    visit.shoot("13-mlflow-training", training)
    training.close()
    side_by_side = follow(page, report.get_by_role("link", name="estimators side by side"), desk.mlflow)
    for name in ("baseline", "persistence", "logistic"):
        expect(side_by_side.get_by_role("link", name=name, exact=True)).to_have_count(2)
    expect(side_by_side.get_by_text("log_loss").first).to_be_visible()
    visit.shoot("14-mlflow-estimators", side_by_side)
    side_by_side.close()

    report = open_report(page, desk, desk.runs["backtest"], "backtest-1d")
    assert readable(report)[0][-1] == "exposure"
    expect(report).to_contain_text("sample data")
    visit.shoot("15-prefect-backtest")
    strategy = follow(page, report.get_by_role("link", name="champion", exact=True), desk.mlflow)
    expect(strategy.frame_locator("iframe").get_by_role("heading", name="champion on NASDAQ, 1d")).to_be_visible()
    visit.shoot("16-mlflow-backtest", strategy)


def test_two_trainings_are_compared_in_mlflow(visit: Visit, desk: Desk) -> None:
    page = visit.page
    page.goto(desk.mlflow)
    page.get_by_text("Model training", exact=True).click()
    visit.shoot("17-mlflow-home")
    page.get_by_role("link", name="Experiments").first.click()
    page.get_by_role("link", name="train NASDAQ-1d h5").click()
    expect(page.get_by_role("link", name=re.compile("^logistic 20"))).to_have_count(2)
    expect(page.get_by_text("is the champion").first).to_be_visible()
    unchosen = page.get_by_label("Press Space to toggle row selection (unchecked)")
    for left in (1, 0):
        unchosen.first.check()
        expect(unchosen).to_have_count(left)
    visit.shoot("18-mlflow-trainings")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible()
    folds = page.get_by_role("row", name=re.compile(r"^folds\b"))
    expect(folds).to_contain_text(re.compile(r"3\s*2"))
    expect(page.get_by_role("row", name=re.compile(r"^estimators\b"))).to_contain_text("logistic")
    visit.shoot("19-mlflow-compared")
    folds.scroll_into_view_if_needed()
    expect(page.get_by_text("baseline_log_loss").first).to_be_visible()
    visit.shoot("20-mlflow-compared-side-by-side")


def test_the_champion_s_page_leads_to_its_manifest_and_pictures(visit: Visit, desk: Desk) -> None:
    page = visit.page
    page.goto(desk.mlflow)
    page.get_by_text("Model training", exact=True).click()
    page.get_by_role("link", name="Model registry").click()
    page.get_by_role("button", name="Try it now").click()
    page.get_by_role("link", name="NASDAQ-1d", exact=True).click()
    expect(page.get_by_text("sample data").first).to_be_visible()
    visit.shoot("21-mlflow-model")
    champion = page.get_by_role("row").filter(has_text="@ champion")
    champion.get_by_role("link", name=re.compile(r"^Version \d+$")).click()
    expect(page.get_by_text("The gate made it the champion")).to_be_visible()
    expect(page.get_by_text("manifest_sha256").first).to_be_visible()
    visit.shoot("22-mlflow-champion")
    version = page.url

    page.get_by_role("link", name="model", exact=True).click()
    _artifacts(page)
    for name in ("data", "model", "manifest.json"):
        page.locator("li").get_by_text(name, exact=True).last.click()
    expect(page.get_by_text("dataset_digest").first).to_be_visible()
    visit.shoot("23-mlflow-manifest")

    page.goto(version)
    page.get_by_role("link", name=re.compile("^logistic 20")).click()
    _artifacts(page)
    for name in ("equity", "fold_losses", "importance", "reliability"):
        page.locator("li").get_by_text(f"{name}.png", exact=True).click()
        picture = page.get_by_role("img", name=f"{name}.png")
        expect(picture).to_be_visible()
        page.wait_for_function("one => one.complete && one.naturalWidth > 500", arg=picture.element_handle())
        visit.shoot(f"24-mlflow-{name}")


def _artifacts(page: Page) -> None:
    page.get_by_role("tab", name="Artifacts").or_(page.get_by_role("link", name="Artifacts", exact=True)).click()


def test_the_page_of_a_backtest_opens_from_its_file_with_its_charts(visit: Visit, desk: Desk) -> None:
    page = visit.page
    [file] = (desk.home / "reports" / "backtest").glob("*/NASDAQ-champion.html")
    page.goto(file.as_uri())
    expect(page.get_by_role("heading", name="champion on NASDAQ, 1d")).to_be_visible()
    expect(page.get_by_text("Sample data: real history from a file.")).to_be_visible()
    charts = page.locator("canvas")
    expect(charts).to_have_count(3)
    for chart in charts.all():
        assert chart.evaluate(DRAWN)
    visit.shoot("25-report-backtest")
    before = charts.first.evaluate("canvas => canvas.toDataURL()")
    page.get_by_role("button", name="Zoom in").click()
    page.wait_for_function(
        "([canvas, before]) => canvas.toDataURL() !== before", arg=[charts.first.element_handle(), before]
    )
    visit.shoot("26-report-backtest-zoomed")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_page_of_a_day_s_candles_opens_from_its_file(visit: Visit, desk: Desk) -> None:
    page = visit.page
    index = desk.home / "reports" / "data" / "index.html"
    page.goto(index.as_uri())
    page.get_by_role("link", name=re.compile(r"^\d{4}-\d\d-\d\d$")).first.click()
    expect(page.get_by_role("heading", name="Every series")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("^NASDAQ 1d sample")).first).to_be_visible()
    assert not RAW.search(page.locator("body").inner_text())
    visit.shoot("27-report-candles")
