"""One arithmetic for CPU and GPU: packing, photon injection and unpacking, written once in csrc/."""
