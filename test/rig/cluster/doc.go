// Package cluster runs a real control plane for the rig: etcd, kube-apiserver, kube-controller-manager and
// kube-scheduler, and after InstallKubeVirt also KubeVirt's virt-api and virt-controller. All are the programs that a
// cluster runs, started as processes in one network namespace, with certificates made for the occasion.
//
// Not here: nodes (kubelet, container runtime, virt-handler), a service proxy and a cluster DNS. The API server reaches
// webhooks and aggregated APIs by the addresses in their EndpointSlices, so it needs a route to those.
package cluster
