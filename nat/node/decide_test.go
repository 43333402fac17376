package node

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/leg"
)

var (
	compareNet  = []cmp.Option{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	fifty       = netip.MustParseAddr("192.168.100.50")
	fiftyOne    = netip.MustParseAddr("192.168.100.51")
	fifty6      = netip.MustParseAddr("2001:db8:100::50")
	providerNet = netip.MustParsePrefix("192.168.100.0/24")
	red         = leg.NIC{Name: "red0", Up: true, MTU: 1500, Networks: []netip.Prefix{providerNet}, Own: []netip.Addr{netip.MustParseAddr("192.168.100.10")}}
	green       = leg.NIC{Name: "green0", Up: true, MTU: 1500, Networks: []netip.Prefix{netip.MustParsePrefix("201.0.0.0/24")}}
)

const podUID = "00000000-0000-4000-8000-000000000001"

// description returns the annotation for an owner and addresses.
func description(t *testing.T, owner floatip.Owner, addresses ...netip.Addr) string {
	t.Helper()
	nat := floatip.PodNAT{Version: floatip.PodNATVersion, Owner: owner, Interface: floatip.DefaultGuestInterface}
	for _, a := range addresses {
		nat.Bindings = append(nat.Bindings, floatip.Binding{
			Floating: a, Fixed: netip.MustParseAddr("10.0.2.2"), Gateway: netip.MustParseAddr("10.0.2.1"),
			GuestNetwork: netip.MustParsePrefix("10.0.2.0/24"),
		})
	}
	text, err := nat.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// legitimate is a view in which one pod holds one address by right.
func legitimate(t *testing.T) View {
	t.Helper()
	owner := floatip.Owner{Namespace: "prod", Name: "web", UID: "vm-1"}
	return View{
		Pods: []Pod{{
			UID: podUID, Namespace: "prod", Name: "virt-launcher-web", Machine: Reference{Name: "web", UID: "vmi-1"},
			NAT: description(t, owner, fifty),
		}},
		Addresses: map[netip.Addr]Held{fifty: {Pool: "lan", Owner: owner}},
		Machines: map[string]Machine{"vmi-1": {
			Namespace: "prod", Name: "web", UID: "vmi-1", VM: "vm-1", Node: "n1", Pods: []string{podUID},
		}},
		Pools:   map[string]Pool{"lan": {Name: "lan", Sample: []netip.Addr{fifty}}},
		Unknown: map[string]bool{},
	}
}

// TestWhoIsRefused bends one thing of a legitimate view at a time.
func TestWhoIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		bend   func(*View)
		reason string // "" grants
	}{
		{"nothing bent", func(*View) {}, ""},
		{"a pod of another namespace copies the annotation", func(v *View) { v.Pods[0].Namespace = "evil" }, "in namespace evil"},
		{"the annotation names another owner of the namespace", func(v *View) {
			v.Pods[0].NAT = strings.ReplaceAll(v.Pods[0].NAT, `"name":"web"`, `"name":"db"`)
		}, "belongs to the VirtualMachine prod/web (UID vm-1), not to prod/db"},
		{"the annotation names an older machine of the same name", func(v *View) {
			v.Pods[0].NAT = strings.ReplaceAll(v.Pods[0].NAT, "vm-1", "vm-0")
		}, "not to prod/web (UID vm-0)"},
		{"the annotation names somebody else's address", func(v *View) {
			v.Addresses[fifty] = Held{Pool: "lan", Owner: floatip.Owner{Namespace: "bank", Name: "vault", UID: "vm-9"}}
		}, "belongs to the VirtualMachine bank/vault"},
		{"the address is not allocated", func(v *View) { delete(v.Addresses, fifty) }, "not allocated"},
		{"the address was released", func(v *View) {
			h := v.Addresses[fifty]
			h.Released = true
			v.Addresses[fifty] = h
		}, "released"},
		{"no machine controls the pod", func(v *View) { v.Pods[0].Machine = Reference{} }, "no VirtualMachineInstance controls"},
		{"the pod's owner reference is invented", func(v *View) { delete(v.Machines, "vmi-1") }, "does not exist"},
		{"the owner reference mixes one machine's UID with another's name", func(v *View) { v.Pods[0].Machine.Name = "db" },
			"belongs to the VirtualMachineInstance prod/web"},
		{"the machine belongs to another VirtualMachine", func(v *View) {
			m := v.Machines["vmi-1"]
			m.VM = "vm-2"
			v.Machines["vmi-1"] = m
		}, "controlled by UID vm-2"},
		{"no VirtualMachine controls the machine", func(v *View) {
			m := v.Machines["vmi-1"]
			m.VM = ""
			v.Machines["vmi-1"] = m
		}, "no VirtualMachine controls"},
		{"the pod was made by somebody else for a real machine", func(v *View) {
			m := v.Machines["vmi-1"]
			m.Pods = []string{"another"}
			v.Machines["vmi-1"] = m
		}, "KubeVirt made other pods"},
		{"the machine is one of another namespace", func(v *View) {
			m := v.Machines["vmi-1"]
			m.Namespace = "bank"
			v.Machines["vmi-1"] = m
		}, "belongs to the VirtualMachineInstance bank/web"},
		{"the UID is longer than one", func(v *View) { v.Pods[0].UID = strings.Repeat("a", 65) }, "cannot be part of a path"},
		{"the UID is a path", func(v *View) { v.Pods[0].UID = "../../etc" }, "cannot be part of a path"},
		{"the annotation is nonsense", func(v *View) { v.Pods[0].NAT = "{}" }, "version"},
		{"the pool is not for this node", func(v *View) { delete(v.Pools, "lan") }, "not for this node"},
		{"the pool is delivered otherwise", func(v *View) {
			p := v.Pools["lan"]
			p.Delivery = floatip.DeliveryNodeNAT
			v.Pools["lan"] = p
		}, "has the delivery NodeNAT, the pod was made for Leg"},
		{"the pool names a NIC that is not there", func(v *View) {
			p := v.Pools["lan"]
			p.Interface = "blue0"
			v.Pools["lan"] = p
		}, "it has no blue0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := legitimate(t)
			tt.bend(&v)
			d := Decide(v, "n1", []leg.NIC{green, red}, nil)
			var reasons []string
			for _, r := range d.Refusals {
				reasons = append(reasons, r.Reason)
			}
			switch text := strings.Join(reasons, "; "); {
			case tt.reason == "" && (len(d.Grants) != 1 || text != ""):
				t.Errorf("have %d grants and the refusals %q, want one grant", len(d.Grants), text)
			case tt.reason != "" && (len(d.Grants) != 0 || !strings.Contains(text, tt.reason)):
				t.Errorf("have %d grants and the refusals %q, want a refusal with %q", len(d.Grants), text, tt.reason)
			}
		})
	}
}

