// Package webhook answers the API server's admission requests: it gives new virtual machines their floating address,
// carries the address to the VirtualMachineInstance, and injects the sidecar into the virt-launcher pod.
//
//	VirtualMachine CREATE, mutating    promise an address, write annotations; the disk is not waited for
//	VirtualMachine CREATE, validating  the promise is durable, or waited for; name and UID are known
//	VirtualMachine UPDATE, mutating    put floatip's annotations back
//	VirtualMachineInstance CREATE      carry the address, give the guest its hint
//	Pod CREATE (virt-launcher)         sidecar, NAT description, nodes that carry the provider network
//	FloatingIPPool, validating         syntax; held addresses stay inside
//
// There is one file per kind of object. A handler is four steps: decode, plan, ledger, patch. What it decided is a
// Decision, which one function turns into the answer, the audit annotations, the metrics and the log line.
//
// Patches are explicit operations on floatip's own keys. Objects are decoded as far as the decision needs and never
// written back, so fields that this version does not know survive.
//
// The package does not watch anything: package controller binds, releases and adopts.
package webhook
