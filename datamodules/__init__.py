"""Data sets: uint8 images in three splits."""

from datamodules.base import ImageDataModule
from datamodules.datasets.cifar10 import CIFAR10
from datamodules.datasets.digits import Digits
from datamodules.datasets.folder import ImageFolder
from datamodules.datasets.galaxy import Galaxies
from datamodules.datasets.imagenet import DownsampledImageNet
from datamodules.datasets.photographs import PhotographCrops
from datamodules.loading.augmentation import Augmentation
from datamodules.loading.datasets import ImageBatch, ImageDataset
from datamodules.prepared import BenchmarkDataModule, PreparedDataModule

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