// TestModes: where the guest is decides what a pod's leg is for.
func TestModes(t *testing.T) {
	for _, tt := range []struct {
		name    string
		pod     Pod
		machine Machine
		mode    Mode
		here    bool
	}{
		{"a machine that was not handed to a node yet", Pod{Name: "a"}, Machine{}, Active, true},
		{"a machine that runs here", Pod{Name: "a"}, Machine{Node: "n1"}, Active, true},
		{"a machine that went elsewhere", Pod{Name: "a"}, Machine{Node: "n2", Migration: Migration{TargetPod: "b"}}, "", false},
		{"a target, before the machine knows it", Pod{Name: "b", MigrationTarget: true}, Machine{Node: "n2"}, Staged, true},
		{"a target that waits", Pod{Name: "b", MigrationTarget: true}, Machine{Node: "n2", Migration: Migration{TargetPod: "b"}}, Staged, true},
		{"the guest arrived, the machine says so later", Pod{Name: "b", MigrationTarget: true, GuestArrived: true},
			Machine{Node: "n2", Migration: Migration{TargetPod: "b"}}, Active, true},
		{"the migration is over", Pod{Name: "b", MigrationTarget: true, GuestArrived: true},
			Machine{Node: "n1", Migration: Migration{TargetPod: "b"}}, Active, true},
		{"the guest came and went on", Pod{Name: "b", MigrationTarget: true, GuestArrived: true},
			Machine{Node: "n3", Migration: Migration{TargetPod: "c"}}, "", false},
		{"it migrates away again, and is still here", Pod{Name: "b", MigrationTarget: true, GuestArrived: true},
			Machine{Node: "n1", Migration: Migration{SourceNode: "n1", TargetNode: "n2", TargetPod: "c"}}, Active, true},
		{"the guest arrived, says the machine before the pod does", Pod{Name: "b", MigrationTarget: true},
			Machine{Node: "n2", Migration: Migration{TargetPod: "b", Arrived: true}}, Active, true},
		{"the migration to it failed", Pod{Name: "b", MigrationTarget: true},
			Machine{Node: "n2", Migration: Migration{TargetPod: "b", Failed: true}}, "", false},
		{"an earlier migration failed, and it is for the next one", Pod{Name: "b", MigrationTarget: true},
			Machine{Node: "n2", Migration: Migration{TargetPod: "a", Failed: true}}, Staged, true},
		{"the guest runs on the target, and the machine is still said to be here", Pod{Name: "a"},
			Machine{Node: "n1", Migration: Migration{SourceNode: "n1", TargetNode: "n2", TargetPod: "b", Arrived: true}}, Left, true},
		{"it ran on the target for a moment, and the migration failed", Pod{Name: "a"},
			Machine{Node: "n1", Migration: Migration{SourceNode: "n1", TargetNode: "n2", TargetPod: "b", Arrived: true, Failed: true}}, Active, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if mode, here := modeOf(tt.pod, tt.machine, "n1"); mode != tt.mode || here != tt.here {
				t.Errorf("have %q, %t; want %q, %t", mode, here, tt.mode, tt.here)
			}
		})
	}
}

