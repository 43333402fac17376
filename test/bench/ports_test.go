package bench

import (
	"fmt"
	"strings"
	"testing"

	"floatip.io/floatip/test/lab"
)

// BenchmarkPorts drives a floating address of a VM without a port list, of one with ten ports and of one with ten ranges, as
// many as KubeVirt v1.9 admits (pkg/network/admitter/netiface.go), and KubeVirt's masquerade with these ranges. A range makes
// the pod's set one of intervals, which the kernel searches in another way. As in BenchmarkDatapath an iteration is a round
// over all of them, and the ratios within a round count. Each has a node of its own: new connections of all of them would fill
// the sets of one fast path.
func BenchmarkPorts(b *testing.B) {
	list, ranges := portLists()
	bare := lab.NewBareCloud(b)
	paths := []path{
		listed(b, "no list", nil), listed(b, "ten ports", list), listed(b, "ten ranges", ranges),
		masqueraded(b, bare, masquerade, bare.AddVM(b, 1, ranges...)),
	}
	open, single, wide, limit := paths[0].name, paths[1].name, paths[2].name, paths[3].name
	shown := [][2]string{{single, open}, {wide, open}, {wide, single}, {wide, limit}}
	var table strings.Builder
	for family, name := range []string{"IPv4", "IPv6"} {
		for _, m := range measures {
			b.Run(name+"/"+strings.ReplaceAll(m.name, " ", "-"), func(b *testing.B) {
				rates := drive(b, m, paths, family)
				fmt.Fprintf(&table, "%-25s %14.4g %-6s", name+" "+m.name, middle(rates[open]), m.unit)
				for _, c := range shown {
					low, median, high := quartiles(ratios(rates[c[0]], rates[c[1]]))
					b.ReportMetric(median, strings.ReplaceAll(c[0]+"/"+c[1], " ", "-"))
					fmt.Fprintf(&table, "  %.2f [%.2f, %.2f]", median, low, high)
				}
				table.WriteString("\n")
			})
		}
	}
	fmt.Printf("\nA floating address with a port list; masquerade has the ranges too. Medians of ratios within a round [quartiles].\n"+
		"%-25s %21s %19s %19s %19s %19s\n%s", "", "no list", "ports/no list", "ranges/no list", "ranges/ports", "ranges/masquerade",
		table.String())
}

// listed makes a cloud with one VM that has this port list.
func listed(b *testing.B, name string, ports []lab.Port) path {
	b.Helper()
	c := lab.NewCloud(b)
	vm := c.AddVM(b, 1, ports...)
	plug(b, c, []*lab.VM{vm})
	vm.KubeVirt(b)
	install(b, vm, nil)
	return path{name, c.Host, vm, [2]string{vm.Floating4, vm.Floating6}}
}

// portLists are a list of single ports and one of ranges, of ten entries each, in both of which the servers' ports come last:
// KubeVirt's table has one rule after the other for them.
func portLists() (list, ranges []lab.Port) {
	for n := range 5 {
		list = append(list, lab.Port{Protocol: "tcp", Number: 8000 + 100*n})
	}
	for n := range 8 {
		ranges = append(ranges, lab.Port{Protocol: "tcp", Number: 8000 + 100*n, Last: 8049 + 100*n})
	}
	list = append(list, lab.Port{Protocol: "udp", Number: portSmall}, lab.Port{Protocol: "udp", Number: portEcho},
		lab.Port{Protocol: "tcp", Number: portSink}, lab.Port{Protocol: "tcp", Number: portConnect}, lab.Port{Protocol: "tcp", Number: portEcho})
	return list, append(ranges, lab.Port{Protocol: "udp", Number: portEcho, Last: portSmall},
		lab.Port{Protocol: "tcp", Number: portEcho, Last: portSink})
}
