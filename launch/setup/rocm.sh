# shellcheck shell=bash
# LCLM_SETUP for nodes of MI300X or MI300A. JAX's plugin for ROCm (jax-rocm7-plugin and jax-rocm7-pjrt of jaxlib's version)
# is in the environment or the container; RCCL comes with ROCm. docs/how-to/launch.md says which kernels are taken.
export LD_LIBRARY_PATH=${ROCM_PATH:-/opt/rocm}/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# One process drives all GPUs of a node; RCCL copies between them without the host.
export HSA_FORCE_FINE_GRAIN_PCIE=1
export NCCL_MIN_NCHANNELS=112
