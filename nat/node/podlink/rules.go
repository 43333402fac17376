package podlink

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/nftrule"
)

// chain is a chain with its rules. One that is only jumped to has no hook.
type chain struct {
	Name     string
	Kind     nftables.ChainType
	Hook     *nftables.ChainHook
	Priority nftables.ChainPriority
	Rules    []nftrule.Rule
}

// Priorities. Connection tracking stands at -200, the chains of the nat type that kube-proxy and CNIs have at -100 and
// 100: the first nat rule that matches decides, so ours come 10 earlier. All of them run inside one hook of the kernel
// at -100 or 100 (net/netfilter/nf_nat_core.c), so that what stands behind 100 sees translated sources.
const (
	prioritySpoof nftables.ChainPriority = -310 // before connection tracking: what is dropped leaves no entry
	priorityMark  nftables.ChainPriority = -150
	priorityTo    nftables.ChainPriority = -110
	priorityFrom  nftables.ChainPriority = 90
	priorityAdmit nftables.ChainPriority = 105
	priorityGuard nftables.ChainPriority = 110
)

func base(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority,
	rules []nftrule.Rule) chain {
	return chain{Name: name, Kind: kind, Hook: hook, Priority: priority, Rules: rules}
}

// rules returns the chains. They are the same for any addresses.
func (l layout) rules() []chain {
	r := writer{l}
	mark := fmt.Sprintf("meta mark and %#x != 0", leg.MarkMask)
	belongs := []nftrule.Rule{
		r.rule("ct original %s daddr @addresses goto called",
			r.ctDestination(original, in(setAddresses)), jump(expr.VerdictGoto, "called")),
		r.rule("ct reply %s daddr @addresses goto opened",
			r.ctDestination(reply, in(setAddresses)), jump(expr.VerdictGoto, "opened")),
	}
	chains := []chain{
		base("guard_in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, prioritySpoof, []nftrule.Rule{
			// A pod that translates itself sends under its own floating address. No other address of the provider network
			// comes from the link of a pod.
			r.rule("iifname . %s saddr @senders return", r.sender(in(setSenders)), verdict(expr.VerdictReturn)),
			r.rule("iifname @links %s saddr @networks drop",
				iifname(in(setLinks)), r.saddr(in(setNetworks)), verdict(expr.VerdictDrop)),
		}),
		base("mark_in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityMark, append(slices.Clone(belongs),
			// What a translated pod opens to hosts outside. Connections that it opened before its address came have
			// entries, and stay where they are.
			r.rule("ct state new iifname . %[1]s saddr @pods %[1]s daddr != @cluster goto opens",
				ctNew(), r.sender(in(setPods)), r.daddr(notIn(setCluster)), jump(expr.VerdictGoto, "opens")))),
		// Errors that the node itself sends about a floating address, above all "fragmentation needed", leave where its
		// answers do. A chain of type route looks the route up again when the mark changes.
		base("mark_out", nftables.ChainTypeRoute, nftables.ChainHookOutput, priorityMark, belongs),
		base("to_pod", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityTo, []nftrule.Rule{
			r.rule("dnat to %s daddr map @pod_of", r.daddr(look(mapTo)), translate(expr.NATTypeDestNAT, l.table.Family)),
		}),
		base("to_pod_out", nftables.ChainTypeNAT, nftables.ChainHookOutput, priorityTo, []nftrule.Rule{
			r.rule("dnat to %s daddr map @pod_of", r.daddr(look(mapTo)), translate(expr.NATTypeDestNAT, l.table.Family)),
		}),
		// Behind the translation of sources: who calls from a pod of this node under a floating address is known by it.
		base("admit", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, priorityAdmit, []nftrule.Rule{
			r.rule("ct original %s daddr @translated ct direction original goto caller",
				r.ctDestination(original, in(setTranslated)), ctDirection(original), jump(expr.VerdictGoto, "caller")),
			r.rule("ct direction reply ct reply %s daddr @counted_in",
				ctDirection(reply), r.ctDestination(reply, in(setIn))),
			// Nothing untranslated reaches a pod: there it would be taken for the guest's, or go in circles.
			r.rule("%s daddr @translated drop", r.daddr(in(setTranslated)), verdict(expr.VerdictDrop)),
		}),
		// Each packet of a caller is held against the list, not only the first: a shorter list cuts connections.
		{Name: "caller", Rules: []nftrule.Rule{
			r.rule("ct state related goto counted", ctRelated(), jump(expr.VerdictGoto, "counted")),
			r.rule("ct original %s daddr @open_to_all goto counted",
				r.ctDestination(original, in(setOpen)), jump(expr.VerdictGoto, "counted")),
			r.rule("%[1]s daddr . %[1]s saddr . meta l4proto . th dport @admitted goto counted",
				r.caller(in(setAdmitted)), jump(expr.VerdictGoto, "counted")),
			r.rule("%[1]s daddr . %[1]s saddr @own return", r.pair(in(setOwn)), verdict(expr.VerdictReturn)),
			r.rule("ct original %s daddr @refused", r.ctDestination(original, in(setRefused))),
			r.rule("drop", verdict(expr.VerdictDrop)),
		}},
		{Name: "counted", Rules: []nftrule.Rule{
			r.rule("ct original %s daddr @counted_in return",
				r.ctDestination(original, in(setIn)), verdict(expr.VerdictReturn)),
		}},
		base("to_floating", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, priorityFrom, []nftrule.Rule{
			// Marked are what a pod opens to hosts outside, and what it calls of floating addresses, its own included:
			// answers must come back here, and a pod takes no packet that seems to come from itself.
			r.rule(mark+" snat to iifname . %s saddr map @floating_of",
				marked(), r.sender(look(mapFrom)), translate(expr.NATTypeSourceNAT, l.table.Family)),
		}),
		// Nothing leaves under a floating address but by the provider's NICs and to pods. That is what established
		// connections would do while a NIC is gone: the kernel goes on translating them.
		base("guard_out", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, priorityGuard, []nftrule.Rule{
			r.rule("%[1]s saddr @addresses %[1]s daddr != @cluster oifname != @exits drop",
				r.saddr(in(setAddresses)), r.daddr(notIn(setCluster)), oifname(notIn(setExits)), verdict(expr.VerdictDrop)),
			r.rule("%s saddr @counted_out", r.saddr(in(setOut))),
		}),
	}
	return append(r.markers(), chains...)
}

