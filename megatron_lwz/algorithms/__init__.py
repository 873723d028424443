"""Pure tensor functions of the learning algorithms: no Megatron, no configuration files, no communication."""
