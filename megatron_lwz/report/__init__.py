"""report.html of a run folder: one self-contained file that needs no network, with our own small SVG charts.

`build.build_report` writes it. `axes`, `charts`, `labels`, `text`, `blocks` and `scores` also serve
`megatron_lwz.ui`, and load no torch.
"""
