"""What a recipe would take on a cluster that is not here: memory, exchanges, FLOPs, time."""

from dgan.planner.estimate import ASSUMPTIONS, Plan, Row, make_plan
from dgan.planner.footprint import Footprint, Rehearsals, Traffic, merged
from dgan.planner.hardware import GPUS, find_gpu
from dgan.planner.job import Job
from dgan.planner.rehearsal import Rehearsal, Setting, fakes, rehearse, units_of

__all__ = [
    "ASSUMPTIONS",
    "GPUS",
    "Footprint",
    "Job",
    "Plan",
    "Rehearsal",
    "Rehearsals",
    "Row",
    "Setting",
    "Traffic",
    "fakes",
    "find_gpu",
    "make_plan",
    "merged",
    "rehearse",
    "units_of",
]
