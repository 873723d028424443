"""How well a model writes: measured without a judge, and on the public benchmarks with one."""