// markers are the chains that give a packet the mark of its network, one rule for each network that may be there. Other
// bits of the mark are somebody else's and stay.
func (w writer) markers() []chain {
	called, opened, opens := chain{Name: "called"}, chain{Name: "opened"}, chain{Name: "opens"}
	for _, m := range slots() {
		floating, pods := slotSets(m)
		set := fmt.Sprintf("meta mark set meta mark and %#x xor %#x", ^leg.MarkMask, m)
		called.Rules = append(called.Rules, w.rule("ct original %s daddr @"+floating+" "+set+" return",
			w.ctDestination(original, in(floating)), setMark(m), verdict(expr.VerdictReturn)))
		opened.Rules = append(opened.Rules, w.rule("ct reply %s daddr @"+floating+" "+set+" return",
			w.ctDestination(reply, in(floating)), setMark(m), verdict(expr.VerdictReturn)))
		opens.Rules = append(opens.Rules, w.rule("iifname . %s saddr @"+pods+" "+set+" return",
			w.sender(in(pods)), setMark(m), verdict(expr.VerdictReturn)))
	}
	return []chain{called, opened, opens}
}

// text is what two sets of chains are compared by.
func (l layout) text() string {
	texts := map[string]string{}
	for _, c := range l.chains {
		var rules []string
		for _, r := range c.Rules {
			rules = append(rules, r.Canonical())
		}
		texts[c.Name] = chainText(c.Name, c.Kind, c.Hook, c.Priority, rules)
	}
	return joined(texts)
}

func chainText(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority,
	rules []string) string {
	at := "jumped to"
	if hook != nil {
		at = fmt.Sprintf("%s hook %d priority %d", kind, *hook, priority)
	}
	return fmt.Sprintf("chain %s %s\n%s\n", name, at, strings.Join(rules, "\n"))
}

func joined(texts map[string]string) string {
	var all strings.Builder
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		all.WriteString(texts[name])
	}
	return all.String()
}

// Directions of a connection (IP_CT_DIR_ORIGINAL, IP_CT_DIR_REPLY).
const (
	original byte = 0
	reply    byte = 1
)

// The kernel's registers: 16 of 4 bytes, of which 4 make one of 16.
const reg = unix.NFT_REG_1
