// Package rig starts a whole cluster on one machine: the network of package lan, the control plane and KubeVirt of
// package cluster, and for each node the stand-ins of kubelet (package kubelet) and virt-handler (test/kubevirt). All
// of it runs in network namespaces, under names that are unique to the run, and Stop leaves nothing. Nor does a program that
// is killed: package reaper removes its rig a moment later.
//
// It knows nothing of floatip but the names of its images.
package rig
