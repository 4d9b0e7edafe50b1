"""Why does run B do worse than run A? Swaps one part at a time between two runs and says which one costs what."""

from restage.diagnose.diagnosis import DiagnoseConfig, Diagnosis, diagnose
from restage.diagnose.stage import run_diagnose

__all__ = ["DiagnoseConfig", "Diagnosis", "diagnose", "run_diagnose"]
