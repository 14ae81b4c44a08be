"""A report on any set of runs: read (:mod:`.collect`), compared (:mod:`.comparison`), drawn, and written as a page.

It is made from what runs leave behind, however little that is. Whatever cannot be read becomes a :class:`Problem`
with a name, and the rest of the report is still made.
"""

from flows.reporting.collect import Collection, Curve, Problem, Run, collect
from flows.reporting.comparison import Comparison, Row, compare
from flows.reporting.contents import SamplingTimes, make_report
from flows.reporting.page import Report, write_report

__all__ = [
    "Collection",
    "Comparison",
    "Curve",
    "Problem",
    "Report",
    "Row",
    "Run",
    "SamplingTimes",
    "collect",
    "compare",
    "make_report",
    "write_report",
]