// TestUnknownMachineKeepsItsLeg: the API server answers pods, but not for the machine behind one.
func TestUnknownMachineKeepsItsLeg(t *testing.T) {
	v := legitimate(t)
	delete(v.Machines, "vmi-1")
	v.Unknown["vmi-1"] = true
	d := Decide(v, "n1", []leg.NIC{red}, nil)
	if len(d.Grants) != 1 || !d.Grants[0].Provisional {
		t.Errorf("have %+v, want one provisional grant", d.Grants)
	}
}

func TestFinalPodIsGone(t *testing.T) {
	v := legitimate(t)
	v.Pods[0].Final = true
	if d := Decide(v, "n1", []leg.NIC{red}, nil); len(d.Grants) != 0 {
		t.Errorf("have %+v, want no grant: the guest does not run any more", d.Grants)
	}
}

// TestNewerPodWins: two pods of one machine on one node.
func TestNewerPodWins(t *testing.T) {
	v := legitimate(t)
	newer := v.Pods[0]
	newer.UID, newer.Name, newer.Created = "00000000-0000-4000-8000-000000000002", "virt-launcher-web-2", 1
	m := v.Machines["vmi-1"]
	m.Pods = append(m.Pods, newer.UID)
	v.Machines["vmi-1"] = m
	v.Pods = append(v.Pods, newer)
	d := Decide(v, "n1", []leg.NIC{red}, nil)
	if len(d.Grants) != 1 || d.Grants[0].Pod.Name != newer.Name || len(d.Refusals) != 1 {
		t.Errorf("have grants %+v and refusals %+v, want one grant for %s and one refusal", d.Grants, d.Refusals, newer.Name)
	}
}

func TestNetworks(t *testing.T) {
	v := legitimate(t)
	p := v.Pools["lan"]
	p.Gateways = []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.168.100.1")}
	v.Pools["lan"] = p
	d := Decide(v, "n1", []leg.NIC{green, red}, nil)
	want := []leg.Network{{Prefix: providerNet, Gateway: netip.MustParseAddr("192.168.100.1"), Interface: "red0", MTU: 1500}}
	if diff := cmp.Diff(want, d.Networks, compareNet...); diff != "" {
		t.Errorf("networks (-want +got):\n%s", diff)
	}
	if err := d.Carries["lan"]; err != nil {
		t.Errorf("the node does not carry the pool: %v", err)
	}
	if d := Decide(v, "n1", []leg.NIC{green}, nil); !errors.Is(d.Carries["lan"], leg.ErrNoNIC) || len(d.Grants) != 0 {
		t.Errorf("without the NIC: have %v and %d grants, want ErrNoNIC and none", d.Carries["lan"], len(d.Grants))
	}
}

