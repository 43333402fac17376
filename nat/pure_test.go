package nat

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"

	"floatip.io/floatip"
)

func TestSpans(t *testing.T) {
	for name, tc := range map[string]struct{ networks, want []string }{
		"none":                {nil, nil},
		"one":                 {[]string{"10.0.0.0/8"}, []string{"10.0.0.0-10.255.255.255"}},
		"inside another":      {[]string{"10.96.0.0/12", "10.0.0.0/8"}, []string{"10.0.0.0-10.255.255.255"}},
		"twice":               {[]string{"10.0.0.0/8", "10.0.0.0/8"}, []string{"10.0.0.0-10.255.255.255"}},
		"adjacent":            {[]string{"10.0.1.0/24", "10.0.0.0/24"}, []string{"10.0.0.0-10.0.1.255"}},
		"apart":               {[]string{"10.0.2.0/24", "10.0.0.0/24"}, []string{"10.0.0.0-10.0.0.255", "10.0.2.0-10.0.2.255"}},
		"everything":          {[]string{"0.0.0.0/0", "10.0.0.0/8"}, []string{"0.0.0.0-255.255.255.255"}},
		"the last":            {[]string{"255.255.255.255/32"}, []string{"255.255.255.255-255.255.255.255"}},
		"adjacent at the end": {[]string{"255.255.255.255/32", "255.255.255.254/32"}, []string{"255.255.255.254-255.255.255.255"}},
		"IPv6":                {[]string{"fe80::/10", "ff00::/8"}, []string{"fe80::-febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ff00::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}},
	} {
		t.Run(name, func(t *testing.T) {
			var networks []netip.Prefix
			for _, n := range tc.networks {
				networks = append(networks, netip.MustParsePrefix(n))
			}
			var have []string
			for _, s := range spans(networks) {
				have = append(have, s.first.String()+"-"+s.last.String())
			}
			if diff := cmp.Diff(tc.want, have); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCounterNames(t *testing.T) {
	for _, text := range []string{"192.168.100.50", "2001:db8:100::50", "2001:db8::", "::ffff:0:1"} {
		floating := netip.MustParseAddr(text)
		for _, kind := range []string{counterIn, counterOut, counterRefused, counterGuarded} {
			name := counterName(kind, floating)
			if gotKind, got, ok := parseCounterName(name); !ok || gotKind != kind || got != floating {
				t.Errorf("%s: have %q, %s, %v", name, gotKind, got, ok)
			}
		}
	}
	for _, name := range []string{"", "floatip_in_", "floatip_mine_10.0.0.1", "floatip_in_fip0"} {
		if _, _, ok := parseCounterName(name); ok {
			t.Errorf("%q was taken for one of ours", name)
		}
	}
}

func TestStale(t *testing.T) {
	addr := netip.MustParseAddr
	floating, fixed, podIP, host := addr("192.168.100.50"), addr("10.0.2.2"), addr("100.0.0.5"), addr("192.168.100.9")
	inbound := Flow{Source: host, Destination: floating, ReplySource: fixed, ReplyDestination: host, Answered: true}
	outbound := Flow{Source: fixed, Destination: host, ReplySource: host, ReplyDestination: floating, Answered: true}
	own := Flow{Source: fixed, Destination: floating, ReplySource: fixed, ReplyDestination: floating, Answered: true}
	masqueraded := Flow{Source: fixed, Destination: host, ReplySource: host, ReplyDestination: podIP, Answered: true}
	unanswered := masqueraded
	unanswered.Answered = false

	now := examples()["ipv4"]
	none := examples()["none"]
	moved := examples()["ipv4"]
	moved.Bindings = []floatip.Binding{moved.Bindings[0]}
	moved.Bindings[0].Fixed = addr("10.0.2.3")
	had := []netip.Addr{floating}

	for name, tc := range map[string]struct {
		before []netip.Addr
		now    floatip.PodNAT
		flow   Flow
		want   bool
	}{
		"nothing changed, inbound":       {had, now, inbound, false},
		"nothing changed, outbound":      {had, now, outbound, false},
		"nothing changed, own":           {had, now, own, false},
		"pod's own flow stays":           {had, now, masqueraded, false},
		"address gone, inbound":          {had, none, inbound, true},
		"address gone, outbound":         {had, none, outbound, true},
		"address gone, own":              {had, none, own, true},
		"address gone, pod's flow stays": {had, none, masqueraded, false},
		"other fixed address, inbound":   {had, moved, inbound, true},
		"other fixed address, outbound":  {had, moved, outbound, true},
		"new address, unanswered":        {nil, now, unanswered, true},
		"new address, answered":          {nil, now, masqueraded, false},
		"old address, unanswered":        {had, now, unanswered, false},
	} {
		t.Run(name, func(t *testing.T) {
			if have := Stale(tc.before, tc.now)(tc.flow); have != tc.want {
				t.Errorf("want stale %v, have %v", tc.want, have)
			}
		})
	}
}

// A refusal is one line that says what a person can do, whichever call meets it.
func TestRefusedNetlink(t *testing.T) {
	reads := func(m netlink.Message) bool { return m.Header.Flags&netlink.Dump != 0 }
	writes := func(m netlink.Message) bool { return !reads(m) }
	for name, tc := range map[string]struct {
		errno unix.Errno
		when  func(netlink.Message) bool
		want  error
	}{
		"no capability, read":       {unix.EPERM, reads, ErrNotPermitted},
		"no capability, write":      {unix.EPERM, writes, ErrNotPermitted},
		"no nf_tables":              {unix.EINVAL, reads, ErrNotSupported},
		"no nf_tables, old kernel":  {unix.EOPNOTSUPP, reads, ErrNotSupported},
		"no netfilter":              {unix.EPROTONOSUPPORT, reads, ErrNotSupported},
		"no nat chains":             {unix.ENOENT, writes, ErrNotSupported},
		"no nat at this hook":       {unix.EOPNOTSUPP, writes, ErrNotSupported},
		"something else":            {unix.ENOMEM, writes, unix.ENOMEM},
		"something else, read":      {unix.ENOMEM, reads, unix.ENOMEM},
		"somebody holds the object": {unix.EBUSY, writes, unix.EBUSY},
	} {
		t.Run(name, func(t *testing.T) {
			k, err := Open(Config{Dial: refusing(tc.errno, tc.when)})
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			err = k.Apply(Desired(examples()["dual"]))
			if !errors.Is(err, tc.want) || !errors.Is(err, tc.errno) || strings.Contains(err.Error(), "\n") {
				t.Errorf("want one line of %v and %v, have %v", tc.want, tc.errno, err)
			}
		})
	}
}

// refusing is a kernel that holds nothing, and answers errno to each message that it is told to refuse.
func refusing(errno unix.Errno, when func(netlink.Message) bool) nltest.Func {
	return func(requests []netlink.Message) (answers []netlink.Message, err error) {
		if len(requests) == 0 || !when(requests[0]) {
			return nil, io.EOF // an empty list
		}
		if len(requests) == 1 {
			return nil, errno
		}
		for _, r := range requests {
			refused, err := nltest.Error(int(errno), []netlink.Message{r})
			if err != nil {
				return nil, err
			}
			answers = append(answers, refused...)
		}
		return answers, nil
	}
}

// FuzzParseRule: whatever the kernel, or somebody who plays it, sends as a rule is decoded or refused.
func FuzzParseRule(f *testing.F) {
	for _, table := range Desired(examples()["walled"]) {
		for _, c := range table.Chains {
			for _, r := range c.Rules {
				f.Add(message(f, c.Name, r))
			}
		}
	}
	f.Add([]byte{2, 0, 0, 0, 12, 0, 4, 0, 8, 0, 1, 0, 4, 0, 1, 0})
	f.Fuzz(func(_ *testing.T, raw []byte) {
		parsedRule(raw)
	})
}

// message is what the kernel sends for a rule.
func message(t testing.TB, chain string, r Rule) []byte {
	t.Helper()
	list := []netlink.Attribute{}
	for _, e := range r.exprs {
		raw, err := expr.Marshal(unix.NFPROTO_IPV4, e)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, netlink.Attribute{Type: unix.NFTA_LIST_ELEM, Data: raw})
	}
	expressions, err := netlink.MarshalAttributes(list)
	if err != nil {
		t.Fatal(err)
	}
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_CHAIN, Data: []byte(chain + "\x00")}, {Type: unix.NFTA_RULE_EXPRESSIONS, Data: expressions},
	})
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte{unix.NFPROTO_IPV4, 0, 0, 0}, attributes...)
}

func parsedRule(message []byte) (chain, text string, err error) {
	chain, raw, err := splitRule(message)
	if err == nil {
		text, err = Canonical(raw)
	}
	return chain, text, err
}

// No two rules of a plan look the same to a comparison, and a rule that is cut short is refused or another one.
func TestRulesAreTold(t *testing.T) {
	for name, p := range examples() {
		for i, table := range Desired(p) {
			for _, c := range table.Chains {
				seen := map[string]bool{}
				for _, r := range c.Rules {
					want := r.text(families[i])
					chain, parsed, err := parsedRule(message(t, c.Name, r))
					if err != nil || chain != c.Name || parsed != want {
						t.Errorf("%s %s: have %q in %q, %v", name, r.Text, parsed, chain, err)
					}
					if seen[want] {
						t.Errorf("%s: %s has a twin", name, r.Text)
					}
					seen[want] = true
				}
			}
		}
	}
}

// Entries of the firewall and of the port list are elements of sets, which the kernel finds without walking them: no
// number of them makes a packet meet one rule more.
func TestEntriesAreNoRules(t *testing.T) {
	with := func(n int) floatip.PodNAT {
		p := examples()["dual"]
		p.Firewall = &floatip.Firewall{}
		for i := range n {
			for _, network := range []string{"198.51.%d.%d/32 tcp/22", "2001:db8:%x:%x::/64 tcp/22"} {
				entry := admitted(fmt.Sprintf(network, i/256, i%256)).Entries[0]
				p.Firewall.Ingress.Entries = append(p.Firewall.Ingress.Entries, entry)
			}
			port := floatip.Port{Protocol: "TCP", Number: uint16(1 + i)}
			p.Bindings[0].Ports, p.Bindings[1].Ports = append(p.Bindings[0].Ports, port), append(p.Bindings[1].Ports, port)
		}
		slices.SortFunc(p.Firewall.Ingress.Entries, floatip.CompareEntries)
		p.Firewall.Egress = p.Firewall.Ingress
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		return p
	}
	one, many := Desired(with(1)), Desired(with(500))
	for i := range families {
		for j, c := range one[i].Chains {
			for k, r := range c.Rules {
				if other := many[i].Chains[j].Rules; len(other) != len(c.Rules) || other[k].Text != r.Text {
					t.Fatalf("chain %s with 1 entry and with 500: %v and %v", c.Name, c.Rules, other)
				}
			}
		}
		sets := slices.DeleteFunc(many[i].Sets, func(s Set) bool { return len(s.Elements) != 500 })
		if len(sets) != 3 {
			t.Errorf("%d sets of family %d have 500 elements, want ports, ingress and egress", len(sets), families[i])
		}
	}
}

// FuzzText: every description that is accepted has a plan.
func FuzzText(f *testing.F) {
	for _, p := range examples() {
		text, err := p.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := floatip.ParsePodNAT(raw)
		if err != nil {
			return
		}
		if text := Text(p); (text == "") != (len(p.Bindings) == 0 || !p.Delivery.InPod()) {
			t.Errorf("%d bindings make the plan %q", len(p.Bindings), text)
		}
		if d := Desired(p).Diff(Desired(p)); d != "" {
			t.Errorf("the plan differs from itself: %s", d)
		}
	})
}
