package bench

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"floatip.io/floatip/test/lab"
)

// BenchmarkAddresses drives a floating address on nodes that hold this one alone, 1000 and 5000 of each family. As in
// BenchmarkDatapath an iteration is a round over all of them, and the ratios within a round count.
func BenchmarkAddresses(b *testing.B) {
	counts := []int{1, 1000, 5000}
	var paths []path
	for _, n := range counts {
		paths = append(paths, crowded(b, n))
	}
	var table strings.Builder
	for family, name := range []string{"IPv4", "IPv6"} {
		for _, m := range measures {
			b.Run(name+"/"+strings.ReplaceAll(m.name, " ", "-"), func(b *testing.B) {
				rates := drive(b, m, paths, family)
				fmt.Fprintf(&table, "%-25s %14.4g %-6s", name+" "+m.name, middle(rates[paths[0].name]), m.unit)
				for _, p := range paths[1:] {
					low, median, high := quartiles(ratios(rates[p.name], rates[paths[0].name]))
					b.ReportMetric(median, p.name)
					fmt.Fprintf(&table, "  %.2f [%.2f, %.2f]", median, low, high)
				}
				table.WriteString("\n")
			})
		}
	}
	fmt.Printf("\nA floating address among others on its node, beside one that is alone; medians of ratios within a round [quartiles].\n"+
		"%-25s %21s %19s %19s\n%s", "", "alone", "1000 addresses", "5000 addresses", table.String())
}

// crowded makes a cloud whose node holds n floating addresses of each family, one of which a VM has. The others have their
// routes, neighbours and proxy entries as the node agent makes them, on one link: a namespace, a leg and its guard for
// each of 5000 would cost more than what is measured, and the guard of a leg is a chain that nobody else meets.
func crowded(b *testing.B, n int) path {
	b.Helper()
	c := lab.NewCloud(b)
	vm := c.AddVM(b, 1)
	plug(b, c, []*lab.VM{vm})
	commands := []string{"link add crowd type veth peer name crowd-end", "link set crowd up", "link set crowd-end up"}
	next4, next6 := netip.MustParseAddr("192.168.64.1"), netip.MustParseAddr("2001:db8:100::1:1")
	for range n - 1 {
		for _, a := range []struct {
			family, bits string
			netip.Addr
		}{{"", "/32", next4}, {"-6 ", "/128", next6}} {
			commands = append(commands, fmt.Sprintf("%sroute add %s%s dev crowd table 7101", a.family, a.Addr, a.bits),
				fmt.Sprintf("%sneigh replace %s lladdr 02:f1:00:00:00:02 dev crowd nud permanent", a.family, a.Addr),
				fmt.Sprintf("%sneigh add proxy %s dev eth1", a.family, a.Addr))
		}
		next4, next6 = next4.Next(), next6.Next()
	}
	c.Node.IP(b, commands...)
	vm.KubeVirt(b)
	install(b, vm, nil)
	return path{fmt.Sprintf("%d-addresses", n), c.Host, vm, [2]string{vm.Floating4, vm.Floating6}}
}
