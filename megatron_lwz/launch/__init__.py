"""One description (config.launch), rendered for torchrun, Slurm, Kubernetes and SkyPilot; the checks of its nodes.

A script has three parts: settings (values of the description, quoted), templates/node.sh (what any node does), and
templates/TARGET.sh (which node does what). Templates hold no value, and values are never code.
"""
