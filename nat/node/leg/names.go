package leg

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
)

// Names and numbers that stand in the kernel. A change of any of them makes an upgrade leave the old object behind.
const (
	// portPrefix starts the name of the node's end of a leg.
	portPrefix = "fip"

	// portDigits hexadecimal digits and portPrefix fill IFNAMSIZ-1 = 15 bytes.
	portDigits = 12

	// podTable is the pod's routing table for packets that carry nat.LegMark, and podRule the preference of the rule.
	podTable = 77
	podRule  = 77
	// podOwnRule is the preference of the rules that lead packets to a floating address to podTable, where its
	// blackhole is.
	podOwnRule = 78

	// protocol marks our routes and rules among those of others (rtm_protocol). It is in no distribution's
	// /etc/iproute2/rt_protos.
	protocol = 119
)

// Routing tables of the node. The numbers 7100 to 7199 are ours. Earlier versions kept active addresses in 7100.
const (
	tableFirst  = 7100
	tableStaged = 7102 // addresses that are about to move here: only the provider NIC looks into it
	tableBack   = 7101 // of the first provider network; later ones get tableMore..tableLast
	tableMore   = 7110
	tableLast   = 7198
	tableNone   = 7199 // stands in rules that only go to another one, as a sign that they are ours
)

// Preferences of the node's rules. They come before those of kube-router (from 32765), Cilium (from 9) has no rule on
// destination networks, and main (32766).
//
// The way back goes by the source alone, since a rule can name only one interface and there is one for each leg. What
// the node itself sends, and what came in by a provider NIC, may have sources of the network too and passes it by.
//
// Each packet has its route looked up twice on the node, where and whence, and a look into a table costs as much as
// fifteen rules that do not match (docs/decisions/datapath.md). So a network has one table for all that is behind it,
// its floating addresses on this node and the ways to everybody else, and each packet of a floating address is decided
// by the first look. Who may only see the addresses in it looks with a shortest prefix length.
const (
	ruleStaged = 4990 // only while something is staged
	ruleLate   = 4991 // only while somebody has left
	ruleAcross = 5000 // from one provider network to addresses of another one
	ruleMarked = 5001
	ruleOthers = 5002
	ruleBack   = 5003
	ruleActive = 5004
)

// Addresses on the leg itself. Nothing outside of the leg ever sees them.
var (
	// nodeMAC is that of the node's end of every leg, on every node: the neighbour entry in the pod needs no exchange.
	// Two legs never share a segment.
	nodeMAC = mac{0x02, 0xf1, 0, 0, 0, 1}

	nodeEnd4 = netip.MustParseAddr("169.254.77.1")
	// podEnd4 exists because an interface without any IPv4 address fails reverse-path filtering even in loose mode
	// (fib_validate_source in net/ipv4/fib_frontend.c, no_addr).
	podEnd4  = netip.MustParsePrefix("169.254.77.2/32")
	nodeEnd6 = netip.MustParseAddr("fe80::77")
)

// mac is a comparable Ethernet address.
type mac [6]byte

// PortName returns the name of the node's end of the leg of the pod with this UID.
func PortName(pod string) string {
	sum := sha256.Sum256([]byte(pod))
	return portPrefix + hex.EncodeToString(sum[:])[:portDigits]
}

// podMAC returns the Ethernet address of the pod's end: locally administered, and the same after a restart of the
// agent.
func podMAC(pod string) mac {
	sum := sha256.Sum256([]byte(pod))
	return mac{0x02, 0xf1, sum[28], sum[29], sum[30], sum[31] | 0x02} // never nodeMAC
}

// isPort reports whether PortName may have made name.
func isPort(name string) bool {
	if len(name) != len(portPrefix)+portDigits || name[:len(portPrefix)] != portPrefix {
		return false
	}
	_, err := hex.DecodeString(name[len(portPrefix):])
	return err == nil
}
