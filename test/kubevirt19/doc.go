// Package kubevirt19 holds floatip against the masquerade package of KubeVirt v1.9, which made port ranges part of a VM's
// port list. Its tests record the nft commands of that package for those of package nat, which drive flows beside each of
// the tables, and start the sidecar between any two of them.
package kubevirt19
