"""One rank of a run without its GPU: the product's own GPU code on fake CUDA tensors, with memory and waits counted.

FakeTensors have shape, dtype and device, but no data, so a step of any model takes seconds and no memory. What runs is
the code that would run on a GPU: the same branches, layers, collectives (over torch's fake process group) and launches
(checked, not run). It shows host tensors among device tensors, wrong dtypes, shapes and grids, where the host waits for
the GPU, and the peak of the allocated memory. It shows nothing about time, values or what other ranks do.

`pool.rehearse` is the entry for ordinary processes; everything else here runs in the process that it starts.
"""

from megatron_lwz.distributed import jit

jit.install()  # before a module of this package imports Megatron-Core
