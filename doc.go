// Package floatip holds the words that all parts of floatip share: the label and annotation keys, the owner of an
// address, the claim that ties an object to its ledger entry, and the NAT description that the webhook writes on a
// virt-launcher pod and the sidecar reads.
//
// It imports the standard library only, so that the sidecar, which runs beside every virtual machine, stays small. It
// decides nothing: which address a VM gets is the business of package ipam, what the kernel shall hold is that of
// package nat.
package floatip
