package firewall

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"floatip.io/floatip"
)

// world makes inputs in a universe so small that every packet in it can be tried: 24 addresses of each family with a
// network of 16 among them, and 12 ports.
type world struct{ *rand.Rand }

func (w world) one(percent int) bool { return w.IntN(100) < percent }

func pick[T any](w world, list ...T) T { return list[w.IntN(len(list))] }

func (w world) cidr() string {
	bits := pick(w, 32, 31, 30, 29, 28, 24, 0)
	if w.one(50) {
		return fmt.Sprintf("10.0.0.%d/%d", w.IntN(16), bits)
	}
	return fmt.Sprintf("2001:db8::%x/%d", w.IntN(16), pick(w, 128, 127, 126, 125, 124, 64, 0))
}

func (w world) peer() (p networkingv1.NetworkPolicyPeer) {
	if w.one(15) {
		p.PodSelector = &metav1.LabelSelector{}
		return p
	}
	p.IPBlock = &networkingv1.IPBlock{CIDR: w.cidr()}
	for w.one(40) {
		p.IPBlock.Except = append(p.IPBlock.Except, w.cidr())
	}
	return p
}

func (w world) peers() (list []networkingv1.NetworkPolicyPeer) {
	for w.one(70) {
		list = append(list, w.peer())
	}
	return list
}

func (w world) ports() (list []networkingv1.NetworkPolicyPort) {
	for w.one(60) {
		var p networkingv1.NetworkPolicyPort
		if w.one(70) {
			p.Protocol = new(pick(w, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP))
		}
		switch {
		case w.one(15):
			p.Port = new(intstr.FromString(pick(w, "http", "dns", "both", "nosuch")))
		case w.one(85):
			p.Port = new(intstr.FromInt32(w.Int32N(11)))
			if w.one(40) {
				p.EndPort = new(w.Int32N(12))
			}
		}
		list = append(list, p)
	}
	return list
}

func (w world) policy() *networkingv1.NetworkPolicy {
	p := new(networkingv1.NetworkPolicy)
	p.Namespace, p.Name = "default", fmt.Sprint("p", w.IntN(1000))
	if w.one(30) {
		p.Spec.PodSelector.MatchLabels = map[string]string{"app": pick(w, "web", "db")}
	}
	if w.one(30) {
		p.Spec.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{pick(w,
			metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{"web", "db"}},
			metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"web"}},
			metav1.LabelSelectorRequirement{Key: "zone", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"web"}},
			metav1.LabelSelectorRequirement{Key: "zone", Operator: metav1.LabelSelectorOpDoesNotExist},
			metav1.LabelSelectorRequirement{Key: "zone", Operator: metav1.LabelSelectorOpExists})}
	}
	for w.one(60) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: w.peers(), Ports: w.ports()})
	}
	for w.one(50) {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: w.peers(), Ports: w.ports()})
	}
	p.Spec.PolicyTypes = pick(w, nil, nil, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"},
		[]networkingv1.PolicyType{"Egress", "Ingress"})
	return p
}

func (w world) input(t testing.TB) Input {
	in := Input{Labels: webLabels, Defaults: Defaults{
		IPv4: pick(w, "", DefaultAllow, DefaultAllow, DefaultDeny),
		IPv6: pick(w, "", DefaultAllow, DefaultAllow, DefaultDeny),
	}}
	for w.one(75) {
		in.Policies = append(in.Policies, w.policy())
	}
	in.NamedPorts = []corev1.ContainerPort{{Name: "http", ContainerPort: 8}, {Name: "both", ContainerPort: 3},
		{Name: "both", Protocol: "UDP", ContainerPort: 4}, {Name: "dns", Protocol: "UDP", ContainerPort: 5}}
	if w.one(30) {
		for w.one(70) {
			port := floatip.Port{Protocol: pick(w, "TCP", "UDP"), Number: uint16(1 + w.IntN(10))}
			if w.one(40) {
				port.Last = port.Number + uint16(w.IntN(4))
			}
			in.Ports = append(in.Ports, port)
		}
	}
	if w.one(50) {
		var err error
		in.Allow, err = AllowOf(map[string]string{floatip.AnnotationAllow: pick(w, "none", "any", "tcp", "icmp, sctp",
			"tcp/3-8 from 10.0.0.4-10.0.0.11 2001:db8::/125", "any from 10.0.0.0/29, udp/5 from ::/0, tcp/2",
			"any from 2001:db8::8/125, icmp from 10.0.0.3, tcp/1-4, tcp/5-9 from 0.0.0.0/0")})
		if err != nil {
			t.Fatal(err)
		}
	}
	return in
}

// packets are all of the universe.
func packets() (list []naivePacket) {
	for i := range 24 {
		for _, base := range []string{"10.0.0.0", "2001:db8::"} {
			raw := netip.MustParseAddr(base).AsSlice()
			raw[len(raw)-1] = byte(i)
			addr, _ := netip.AddrFromSlice(raw)
			for port := range uint16(12) {
				list = append(list, naivePacket{addr, floatip.ProtocolTCP, port}, naivePacket{addr, floatip.ProtocolUDP, port},
					naivePacket{addr, floatip.ProtocolSCTP, port})
			}
			list = append(list, naivePacket{addr, floatip.ProtocolICMP, 0}, naivePacket{addr, 47, 0})
		}
	}
	return list
}