// TestNICThatIsGone: what the node carries already stays on its network, what is new is refused.
func TestNICThatIsGone(t *testing.T) {
	v := legitimate(t)
	inUse := leg.Network{Prefix: providerNet, Interface: "red0"}
	d := Decide(v, "n1", []leg.NIC{green}, []leg.Network{inUse})
	if diff := cmp.Diff([]leg.Network{inUse}, d.Networks, compareNet...); len(d.Grants) != 1 || diff != "" {
		t.Errorf("have %d grants; networks (-want +got):\n%s", len(d.Grants), diff)
	}
	if !errors.Is(d.Carries["lan"], leg.ErrNoNIC) {
		t.Errorf("the node says that it carries the pool: %v", d.Carries["lan"])
	}
	down := red
	down.Up = false
	if d := Decide(v, "n1", []leg.NIC{down}, nil); len(d.Grants) != 1 || !errors.Is(d.Carries["lan"], leg.ErrNoNIC) {
		t.Errorf("with a NIC that is down: have %d grants and %v, want one and ErrNoNIC", len(d.Grants), d.Carries["lan"])
	}
}

// TestOwn: the node's addresses are known before any pool is, and are no more than anybody believes.
func TestOwn(t *testing.T) {
	lan, other := red, green
	lan.Own = []netip.Addr{netip.MustParseAddr("192.168.100.10"), netip.MustParseAddr("192.168.100.9")}
	other.Own = []netip.Addr{netip.MustParseAddr("10.0.0.10"), lan.Own[0]}
	all := []netip.Addr{other.Own[0], lan.Own[1], lan.Own[0]}
	if got := Decide(View{}, "n1", []leg.NIC{other, lan}, nil).Own; !slices.Equal(got, all) {
		t.Errorf("without a pool the node has %v, want %v", got, all)
	}
	d := Decide(legitimate(t), "n1", []leg.NIC{other, lan}, nil)
	if !slices.Equal(d.Own, all) || !slices.Equal(d.MACs, []string{lan.MAC}) {
		t.Errorf("with a pool the node has %v and %v, want %v and the pool's NIC alone", d.Own, d.MACs, all)
	}
	for a := netip.MustParseAddr("10.9.0.1"); len(other.Own) < 1000; a = a.Next() {
		other.Own = append(other.Own, a)
	}
	own := Decide(legitimate(t), "n1", []leg.NIC{other, lan}, nil).Own
	if len(own) != floatip.MaxProviderAddresses || !slices.Contains(own, lan.Own[0]) || !slices.Contains(own, lan.Own[1]) ||
		!slices.IsSortedFunc(own, netip.Addr.Compare) {
		t.Errorf("of very many the node has %d, %v; want %d, sorted, and those on the pool's network", len(own), own, floatip.MaxProviderAddresses)
	}
}

// TestWhoIsNotAsked: which addresses come into use without the LAN being asked. A migration asks nothing, but where no node could
// vouch for the address so far, the new one does not take the old one's word.
func TestWhoIsNotAsked(t *testing.T) {
	for _, tt := range []struct {
		name             string
		target, unproven bool
		unasked, taken   bool
	}{
		{"the first pod of a VM", false, false, false, false},
		{"a pod that a guest migrates into", true, false, false, true},
		{"one whose address nobody could vouch for", true, true, false, false},
		{"an address of a pool that does not want to know", false, true, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := legitimate(t)
			v.Pods[0].MigrationTarget = tt.target
			held, pool := v.Addresses[fifty], v.Pools["lan"]
			held.Unproven, pool.Unasked = tt.unproven, tt.unasked
			v.Addresses[fifty], v.Pools["lan"] = held, pool
			d := Decide(v, "n1", []leg.NIC{red}, nil)
			if len(d.Grants) != 1 {
				t.Fatalf("%d grants, %+v", len(d.Grants), d.Refusals)
			}
			if have := slices.Contains(d.Grants[0].InUse, fifty); have != tt.taken {
				t.Errorf("taken without asking: %t, want %t", have, tt.taken)
			}
		})
	}
}
