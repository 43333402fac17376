package nat

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// chains returns our chains with their rules. The text of each rule is what nft would read.
func (b binding) chains() []Chain {
	shared := []Chain{
		base(chainPrerouting, nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityPrerouting, b.prerouting()),
		base(chainPostrouting, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, priorityPostrouting, b.postrouting()),
		base(chainGuard, nftables.ChainTypeFilter, nftables.ChainHookPostrouting, priorityGuard, b.guard()),
		{Name: chainIn, Rules: b.inbound()},
		{Name: chainOut, Rules: b.outbound()},
	}
	if b.routed {
		return append(shared, b.routedChains()...)
	}
	return append(shared, b.legChains()...)
}

func base(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority, rules []Rule) Chain {
	return Chain{
		Name: name, Type: kind, Hook: *hook, Priority: priority, Policy: nftables.ChainPolicyAccept, Rules: rules,
	}
}

// legChains judge each packet in two places and no more, after the translation of its destination and after that of its
// source: a chain costs as much as three rules, and a look at a link's name as much as the rest of a rule
// (docs/decisions/datapath.md).
func (b binding) legChains() []Chain {
	return []Chain{
		base(chainArriving, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityArriving, []Rule{
			rule(fmt.Sprintf("iifname %q goto %s", LegInterface, chainIn), iifname(equal(link(LegInterface))), gotoChain(chainIn)),
			rule(fmt.Sprintf("iifname %q goto %s", b.bridge, chainGuest), iifname(equal(link(b.bridge))), gotoChain(chainGuest)),
		}),
		{Name: chainGuest, Rules: b.guest()},
		{Name: chainForeign, Rules: b.foreign()},
		{Name: chainStray, Rules: b.stray()},
		// Errors that the pod itself sends, above all "fragmentation needed", belong to the flow they speak of and must
		// leave by the leg too. A chain of type route looks the route up again when the mark changes.
		base(chainMarkOut, nftables.ChainTypeRoute, nftables.ChainHookOutput, priorityMangle, b.ofLeg()),
	}
}

// guest is what comes from the guest's bridge. Under another source than its own address the guest sends nothing: what
// KubeVirt does not masquerade would leave as it is, by the CNI's link, if the CNI lets it.
func (b binding) guest() []Rule {
	rules := append([]Rule{
		rule(fmt.Sprintf("%s saddr != %s goto %s", b.ip, b.Fixed, chainForeign),
			b.source(notEqual(b.Fixed.AsSlice())), gotoChain(chainForeign)),
	}, b.ofLeg()...)
	// The first packet of a connection that leaves the cluster. Connections to services and those that were opened before
	// the address came have other addresses in their entries and stay where they are.
	return append(rules, rule(fmt.Sprintf("ct state new %s daddr != @%s %s", b.ip, setCluster, markText),
		ctState(expr.CtStateBitNEW), b.destination(notIn(setCluster)), setMark(LegMark)))
}

// foreign is what comes from the guest's bridge under another address than the guest's fixed one. Hosts that have no
// address yet, and neighbours that speak of theirs, speak to the pod alone: the kernel forwards neither (RFC 1122 section
// 3.2.1.3, RFC 4291 section 2.5.6).
func (b binding) foreign() []Rule {
	none := netip.IPv4Unspecified()
	if b.Floating.Is6() {
		none = netip.IPv6Unspecified()
	}
	rules := []Rule{rule(fmt.Sprintf("%s saddr %s accept", b.ip, none), b.source(equal(none.AsSlice())), verdict(expr.VerdictAccept))}
	if b.Floating.Is6() {
		rules = append(rules, rule(fmt.Sprintf("ip6 saddr %s accept", linkLocal), b.sourceIn(linkLocal), verdict(expr.VerdictAccept)))
	}
	return append(rules, rule(b.guardedText(), b.guarded()))
}

