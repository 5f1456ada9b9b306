# shellcheck shell=bash
# LCLM_SETUP for AWS P5, P5e and P6 nodes (ParallelCluster, HyperPod): NCCL over EFA by the plugin aws-ofi-nccl, which the
# Deep Learning AMI has. docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start-nccl.html
plugin=${OFI_NCCL_LIB:-/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu}
[[ -d $plugin ]] || plugin=/opt/amazon/ofi-nccl/lib
export LD_LIBRARY_PATH=$plugin:/opt/amazon/efa/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export FI_PROVIDER=efa
# Data workers are forked: huge pages of EFA and fork do not go together.
export FI_EFA_USE_HUGE_PAGE=0
# The bootstrap of NCCL and of JAX goes over the primary interface.
export NCCL_SOCKET_IFNAME=^docker,lo,veth
