"""One arithmetic for CPU and GPU: packing, photon injection and unpacking, written once in csrc/.

Beside it what the server checks as well: what an engine is, and whether this machine may run it.
"""