var markText = fmt.Sprintf("meta mark set 0x%08x", LegMark)

// ofLeg decides which packets leave by the leg. It goes by the connection's addresses, never by a mark of the connection:
// a conntrack entry that was copied to a migration target without its mark must be judged the same.
//
// Nothing for the guest leaves by the leg: neither its calls of its own floating address, nor errors that the pod sends
// it about packets to others.
func (b binding) ofLeg() []Rule {
	leave := append(setMark(LegMark), verdict(expr.VerdictAccept)...)
	floating := equal(b.Floating.AsSlice())
	return []Rule{
		rule(fmt.Sprintf("%s daddr %s accept", b.ip, b.Fixed), b.destination(equal(b.Fixed.AsSlice())), verdict(expr.VerdictAccept)),
		// Answers to those who called the floating address.
		rule(fmt.Sprintf("ct original %s daddr %s %s accept", b.ip, b.Floating, markText), ctDestination(original, floating), leave),
		// Later packets of connections that the guest opened under the floating address.
		rule(fmt.Sprintf("ct reply %s daddr %s %s accept", b.ip, b.Floating, markText), ctDestination(reply, floating), leave),
	}
}

// prerouting translates calls of the floating address that come in by the leg or from the guest itself.
//
// Whatever else is addressed to it ends here: KubeVirt's own rule for a VM with a port list would let an unlisted port
// pass untranslated, and the packet would circle between pod and node until its TTL is used up.
func (b binding) prerouting() []Rule {
	to := fmt.Sprintf("iifname @%s %s daddr %s", setLinks, b.ip, b.Floating)
	match := part{}
	match = append(match, iifname(in(setLinks))...)
	match = append(match, b.destination(equal(b.Floating.AsSlice()))...)
	drop := rule(fmt.Sprintf("%s daddr %s counter name %q drop", b.ip, b.Floating, b.counter(counterRefused)),
		b.destination(equal(b.Floating.AsSlice())), count(b.counter(counterRefused)), verdict(expr.VerdictDrop))
	var rules []Rule
	if !b.routed {
		rules = append(rules, b.pretenders())
	}
	if len(b.Ports) == 0 {
		return append(rules, rule(fmt.Sprintf("%s dnat to %s", to, b.Fixed), match, dnat(b.Fixed)), drop)
	}
	return append(rules,
		rule(fmt.Sprintf("%s meta l4proto . th dport @%s dnat to %s", to, setPorts, b.Fixed),
			match, listedPort(), dnat(b.Fixed)),
		rule(fmt.Sprintf("%s %s dnat to %s", to, b.echoText(), b.Fixed), match, b.echo(), dnat(b.Fixed)),
		drop)
}

// pretenders come by the leg as if they were the guest or its gateway. The pod's kernel would refuse them by itself, but
// for each packet anew, with two looks for a route (rp_filter): the node agent relieves it of that.
func (b binding) pretenders() Rule {
	return rule(fmt.Sprintf("iifname %q %s saddr %s counter name %q drop", LegInterface, b.ip, b.GuestNetwork.Masked(), b.counter(counterRefused)),
		iifname(equal(link(LegInterface))), b.sourceIn(b.GuestNetwork.Masked()), count(b.counter(counterRefused)), verdict(expr.VerdictDrop))
}

func (b binding) echoText() string {
	if b.Floating.Is4() {
		return "icmp type echo-request"
	}
	return "icmpv6 type echo-request"
}

