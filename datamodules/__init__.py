"""Data sets: uint8 images in three splits."""

from datamodules.augmentation import Augmentation
from datamodules.base import ImageDataModule
from datamodules.cifar10 import CIFAR10
from datamodules.digits import Digits
from datamodules.folder import ImageFolder
from datamodules.galaxy import Galaxies
from datamodules.imagenet import DownsampledImageNet
from datamodules.photographs import PhotographCrops
from datamodules.prepared import BenchmarkDataModule, PreparedDataModule
from datamodules.sets import ImageBatch, ImageDataset

__all__ = [
    "CIFAR10",
    "Augmentation",
    "BenchmarkDataModule",
    "Digits",
    "DownsampledImageNet",
    "Galaxies",
    "ImageBatch",
    "ImageDataModule",
    "ImageDataset",
    "ImageFolder",
    "PhotographCrops",
    "PreparedDataModule",
]
