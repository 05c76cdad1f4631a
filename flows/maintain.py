"""Maintain: what is too old goes from store, MLflow and reports, half-empty files are written anew, and it is said."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from prefect.states import Completed
from pydantic import Field

from flows.parameters import form
from tasks import reports
from tasks.maintaining import Maintained, maintain_task
from tasks.periods import run_moment
from tasks.retention import LEAST_LLM_DAYS, LEAST_RESULT_DAYS, Retention

MOST_DAYS = 36_500
KeepDays = Annotated[int, Field(ge=1, le=MOST_DAYS)]

DryRun = Annotated[bool, form("Rehearse", "Only count what would be removed.")]
Results = Annotated[
    int,
    Field(ge=LEAST_RESULT_DAYS, le=MOST_DAYS),
    form(
        "Answers, days",
        "Days that backtests and other answers are kept after they were last used; they can be made again.",
        30,
    ),
]
Newest = Annotated[
    int, Field(ge=1, le=10_000), form("Newest answers", "Of each kind of answer, so many are kept, however old.", 20)
]
Records = Annotated[
    KeepDays,
    form(
        "Records, days",
        "Days that analyses, settlements, scoreboards, daily costs and released rows are kept.",
        1_825,
    ),
]
Quarantine = Annotated[KeepDays, form("Quarantine, days", "Days that rows put aside are kept.", 180)]
Calls = Annotated[
    int,
    Field(ge=LEAST_LLM_DAYS, le=MOST_DAYS),
    form("LLM calls, days", "Days that single calls of the LLM are kept; the sums of their months stay.", 400),
]
Notifications = Annotated[KeepDays, form("Notifications, days", "Days that it is kept what people were told.", 90)]
Datasets = Annotated[
    KeepDays,
    form("Datasets, days", "Days that frozen datasets are kept that no registered model was trained on.", 365),
]
Corrections = Annotated[
    KeepDays,
    form("Corrections, days", "Days that it is kept what late corrections replaced, where no dataset needs it.", 365),
]
Runs = Annotated[
    KeepDays,
    form(
        "Failed runs, days",
        "Days after which failed MLflow runs are deleted, and after as many again gone for good.",
        30,
    ),
]
FinishedRuns = Annotated[
    KeepDays,
    form(
        "Finished runs, days",
        "Days after which MLflow runs that ended well are deleted, but for those of registered models, the promotion "
        "history and kept answers; they are gone for good as many days later as failed ones.",
        60,
    ),
]
Versions = Annotated[
    KeepDays,
    form(
        "Versions, days",
        "Days that registered versions are kept that were never promoted; the newest of a model and those with an "
        "alias stay.",
        365,
    ),
]
Traces = Annotated[KeepDays, form("Traces, days", "Days that MLflow keeps conversations with the LLM.", 30)]
Reports = Annotated[
    KeepDays,
    form(
        "Reports, days",
        "Days that pages and pictures on the disk are kept; the newest of each kind and those of kept answers stay.",
        30,
    ),
]
MostReports = Annotated[
    int,
    Field(ge=1, le=100_000),
    form("Most reports", "Of each kind of page or picture not more than so many are kept, however young.", 100),
]


@flow(name="maintain", flow_run_name="maintain", retries=0, persist_result=False)
def maintain(
    dry_run: DryRun = False,
    results_days: Results = 30,
    newest_results: Newest = 20,
    records_days: Records = 1_825,
    quarantine_days: Quarantine = 180,
    llm_calls_days: Calls = 400,
    notifications_days: Notifications = 90,
    datasets_days: Datasets = 365,
    corrections_days: Corrections = 365,
    runs_days: Runs = 30,
    finished_runs_days: FinishedRuns = 60,
    versions_days: Versions = 365,
    traces_days: Traces = 30,
    reports_days: Reports = 30,
    most_reports: MostReports = 100,
) -> Maintained:
    """Remove what is too old, and write database files anew that are half empty.

    The ledger, promotions, gaps and candles are never removed, nor the runs, files and datasets of promoted
    models. The run ends Completed, in the state Rehearsed with dry_run. A second run removes nothing more, but for the
    pages and MLflow runs of answers that the first removed.
    """
    retention = Retention(
        results=results_days,
        newest_results=newest_results,
        records=records_days,
        quarantine=quarantine_days,
        llm_calls=llm_calls_days,
        notifications=notifications_days,
        datasets=datasets_days,
        corrections=corrections_days,
        runs=runs_days,
        finished_runs=finished_runs_days,
        versions=versions_days,
        traces=traces_days,
        reports=reports_days,
        most_reports=most_reports,
    )
    done = maintain_task(retention, run_moment(), dry_run)
    freed = sum(before - after for before, after in done.files.values())
    verb = "would be removed" if dry_run else "removed"
    said = f"{done.removed:,} {verb} ({done.bytes:,} bytes); files are {freed:,} bytes smaller"
    reports.markdown("maintain", report(done, said), said)
    if dry_run:
        # Prefect hands the data to the caller, and shows the name and the message
        named: Maintained = Completed(name="Rehearsed", message=said, data=done)  # type: ignore[assignment]
        return named
    return done


def report(done: Maintained, said: str) -> str:
    """What a person reads of a maintenance."""
    rows = [
        {
            "what": row.what,
            "removed": f"{row.removed:,}",
            "bytes": f"{row.bytes:,}",
            "old but kept": f"{row.kept:,}" if row.kept else "",
            "remark": row.remark,
        }
        for row in done.rows
        if row.removed or row.kept or row.remark
    ]
    files = [
        {"file": name, "bytes before": f"{before:,}", "bytes after": f"{after:,}"}
        for name, (before, after) in done.files.items()
    ]
    title = "# Maintenance, rehearsed: nothing was changed" if done.dry_run else "# Maintenance"
    text = [title, said + ".", reports.markdown_table(rows), "## Files", reports.markdown_table(files)]
    return "\n\n".join([*text, *reports.section("Remarks", done.remarks)])
