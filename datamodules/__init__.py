"""Data sets: uint8 images in three disjoint splits."""

from datamodules.base import ImageBatch, ImageDataModule, ImageDataset
from datamodules.photographs import PhotographCrops

__all__ = ["ImageBatch", "ImageDataModule", "ImageDataset", "PhotographCrops"]
