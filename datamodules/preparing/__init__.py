"""From a source to a prepared set on the disk, once."""
