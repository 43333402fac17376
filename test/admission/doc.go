// Package admission tests what becomes of VirtualMachines and pools on the way through the API server: one control plane
// of real programs (etcd, kube-apiserver, kube-controller-manager, KubeVirt's virt-api and virt-controller), floatip's
// manifests, and floatip-webhook as a process. There are no nodes and no guests: what is tested ends at the pod object.
//
// Two relays stand in the way, so that tests can withhold what goes through: one between API server and etcd, one between
// API server and floatip-webhook.
package admission
