// Package podlink keeps what the kernel of a node holds in nftables for floating addresses that reach their pods by the
// CNI's own link: deliveries Routed and NodeNAT. Routes and rules are those of package leg (leg.Hop).
//
//	LAN ── NIC ── prerouting -150 mark ── -110 floating → pod ── routing ── forward 0 admit ───────── veth ── pod
//	LAN ── NIC ── postrouting 90 pod → floating, 110 guard ───── routing by mark ── prerouting -150 ── veth ── pod
//
// Delivery Routed takes marks and guards of it: the pod translates, and knows the floating address. Delivery NodeNAT
// takes all of it: the pod knows nothing.
//
// The rules are the same however many addresses there are; those are elements of sets and maps, found by a hash. Which
// packets belong to a floating address is decided by the connection's addresses, never by a mark of the connection. A
// mark of the packet (leg.MarkMask) is needed: the kernel chooses the way before it translates the source, and a rule
// that goes by the pod's address would be one rule for each pod.
//
// Desired state is a value; the kernel is read into the same type; elements that differ are changed, in one
// transaction, so that the counters of the others go on. Nothing is remembered between calls.
package podlink
