// Package kubeovn delivers the addresses of pools with the delivery KubeOVN: it writes Kube-OVN's own objects, and
// Kube-OVN translates and answers on the provider network.
//
//	FloatingIP ──► OvnEip  the address, taken from Kube-OVN's external subnet, for as long as it is held
//	           └─► OvnFip  the address leads to the VM's IP object, for as long as the VM runs
//
// Both are named after the FloatingIP and carry its label. An object of that name without the label is somebody
// else's: it is never touched, and the FloatingIP says so. What is there with the label is taken over, whoever made
// it.
//
// Kube-OVN looks at an OvnFip's address alone once it was made (pkg/controller/ovn_fip.go), and needs the OvnEip and
// the IP object to undo it. So an OvnFip is never changed but deleted and made anew, and an OvnEip is deleted when
// its OvnFip is gone, finalizers included.
//
// Nothing is watched of Kube-OVN's: its definitions may be absent, and a watch would keep the process from starting.
// Each address is looked at again after some seconds.
package kubeovn
