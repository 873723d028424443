"""report.html of a run folder: one self-contained file that needs no network, with our own small SVG charts."""

from megatron_lwz.report.build import build_report

__all__ = ["build_report"]
