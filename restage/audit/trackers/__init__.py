"""Optional trackers: what a run's records say, sent to trackio or MLflow. They read; nothing of a run needs them.

A further tracker is one file with a `send` function and one line here.
"""

from collections.abc import Callable

from restage.audit.trackers.facts import RunFacts, facts_of
from restage.audit.trackers.to_mlflow import send_to_mlflow
from restage.audit.trackers.to_trackio import send_to_trackio

__all__ = ["SINKS", "RunFacts", "facts_of", "send_to_mlflow", "send_to_trackio"]

SINKS: dict[str, Callable[..., str]] = {"mlflow": send_to_mlflow, "trackio": send_to_trackio}
"""By name. Each sends a run's facts, once, and says where they are."""
