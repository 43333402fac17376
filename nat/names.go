package nat

import "github.com/google/nftables"

// Names and numbers of what floatip keeps in a pod. The node agent makes the links, routes and rules that go with them.
const (
	// TableName is KubeVirt's table, "ip nat" and "ip6 nat" (pkg/network/setup/netpod/masquerade/masquerade.go). Adding
	// a table that exists is no error, and KubeVirt only ever adds, so either may come first.
	TableName = "nat"

	// prefix marks the chains, sets and counters that are ours. Nothing else in the table is ever touched.
	prefix = "floatip_"

	// LegInterface is the pod's end of the private link to the node.
	LegInterface = "fip0"

	// LegMark is the packet mark by which the pod's routing sends a packet out by the leg. Marks of packets are private
	// to a network namespace, so it can clash only with other users inside the pod.
	LegMark = 0x77
)

// Our chains. Those that other chains lead to are in, out, guest, foreign, stray and leaving; the others have a hook. With
// a leg there are arriving, guest, foreign, stray and mark_out; by the CNI's link there are firewall and leaving.
const (
	chainPrerouting  = prefix + "prerouting"
	chainPostrouting = prefix + "postrouting"
	chainMarkOut     = prefix + "mark_out"
	chainArriving    = prefix + "arriving"
	chainGuest       = prefix + "guest"
	chainForeign     = prefix + "foreign"
	chainFirewall    = prefix + "firewall"
	chainIn          = prefix + "in"
	chainOut         = prefix + "out"
	chainGuard       = prefix + "guard"
	chainStray       = prefix + "stray"
	chainLeaving     = prefix + "leaving"
)

// Our sets.
const (
	setCluster = prefix + "cluster" // networks that the guest talks to with the pod's address
	setEgress  = prefix + "egress"  // what the guest may open by the leg; absent when that is everything
	setIngress = prefix + "ingress" // what may be opened towards the guest by the leg; absent when that is everything
	setLinks   = prefix + "links"   // the leg and the guest's bridge
	setPorts   = prefix + "ports"   // the VM's port list; absent when every port is open
)

// Priorities. KubeVirt's nat chains stand at -100 (prerouting, output) and 100 (postrouting); the first nat rule that
// matches decides, so ours run 10 earlier. All nat chains of a hook run inside one hook of the kernel at -100 or 100
// (net/netfilter/nf_nat_core.c); the guard at 110 therefore sees translated sources, and arriving at -99 translated
// destinations, still without a route.
const (
	priorityMangle      nftables.ChainPriority = -150
	priorityPrerouting  nftables.ChainPriority = -110
	priorityArriving    nftables.ChainPriority = -99
	priorityFilter      nftables.ChainPriority = 0
	priorityPostrouting nftables.ChainPriority = 90
	priorityGuard       nftables.ChainPriority = 110
)

// Names of the counters of a floating address; the address follows.
const (
	counterIn      = prefix + "in_"
	counterOut     = prefix + "out_"
	counterRefused = prefix + "refused_"
	counterGuarded = prefix + "guarded_"
)
