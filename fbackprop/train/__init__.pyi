# Generated from fbackprop/names.py by experiments/make_stubs.py. Do not edit.

from .monitor.alerts import Alert as Alert
from .monitor.alerts import Thresholds as Thresholds
from .monitor.monitor import Monitor as Monitor
from .step.accumulation import accumulate as accumulate
from .step.accumulation import microbatches as microbatches
from .step.scaling import LossScale as LossScale
from .step.scaling import adjust as adjust
from .step.scaling import all_finite as all_finite
from .step.scaling import unscale as unscale
from .step.step import make_step as make_step
from .step.step import update as update
from .step.transformation import init_opt_state as init_opt_state
from .task.task import Task as Task

__all__ = [
    "Alert",
    "LossScale",
    "Monitor",
    "Task",
    "Thresholds",
    "accumulate",
    "adjust",
    "all_finite",
    "init_opt_state",
    "make_step",
    "microbatches",
    "unscale",
    "update",
]
