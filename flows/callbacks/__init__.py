"""Lightning callbacks: what happens around the training steps, a file each."""

from flows.callbacks.averaging import AveragedWeights
from flows.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from flows.callbacks.finite import StopOnNonFinite
from flows.callbacks.inversion import InversionMonitor
from flows.callbacks.latents import LatentMonitor
from flows.callbacks.memory import PeakMemory
from flows.callbacks.pictures import SamplePictures
from flows.callbacks.progress import ProgressBar
from flows.callbacks.random_states import RandomStates
from flows.callbacks.rollback import Rollback
from flows.callbacks.throughput import Throughput

__all__ = [
    "AveragedWeights",
    "BestCheckpoint",
    "InversionMonitor",
    "LastCheckpoint",
    "LatentMonitor",
    "PeakMemory",
    "ProgressBar",
    "RandomStates",
    "Rollback",
    "SamplePictures",
    "StopOnNonFinite",
    "Throughput",
]
