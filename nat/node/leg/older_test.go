package leg

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip/nat/node/nodetest"
)

// TestUpgrade: what earlier versions put into the kernel is taken over and brought into today's form, and the addresses
// work before and after.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	for name, earlier := range map[string]func(r *rig, port string){
		"legs in a bridge":                    inBridge,
		"active addresses in their own table": inOwnTable,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.addPod("a", "100.0.0.5", floating, floating6)
			r.apply()
			want := r.node.Inventory()
			earlier(r, PortName("a"))
			if cmp.Equal(want, r.node.Inventory()) {
				t.Fatal("the node looks no different with an earlier version's state")
			}
			r.answers()
			h, err := r.kernel.Holding()
			if err != nil || len(h.Networks) != 2 || h.Networks[0].Interface != "red0" {
				t.Errorf("of the earlier version the agent knows %+v, %v; want both networks on red0", h.Networks, err)
			}
			r.apply()
			if diff := cmp.Diff(want, r.node.Inventory()); diff != "" {
				t.Errorf("node (-installed anew +upgraded):\n%s", diff)
			}
			r.answers()
			if again := r.apply(); len(again) != 0 {
				t.Errorf("a second Apply changed: %q", again)
			}
		})
	}
}

// TestSomebodyElsesBridge: a bridge that only has the name of one of ours stays.
func TestSomebodyElsesBridge(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.node.Run("ip link add " + olderBridge + " type bridge")
	r.addPod("a", "100.0.0.5", floating)
	r.apply()
	r.node.Get(olderBridge)
}

func (r *rig) answers() {
	r.t.Helper()
	for _, to := range []string{"192.168.100.50:80", "[2001:db8:100::50]:80"} {
		if said, err := r.world.Host.Ask(to, patience); err != nil {
			r.t.Errorf("%s: %q, %v", to, said, err)
		}
	}
}

// inOwnTable is what versions without a bridge had before networks had one table each.
func inOwnTable(r *rig, port string) {
	for _, f := range families4and6 {
		r.node.Run(
			f.ip+"route add "+f.floating+" dev "+port+" table 7100 proto 119",
			f.ip+"rule add pref 4990 iif red0 to "+f.pool+" lookup 7102 proto 119",
			f.ip+"rule add pref 5000 to "+f.pool+" lookup 7100 proto 119",
			f.ip+"rule del pref 5004", f.ip+"rule add pref 5004 lookup 7199 proto 119",
			f.ip+"route del "+f.floating+" dev "+port+" table 7101",
		)
	}
}

// inBridge is what the first version had.
func inBridge(r *rig, port string) {
	ether := podMAC("a")
	r.node.Run("ip link add "+olderBridge+" address 02:f1:00:00:00:01 type bridge ageing_time 0 stp_state 0",
		"ip link set "+olderBridge+" up", "ip link set "+port+" master "+olderBridge, "nft delete table netdev floatip",
		"nft add table bridge floatip",
		"nft add chain bridge floatip legs { type filter hook prerouting priority -300 ; }")
	r.node.Run(fmt.Sprintf("bridge fdb replace %s dev %s master static", macText(ether), port))
	for _, f := range families4and6 {
		r.node.Run(
			f.ip+"neigh replace "+f.floating+" lladdr "+macText(ether)+" dev "+olderBridge+" nud permanent",
			f.ip+"neigh del "+f.floating+" dev "+port,
			f.ip+"route add "+f.floating+" dev "+olderBridge+" table 7100 proto 119",
			f.ip+"rule add pref 4990 iif red0 to "+f.pool+" lookup 7102 proto 119",
			f.ip+"rule add pref 5000 to "+f.pool+" lookup 7100 proto 119",
			f.ip+"rule add pref 5001 iif "+olderBridge+" from "+f.pool+" lookup 7101 proto 119",
			f.ip+"rule del pref 5004", f.ip+"rule del pref 5003", f.ip+"rule del pref 5002", f.ip+"rule del pref 5002",
			f.ip+"route del "+f.floating+" dev "+port+" table 7101",
		)
	}
}

var families4and6 = []struct{ ip, floating, pool string }{
	{"ip ", floating.String(), nodetest.Pool}, {"ip -6 ", floating6.String(), nodetest.Pool6},
}

func macText(m mac) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// TestHandDown: the reverse-path filter of the pod's other links stays as strict as it was, while the leg has none.
func TestHandDown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.addPod("a", "100.0.0.5", floating)
	p.Sysctl(rpFilterOfAll+"=2", "ipv4/conf/eth0/rp_filter=1", "ipv4/conf/k6t-eth0/rp_filter=0", "ipv4/conf/default/rp_filter=1")
	r.apply()
	for path, want := range map[string]string{
		rpFilterOfAll: "0", "ipv4/conf/eth0/rp_filter": "2", "ipv4/conf/k6t-eth0/rp_filter": "2",
		"ipv4/conf/default/rp_filter": "2", "ipv4/conf/fip0/rp_filter": "0", "ipv4/conf/fip0/accept_local": "1",
	} {
		if have := p.ReadSysctl(path); have != want {
			t.Errorf("%s is %s, want %s", path, have, want)
		}
	}
	if again := r.apply(); len(again) != 0 {
		t.Errorf("a second Apply changed: %q", again)
	}
}

// TestAcross: packets of one provider network, by their source or by their mark, find the addresses that the node has of
// another one, and go to the rest of it by their own way back.
func TestAcross(t *testing.T) {
	blue := Network{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Interface: "blue0", Mark: 0x2000}
	red := redLAN
	red.Mark = 0x1000
	hop := Hop{Address: floating, Pod: netip.MustParseAddr("100.0.0.5"), Link: "cali1"}
	s, err := desired(Config{
		Networks: []Network{red, blue}, Hops: []Hop{hop},
		Legs: []Leg{{Pod: "b", Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.50")}}},
	}, surroundings{guards: new(guardTexts)})
	if err != nil {
		t.Fatal(err)
	}
	back := s.backTables()
	for _, want := range []rule{
		{Priority: ruleAcross, From: red.Prefix, To: blue.Prefix, Table: back[blue.Prefix], Hosts: true},
		{Priority: ruleAcross, From: blue.Prefix, To: red.Prefix, Table: back[red.Prefix], Hosts: true},
		{Priority: ruleAcross, To: blue.Prefix, Mark: red.Mark, Mask: MarkMask, Table: back[blue.Prefix], Hosts: true},
	} {
		if _, there := s.rules[want]; !there {
			t.Errorf("%s is missing", want)
		}
	}
	for r := range s.rules {
		if r.Priority == ruleStaged {
			t.Errorf("%s, and nothing is staged", r)
		}
	}
}
