"""Sends a run's facts to trackio, which keeps them in a local database (TRACKIO_DIR) or on a server."""

from __future__ import annotations

from restage.audit.trackers.facts import RunFacts
from restage.records import MissingExtra

__all__ = ["send_to_trackio"]


def send_to_trackio(facts: RunFacts, *, project: str, where: str = "") -> str:
    """Send a run to a project, once, and return where it is; `where` is a server's URL, else a local database."""
    try:
        import trackio  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("trackio", "trackers") from None
    name = f"{facts.name} {facts.id}"
    if not where and name in trackio.SQLiteStorage.get_runs(project):
        return f"{project}/{name} (sent before)"
    run = trackio.init(
        project=project,
        name=name,
        config=dict(facts.settings),
        server_url=where or None,
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    for point in facts.curve:
        run.log(dict(point.values), step=point.step)
    run.log(dict(facts.numbers), step=facts.curve[-1].step if facts.curve else 0)
    run.finish()
    return f"{project}/{name}"
