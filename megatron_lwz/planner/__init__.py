"""Whether a run fits, before any GPU is rented: memory of every kind of rank from the rehearsal of the product's own code.

A formula or an assumption is named as such where it is used. Nothing here was measured on a GPU.
"""