var universe = packets()

// agree fails the test for the first packet that the translation judges otherwise than the text.
func agree(t *testing.T, in Input, packets []naivePacket) floatip.Firewall {
	t.Helper()
	have, _ := Translate(in)
	if err := have.Validate(); err != nil {
		t.Fatalf("%s: %v", describe(in), err)
	}
	for _, p := range packets {
		if want := naiveIngress(in, p); have.Ingress.Admits(p.outside, p.protocol, p.port) != want {
			t.Fatalf("ingress %s/%d from %s: the text says %t\n%s\n%v", p.protocol, p.port, p.outside, want, describe(in), have)
		}
		if want := naiveEgress(in, p); have.Egress.Admits(p.outside, p.protocol, p.port) != want {
			t.Fatalf("egress %s/%d to %s: the text says %t\n%s\n%v", p.protocol, p.port, p.outside, want, describe(in), have)
		}
	}
	return have
}

func describe(in Input) string {
	text, _ := json.Marshal(in)
	return string(text)
}

// For random policies, allow lists and ports, the entries admit exactly the packets that the text admits, are disjoint
// and sorted, and do not depend on the order of anything.
func TestTranslateAgreesWithText(t *testing.T) {
	closed, open, entries := 0, 0, 0
	for seed := range uint64(300) {
		w := world{rand.New(rand.NewPCG(seed, 1))}
		in := w.input(t)
		have := agree(t, in, universe)
		w.Shuffle(len(in.Policies), func(i, j int) { in.Policies[i], in.Policies[j] = in.Policies[j], in.Policies[i] })
		again, _ := Translate(in)
		if diff := cmp.Diff(textsOf(have), textsOf(again)); diff != "" {
			t.Fatalf("seed %d: (-first +shuffled)\n%s", seed, diff)
		}
		for _, a := range []floatip.Admitted{have.Ingress, have.Egress} {
			switch {
			case a.Everything:
				open++
			case len(a.Entries) == 0:
				closed++
			default:
				entries++
			}
		}
	}
	// The universe is worth something only when all three happen often.
	if closed < 50 || open < 50 || entries < 150 {
		t.Errorf("%d directions closed, %d open, %d in between", closed, open, entries)
	}
}

// The normal form depends on the covered packets alone: entries cut into pieces, doubled and shuffled give the same.
func TestNormaliseIsCanonical(t *testing.T) {
	for seed := range uint64(500) {
		w := world{rand.New(rand.NewPCG(seed, 2))}
		have, _ := Translate(w.input(t))
		var pieces []floatip.Entry
		for _, e := range have.Ingress.Entries {
			pieces = append(pieces, cut(w, e)...)
			if w.one(30) {
				pieces = append(pieces, e)
			}
		}
		w.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		again, err := normalise(pieces)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(again, have.Ingress.Entries) {
			t.Fatalf("seed %d: %v became %v", seed, have.Ingress.Entries, again)
		}
	}
}

// cut splits e at the middle of the universe's addresses or of its ports, where it can be split.
func cut(w world, e floatip.Entry) []floatip.Entry {
	low, high := e, e
	if e.Protocol.HasPorts() && e.Ports.First < e.Ports.Last && w.one(50) {
		low.Ports.Last = e.Ports.First + (e.Ports.Last-e.Ports.First)/2
		high.Ports.First = low.Ports.Last + 1
		return []floatip.Entry{high, low}
	}
	for _, middle := range []string{"10.0.0.7", "2001:db8::7"} {
		m := netip.MustParseAddr(middle)
		if e.Addresses.Contains(m) && m.Less(e.Addresses.Last) {
			low.Addresses.Last, high.Addresses.First = m, m.Next()
			return []floatip.Entry{high, low}
		}
	}
	return []floatip.Entry{e}
}

// FuzzTranslate goes through many more worlds than the test.
func FuzzTranslate(f *testing.F) {
	f.Add(uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, a, b uint64) { agree(t, world{rand.New(rand.NewPCG(a, b))}.input(t), universe) })
}

// FuzzPolicy reads policies that no API server would store.
func FuzzPolicy(f *testing.F) {
	for _, test := range policyCases {
		for _, p := range parsePolicies(f, test.policies) {
			raw, err := json.Marshal(p.Spec)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw)
		}
	}
	few := slices.DeleteFunc(packets(), func(p naivePacket) bool { return p.port > 2 })
	f.Fuzz(func(t *testing.T, raw []byte) {
		policy := new(networkingv1.NetworkPolicy)
		if json.Unmarshal(raw, &policy.Spec) != nil || unreadable(policy.Spec.PodSelector) {
			return
		}
		in := Input{Labels: webLabels, NamedPorts: webPorts, Policies: []*networkingv1.NetworkPolicy{policy}}
		agree(t, in, few)
	})
}

// unreadable reports a selector that has something wrong besides what does not match: the naive reader stops at the
// first.
func unreadable(s metav1.LabelSelector) bool {
	_, err := metav1.LabelSelectorAsSelector(&s)
	return err != nil
}
