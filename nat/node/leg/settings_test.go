package leg

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// bent is another value for a setting of the kernel that is on or off.
func bent(value string) string {
	if value == "0" {
		return "1"
	}
	return "0"
}

// TestEverySetting: each setting that the node and the pod rely on is looked at each time, and set again when some other
// program has changed it.
func TestEverySetting(t *testing.T) {
	r := newRig(t)
	pod := r.addPod("a", "100.0.0.5", floating, floating6)
	hop := r.node.AddPod("b", "100.0.0.6")
	r.config.Networks[0].Bare, r.config.Networks[0].Mark = true, 0x1000
	r.config.Hops = []Hop{{Address: floating2, Pod: netip.MustParseAddr(hop.IP), Link: "calib"}}
	r.apply()
	have, _, err := r.kernel.read()
	if err != nil {
		t.Fatal(err)
	}
	node, err := desired(r.config, r.kernel.surroundings(have))
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range []struct {
		name string
		want map[string]string
		at   sysctls
		set  func(...string)
		read func(string) string
	}{
		{"node", node.sysctls, r.kernel.sysctls, r.node.Sysctl, r.node.ReadSysctl},
		{"pod", desiredPod(Pod{UID: "a", Addresses: []netip.Addr{floating, floating6}}).sysctls, sysctls{DefaultSysctls, pod.File},
			pod.Sysctl, pod.ReadSysctl},
	} {
		there, err := place.at.read(sortedKeys(place.want))
		if err != nil {
			t.Fatal(err)
		}
		// What the kernel has no module for is the least of them.
		if len(there) < len(place.want)/2 {
			t.Fatalf("of the settings of the %s the kernel has %v alone", place.name, sortedKeys(there))
		}
		for path := range there {
			place.set(path + "=" + bent(place.want[path]))
		}
		r.apply()
		for path := range there {
			if now := place.read(path); now != place.want[path] {
				t.Errorf("%s of the %s is %s after it was changed, want %s", path, place.name, now, place.want[path])
			}
		}
	}
}

// TestWithdrawalOrder: nobody is told any more before the way goes, and what an address has goes in an order in which no
// packet for it finds half of a way: the answer, the route, the rules and ways back, the neighbour, the leg.
func TestWithdrawalOrder(t *testing.T) {
	r := newRig(t)
	r.addPod("a", "100.0.0.5", floating, floating6)
	r.apply()
	r.config.Legs = nil
	report, err := r.kernel.Apply(r.config)
	if err != nil {
		t.Fatal(err)
	}
	steps := []func(string) bool{
		func(line string) bool { return strings.HasPrefix(line, "proxy ") },
		func(line string) bool {
			return strings.HasPrefix(line, "route "+floating.String()+"/") || strings.HasPrefix(line, "route "+floating6.String()+"/")
		},
		func(line string) bool { return strings.HasPrefix(line, "rule") },
		func(line string) bool { return strings.HasPrefix(line, "route ") },
		func(line string) bool { return strings.HasPrefix(line, "neighbour ") },
		func(line string) bool { return strings.HasPrefix(line, "link ") },
	}
	var order []int
	for _, change := range report.Changes {
		line, removed := strings.CutPrefix(change, "removed ")
		step := slices.IndexFunc(steps, func(is func(string) bool) bool { return is(line) })
		if removed && step >= 0 {
			order = append(order, step)
		}
	}
	if !slices.IsSorted(order) || len(slices.Compact(slices.Clone(order))) != len(steps) {
		t.Errorf("removed in another order than proxies, routes of addresses, rules, other routes, neighbours, link:\n%s",
			strings.Join(report.Changes, "\n"))
	}
}