// postrouting gives the guest's packets the floating address as their source.
func (b binding) postrouting() []Rule {
	outside, text := part(nil), ""
	if b.routed { // by the leg goes nothing else
		outside, text = b.destination(notIn(setCluster)), fmt.Sprintf(" %s daddr != @%s", b.ip, setCluster)
	}
	return []Rule{
		// The guest calls its own floating address: it must not see itself as the caller, or it would answer directly.
		rule(fmt.Sprintf("oifname %q ct original %s daddr %s %s saddr %s snat to %s",
			b.bridge, b.ip, b.Floating, b.ip, b.Fixed, b.Floating),
			oifname(equal(link(b.bridge))), ctDestination(original, equal(b.Floating.AsSlice())),
			b.source(equal(b.Fixed.AsSlice())), snat(b.Floating)),
		rule(fmt.Sprintf("oifname %q %s saddr %s%s snat to %s", b.link, b.ip, b.Fixed, text, b.Floating),
			oifname(equal(link(b.link))), b.source(equal(b.Fixed.AsSlice())), outside, snat(b.Floating)),
	}
}

// inbound lets in by the leg what prerouting translated and the lists admit, and answers. It keeps the node's network
// from reaching the guest's fixed address, the pod's address or anything behind them.
//
// Where there is a list, each packet of the caller is held against it, not only the first: a shorter list cuts the
// connections that it no longer admits. Deleting their conntrack entries would not, since the guest's next packet would
// open them again in the other direction.
func (b binding) inbound() []Rule {
	in := fmt.Sprintf("counter name %q accept", b.counter(counterIn))
	pass := append(count(b.counter(counterIn)), verdict(expr.VerdictAccept)...)

	called := append(ctDestination(original, equal(b.Floating.AsSlice())), b.destination(equal(b.Fixed.AsSlice()))...)
	text := fmt.Sprintf("ct original %s daddr %s %s daddr %s", b.ip, b.Floating, b.ip, b.Fixed)
	if !b.firewall.Ingress.Everything {
		called = append(called, b.admitted(b.saddr, setIngress)...)
		text += fmt.Sprintf(" %s saddr . meta l4proto . th dport @%s", b.ip, setIngress)
	}
	var rules []Rule
	switch {
	case len(b.Ports) > 0:
		rules = append(answers(in, pass),
			rule(fmt.Sprintf("%s meta l4proto . th dport @%s %s", text, setPorts, in), called, listedPort(), pass),
			rule(fmt.Sprintf("%s meta l4proto %s %s", text, b.icmp, in), called, l4proto(equal([]byte{b.icmpProtocol})), pass))
	case !b.firewall.Ingress.Everything:
		rules = append(answers(in, pass), rule(text+" "+in, called, pass))
	default:
		rules = []Rule{
			rule("ct state established,related "+in, ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), pass),
			rule(text+" "+in, called, pass),
		}
	}
	if !b.routed {
		rules = append(rules, b.neighbours()...)
	}
	return append(rules, b.refuse())
}

// neighbours is what the node's kernel says to the pod's on the leg itself. None of it is ever forwarded.
func (b binding) neighbours() []Rule {
	rules := []Rule{rule("meta pkttype != host accept", pkttype(notEqual([]byte{unix.PACKET_HOST})), verdict(expr.VerdictAccept))}
	if b.Floating.Is6() {
		rules = append(rules, b.discovery())
	}
	return rules
}

// discovery is neighbour discovery by a link-local address.
func (b binding) discovery() Rule {
	return rule(fmt.Sprintf("ip6 saddr %s meta l4proto ipv6-icmp accept", linkLocal),
		b.sourceIn(linkLocal), l4proto(equal([]byte{unix.IPPROTO_ICMPV6})), verdict(expr.VerdictAccept))
}

// outbound lets out what the firewall admits, and answers; by the leg, only what has the floating address.
func (b binding) outbound() []Rule {
	if b.routed {
		return b.admittedOut("accept", verdict(expr.VerdictAccept))
	}
	out := append(count(b.counter(counterOut)), verdict(expr.VerdictAccept)...)
	text := fmt.Sprintf("counter name %q accept", b.counter(counterOut))
	rules := []Rule{
		rule(fmt.Sprintf("%s saddr != %s goto %s", b.ip, b.Floating, chainStray),
			b.source(notEqual(b.Floating.AsSlice())), gotoChain(chainStray)),
		b.mss(),
	}
	if b.firewall.Egress.Everything {
		return append(rules, rule(text, out))
	}
	return append(rules, b.admittedOut(text, out)...)
}

