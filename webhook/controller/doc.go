// Package controller keeps ledger and cluster in step after admission has answered.
//
//	Starter     ledger and cluster are compared once; then admission is let in
//	VMs         a stored VM is bound; a VM that is gone with all that carried it gives its addresses back
//	Pools       FloatingIPPool objects become the ledger's pools, and get their status
//	Firewalls   what may pass the legs of running pods follows NetworkPolicies, allow lists and pools
//	Conflicts   an address that a host outside of the cluster has is exchanged for the next one
//	Pending     promises whose VM never appeared are freed, after a look at the API server itself
//
// Events of the cluster say only "look again": every round reads the whole of what one VM's name concerns, from the
// ledger and the caches, and acts on the difference.
package controller
