// Package node is the loop of the agent on a node: it decides which pods are entitled to which floating addresses, and
// has packages leg and announce make it so.
//
//	cluster (informers) ─► View ─► Decide ─► verdicts ─┬─► sidecar sessions: the pods' namespaces, their NAT
//	                                                   ├─► leg: links, routes, rules
//	                                                   ├─► announce: ARP on the provider NIC
//	                                                   └─► Report ─► status of FloatingIP objects
//
// An event says only "look again". Each round reads the View and the kernel and starts from nothing, so an agent that
// was killed goes on where the kernel stands. The API server may be away for as long as it likes: the last View stays.
//
// On shutdown everything stays as it is: the kernel goes on forwarding and answering, and the next agent finds it. Who
// wants a node without floatip removes the addresses first.
//
// The package imports no Kubernetes client; package cluster makes the View and writes the Report.
package node
