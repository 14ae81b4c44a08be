"""Measurements that people run; no test depends on a time."""
