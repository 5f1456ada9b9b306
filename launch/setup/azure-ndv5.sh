# shellcheck shell=bash
# LCLM_SETUP for Azure ND H100 v5 and ND H200 v5 (CycleCloud, HPC images): InfiniBand by SR-IOV.
# learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated/ndh100v5-series; the topology is in Azure's HPC image.
topology=/opt/microsoft/ndv5-topo.xml
[[ ! -r $topology ]] || export NCCL_TOPO_FILE=$topology
export NCCL_IB_PCI_RELAXED_ORDERING=1
export NCCL_SOCKET_IFNAME=eth0
export CUDA_DEVICE_ORDER=PCI_BUS_ID
