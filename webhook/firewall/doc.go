// Package firewall decides which connections may pass the leg of a virt-launcher pod.
//
// The leg goes past the CNI, so nobody but floatip can honour the NetworkPolicies of the namespace there. Three voices
// are heard, and a connection from outside is admitted only when all of them admit it:
//
//	the NetworkPolicies that select the pod   policy.go   everything when none isolates the pod
//	the VM's allow list, or the pool default  allow.go    annotation floatip.io/allow
//	the ports of the VM's interface           translate.go  everything when it lists none
//
// Connections that the guest opens are judged by the NetworkPolicies alone.
//
// Translate turns the three into a floatip.Firewall, whose entries the sidecar loads into an nft set as they are. The
// package is pure: it neither watches objects nor writes annotations, and knows nothing of the kernel. What cannot be
// understood admits nothing and is reported as a Problem.
package firewall
