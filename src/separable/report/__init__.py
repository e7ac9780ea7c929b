"""Pages for people: one HTML file with tables and plots, from plain data."""

from separable.report import plots
from separable.report.benchmark_page import benchmark_page
from separable.report.conversion_page import conversion_page, demo_page
from separable.report.page import Section, figure, pictures, sounds, table, write_page
from separable.report.profile_page import profile_page

__all__ = [
    "Section",
    "benchmark_page",
    "conversion_page",
    "demo_page",
    "figure",
    "pictures",
    "plots",
    "profile_page",
    "sounds",
    "table",
    "write_page",
]
