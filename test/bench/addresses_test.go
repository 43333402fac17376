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

// crowdSize is how many addresses of each family share a leg of the crowd: routes, neighbours and proxy entries are one
// for each address, and a namespace for each of 5000 would cost more than what is measured.
const crowdSize = 50

// crowded makes a cloud whose node holds n floating addresses of each family, one of which a VM has.
func crowded(b *testing.B, n int) path {
	b.Helper()
	c := lab.NewCloud(b)
	next4, next6 := netip.MustParseAddr("192.168.64.1"), netip.MustParseAddr("2001:db8:100::1:1")
	var crowds []crowd
	for left := n - 1; left > 0; left -= crowdSize {
		one := crowd{uid: fmt.Sprintf("crowd-%d", left), pod: lab.New(b, "crowd")}
		for range min(left, crowdSize) {
			one.addresses = append(one.addresses, next4, next6)
			next4, next6 = next4.Next(), next6.Next()
		}
		crowds = append(crowds, one)
	}
	vm := c.AddVM(b, 1)
	plug(b, c, crowds, vm)
	vm.KubeVirt(b)
	install(b, vm, nil)
	return path{fmt.Sprintf("%d-addresses", n), c.Host, vm, [2]string{vm.Floating4, vm.Floating6}}
}