// admittedOut is empty where everything may leave.
func (b binding) admittedOut(then string, pass part) []Rule {
	if b.firewall.Egress.Everything {
		return nil
	}
	return append(answers(then, pass),
		rule(fmt.Sprintf("%s daddr . meta l4proto . th dport @%s %s", b.ip, setEgress, then), b.admitted(b.daddr, setEgress), pass),
		b.refuse())
}

func (b binding) refuse() Rule {
	return rule(fmt.Sprintf("counter name %q drop", b.counter(counterRefused)),
		count(b.counter(counterRefused)), verdict(expr.VerdictDrop))
}

// answers are the packets that need no entry in a list: those to whoever opened the connection, and ICMP errors.
func answers(then string, verdict part) []Rule {
	return []Rule{
		rule("ct state related "+then, ctState(expr.CtStateBitRELATED), verdict),
		rule("ct state established ct direction reply "+then, ctState(expr.CtStateBitESTABLISHED), ctReply(), verdict),
	}
}

// mss keeps TCP from relying on "fragmentation needed" where the leg's MTU is the smallest on the way.
func (b binding) mss() Rule {
	return rule("tcp flags syn tcp option maxseg size set rt mtu", syn(), clamp())
}

// linkLocal is the source of neighbour discovery by the pod's kernel on the leg. Packets of the guest with such a
// source are never forwarded (RFC 4291 section 2.5.6).
var linkLocal = netip.MustParsePrefix("fe80::/10")

// guard is the last word: nothing leaves by the leg under another name, and nothing by another link under this one. The
// latter is what established connections would do while the leg is gone: the kernel goes on translating them.
//
// A TCP segment that is to leave by the leg, in the middle of a connection that this pod has never seen, stays here while
// there is no leg: it belongs to a guest that has migrated here before the node was ready. By another link it would leave
// under the pod's address, and whoever gets it would reset the guest's connection.
//
// Under no name at all the pod's kernel asks whether its link-local address is free (RFC 4862 section 5.4.2); nobody
// needs to hear that, and it is no sign of an attack.
func (b binding) guard() []Rule {
	leaving := chainOut
	if b.routed {
		leaving = chainLeaving
	}
	rules := []Rule{
		rule(fmt.Sprintf("oifname %q goto %s", b.link, leaving), oifname(equal(link(b.link))), gotoChain(leaving)),
		rule(fmt.Sprintf("%s saddr %s oifname != @%s %s", b.ip, b.Floating, setLinks, b.guardedText()),
			b.source(equal(b.Floating.AsSlice())), oifname(notIn(setLinks)), b.guarded()),
	}
	if b.routed {
		return rules // the CNI's link is always there
	}
	return append(rules,
		rule(fmt.Sprintf("meta mark 0x%08x oifname != @%s ct state new tcp flags ! syn %s", LegMark, setLinks, b.guardedText()),
			marked(LegMark), oifname(notIn(setLinks)), ctState(expr.CtStateBitNEW), segment(), b.guarded()))
}

// stray is what is to leave by the leg under another name than the floating address.
func (b binding) stray() (rules []Rule) {
	if b.Floating.Is6() {
		rules = append(rules, b.discovery(),
			rule("ip6 saddr :: drop", b.source(equal(netip.IPv6Unspecified().AsSlice())), verdict(expr.VerdictDrop)))
	}
	return append(rules, rule(b.guardedText(), b.guarded()))
}

func (b binding) guardedText() string {
	return fmt.Sprintf("counter name %q drop", b.counter(counterGuarded))
}

func (b binding) guarded() part {
	return append(count(b.counter(counterGuarded)), verdict(expr.VerdictDrop)...)
}
