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
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority,
		rules ...Rule) Chain {
		return Chain{
			Name: name, Type: kind, Hook: *hook, Priority: priority, Policy: nftables.ChainPolicyAccept, Rules: rules,
		}
	}
	shared := []Chain{
		base(chainPrerouting, nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityPrerouting, b.prerouting()...),
		base(chainPostrouting, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, priorityPostrouting, b.postrouting()...),
		{Name: chainIn, Rules: b.inbound()},
		base(chainGuard, nftables.ChainTypeFilter, nftables.ChainHookPostrouting, priorityGuard, b.guard()...),
		{Name: chainLeaving, Rules: b.leaving()},
	}
	if b.routed {
		return append(shared,
			base(chainFirewall, nftables.ChainTypeFilter, nftables.ChainHookForward, priorityFilter, b.ofAddress()...),
			Chain{Name: chainOut, Rules: b.outbound()})
	}
	return append(shared, []Chain{
		{Name: chainLeg, Rules: b.leg()},
		base(chainMark, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityMangle,
			rule(fmt.Sprintf("iifname %q jump %s", b.bridge, chainLeg), iifname(equal(link(b.bridge))), jump(chainLeg))),
		// Errors that the pod itself sends, above all "fragmentation needed", belong to the flow they speak of and must
		// leave by the leg too. A chain of type route looks the route up again when the mark changes.
		base(chainMarkOut, nftables.ChainTypeRoute, nftables.ChainHookOutput, priorityMangle,
			rule("jump "+chainLeg, jump(chainLeg))),
		// One chain for a hook, and one look at the link for all rules that want it: a name costs as much as the rest of
		// a rule, and a chain as much as three (docs/decisions/datapath.md).
		base(chainFirewall, nftables.ChainTypeFilter, nftables.ChainHookForward, priorityFilter,
			rule(fmt.Sprintf("iifname %q goto %s", LegInterface, chainIn), iifname(equal(link(LegInterface))), gotoChain(chainIn)),
			rule(fmt.Sprintf("oifname %q goto %s", LegInterface, chainOut), oifname(equal(link(LegInterface))), gotoChain(chainOut))),
		{Name: chainOut, Rules: append([]Rule{b.mss()}, b.outbound()...)},
	}...)
}

// leg decides which packets leave by the leg. It goes by the connection's addresses, never by a mark of the connection:
// a conntrack entry that was copied to a migration target without its mark must be judged the same.
func (b binding) leg() []Rule {
	marked := fmt.Sprintf("meta mark set 0x%08x", LegMark)
	floating := b.Floating.AsSlice()
	return []Rule{
		// Answers to those who called the floating address, other than the guest itself.
		rule(fmt.Sprintf("ct original %s daddr %s ct original %s saddr != %s ct original %s saddr != %s %s return",
			b.ip, b.Floating, b.ip, b.Fixed, b.ip, b.Gateway, marked),
			ctDestination(original, equal(floating)),
			ctSource(original, notEqual(b.Fixed.AsSlice())), ctSource(original, notEqual(b.Gateway.AsSlice())),
			setMark(LegMark), verdict(expr.VerdictReturn)),
		// Later packets of connections that the guest opened under the floating address.
		rule(fmt.Sprintf("ct reply %s daddr %s ct original %s daddr != %s %s return",
			b.ip, b.Floating, b.ip, b.Floating, marked),
			ctDestination(reply, equal(floating)), ctDestination(original, notEqual(floating)),
			setMark(LegMark), verdict(expr.VerdictReturn)),
		// The first packet of a connection that leaves the cluster. Connections to services and those that were opened
		// before the address came have other addresses in their entries and stay where they are.
		rule(fmt.Sprintf("iifname %q ct state new %s saddr %s %s daddr != @%s %s daddr != %s %s",
			b.bridge, b.ip, b.Fixed, b.ip, setCluster, b.ip, b.Floating, marked),
			iifname(equal(link(b.bridge))), ctState(expr.CtStateBitNEW), b.source(equal(b.Fixed.AsSlice())),
			b.destination(notIn(setCluster)), b.destination(notEqual(floating)), setMark(LegMark)),
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
	if len(b.Ports) == 0 {
		return []Rule{rule(fmt.Sprintf("%s dnat to %s", to, b.Fixed), match, dnat(b.Fixed)), drop}
	}
	return []Rule{
		rule(fmt.Sprintf("%s meta l4proto . th dport @%s dnat to %s", to, setPorts, b.Fixed),
			match, listedPort(), dnat(b.Fixed)),
		rule(fmt.Sprintf("%s %s dnat to %s", to, b.echoText(), b.Fixed), match, b.echo(), dnat(b.Fixed)),
		drop,
	}
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
	return append(rules, b.refuse())
}

// outbound lets out by the leg what the firewall admits, and answers.
func (b binding) outbound() []Rule {
	if b.firewall.Egress.Everything {
		return nil
	}
	pass := verdict(expr.VerdictAccept)
	return append(answers("accept", pass),
		rule(fmt.Sprintf("%s daddr . meta l4proto . th dport @%s accept", b.ip, setEgress), b.admitted(b.daddr, setEgress), pass),
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
	rules := []Rule{
		rule(fmt.Sprintf("oifname %q goto %s", b.link, chainLeaving),
			oifname(equal(link(b.link))), gotoChain(chainLeaving)),
		rule(fmt.Sprintf("%s saddr %s oifname != @%s %s", b.ip, b.Floating, setLinks, b.guardedText()),
			b.source(equal(b.Floating.AsSlice())), oifname(notIn(setLinks)), b.guarded()),
	}
	if b.link != LegInterface {
		return rules // the CNI's link is always there
	}
	return append(rules,
		rule(fmt.Sprintf("meta mark 0x%08x oifname != @%s ct state new tcp flags ! syn %s", LegMark, setLinks, b.guardedText()),
			marked(LegMark), oifname(notIn(setLinks)), ctState(expr.CtStateBitNEW), segment(), b.guarded()))
}

func (b binding) leaving() []Rule {
	rules := []Rule{rule(fmt.Sprintf("%s saddr %s counter name %q accept", b.ip, b.Floating, b.counter(counterOut)),
		b.source(equal(b.Floating.AsSlice())), count(b.counter(counterOut)), verdict(expr.VerdictAccept))}
	if b.routed {
		return rules // what leaves by the CNI's link under the pod's address is the CNI's business
	}
	if b.Floating.Is6() {
		rules = append(rules,
			rule(fmt.Sprintf("ip6 saddr %s meta l4proto ipv6-icmp accept", linkLocal),
				b.sourceIn(linkLocal), l4proto(equal([]byte{unix.IPPROTO_ICMPV6})), verdict(expr.VerdictAccept)),
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
