"""From images to batches: data sets, samplers, loaders, augmentation."""
