package nat

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// routedChains judge what belongs to the floating address among what the CNI's link carries.
func (b binding) routedChains() []Chain {
	return []Chain{
		base(chainFirewall, nftables.ChainTypeFilter, nftables.ChainHookForward, priorityFilter, b.ofAddress()),
		// What leaves by the CNI's link under the pod's address is the CNI's business.
		{Name: chainLeaving, Rules: []Rule{rule(fmt.Sprintf("%s saddr %s counter name %q accept", b.ip, b.Floating, b.counter(counterOut)),
			b.source(equal(b.Floating.AsSlice())), count(b.counter(counterOut)), verdict(expr.VerdictAccept))}},
	}
}

// ofAddress picks what belongs to the floating address out of what the CNI's link carries: calls of it, answers to what
// the guest opened under it, and what the guest opens to hosts outside. The rest is the CNI's business.
//
// There is no mark and no chain for the segment size: all packets have one way, and the guest knows its MTU by DHCP.
func (b binding) ofAddress() []Rule {
	from, to := iifname(equal(link(b.link))), oifname(equal(link(b.link)))
	floating := equal(b.Floating.AsSlice())
	return []Rule{
		rule(fmt.Sprintf("iifname %q ct original %s daddr %s goto %s", b.link, b.ip, b.Floating, chainIn),
			from, ctDestination(original, floating), gotoChain(chainIn)),
		rule(fmt.Sprintf("iifname %q ct reply %s daddr %s goto %s", b.link, b.ip, b.Floating, chainIn),
			from, ctDestination(reply, floating), gotoChain(chainIn)),
		rule(fmt.Sprintf("oifname %q ct direction original %s saddr %s %s daddr != @%s goto %s",
			b.link, b.ip, b.Fixed, b.ip, setCluster, chainOut),
			to, ctOriginal(), b.source(equal(b.Fixed.AsSlice())), b.destination(notIn(setCluster)), gotoChain(chainOut)),
	}
}

// ctOriginal matches packets of whoever opened the connection.
func ctOriginal() part {
	return part{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg}, equal([]byte{0})}
}
