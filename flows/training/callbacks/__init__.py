"""Lightning callbacks: what happens around the training steps, a file each."""

from flows.training.callbacks.averaging import AveragedWeights
from flows.training.callbacks.best_checkpoint import BestCheckpoint
from flows.training.callbacks.cost_meter import CostMeter
from flows.training.callbacks.description import DescribeCheckpoint
from flows.training.callbacks.inversion_monitor import InversionMonitor
from flows.training.callbacks.last_checkpoint import LastCheckpoint
from flows.training.callbacks.latent_monitor import LatentMonitor
from flows.training.callbacks.nan_guard import StopAtLayer, StopOnNonFinite
from flows.training.callbacks.peak_memory import PeakMemory
from flows.training.callbacks.pictures import SamplePictures
from flows.training.callbacks.progress import ProgressBar
from flows.training.callbacks.rollback import Rollback
from flows.training.callbacks.step_seeds import StepSeeds
from flows.training.callbacks.throughput import Throughput

__all__ = [
    "AveragedWeights",
    "BestCheckpoint",
    "CostMeter",
    "DescribeCheckpoint",
    "InversionMonitor",
    "LastCheckpoint",
    "LatentMonitor",
    "PeakMemory",
    "ProgressBar",
    "Rollback",
    "SamplePictures",
    "StepSeeds",
    "StopAtLayer",
    "StopOnNonFinite",
    "Throughput",
]
