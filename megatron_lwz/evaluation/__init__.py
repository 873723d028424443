"""Evaluates how well a model writes: by measurements without a judge, and on the public benchmarks with one."""
