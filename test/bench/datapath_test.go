package bench

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
)

// BenchmarkDatapath drives each kind of traffic over the paths, one iteration being one round: plain routing,
// masquerade, floating IP … so that whatever else the machine does hits all of them. What counts are the ratios within a
// round; their medians are reported, and printed as a table. `-benchtime 100x` makes 100 rounds, in a little
// more than a minute.
func BenchmarkDatapath(b *testing.B) {
	paths := newPaths(b)
	var table strings.Builder
	for family, name := range []string{"IPv4", "IPv6"} {
		for _, m := range measures {
			b.Run(name+"/"+strings.ReplaceAll(m.name, " ", "-"), func(b *testing.B) {
				rates := drive(b, m, paths, family)
				report(b, rates)
				table.WriteString(line(name+" "+m.name, m.unit, rates))
			})
		}
	}
	fmt.Printf("\nPer second of processor time; medians of ratios within a round [quartiles]. bridge-nf-call-iptables is %s in pods\n"+
		"but for (a) and those with a leg, where it is 0. (b) is on a node with floating addresses, masquerade without. (c) is not on the\n"+
		"fast path. (d) is masquerade where the pod hangs on a bridge of the node, on which br_netfilter works.\n"+
		"%-25s %21s %19s %19s %19s %19s %19s %19s %19s\n%s", bridgeNetfilter(paths[1]), "", plainRouting, "masquerade/plain",
		"floating/masquerade", "floating/(a)", "floating/(d)", "(c)/masquerade", "(b)/masquerade", "1000 entries/none", table.String())
}

// drive makes the rounds and returns the rates of each path.
func drive(b *testing.B, m measure, paths []path, family int) map[string][]float64 {
	b.Helper()
	for _, p := range paths {
		m.serve(b, p.vm.Guest)
	}
	rates := make(map[string][]float64)
	for round := 0; b.Loop(); round++ {
		for i := range paths {
			p := paths[(round+i)%len(paths)]
			rate, err := m.sample(p.client, netip.MustParseAddr(p.address[family]))
			if err != nil {
				b.Fatalf("%s: %v", p.name, err)
			}
			rates[p.name] = append(rates[p.name], rate)
		}
	}
	return rates
}

// compared are the ratios that are shown: a rate, and the rate that it is divided by. Below one is slower.
var compared = [][2]string{
	{masquerade, plainRouting}, {floatingIP, masquerade}, {floatingIP, withoutBrNF}, {floatingIP, bridged},
	{slow, masquerade}, {beside, masquerade}, {walled, floatingIP},
}

func report(b *testing.B, rates map[string][]float64) {
	for _, c := range compared {
		_, middle, _ := quartiles(ratios(rates[c[0]], rates[c[1]]))
		b.ReportMetric(middle, strings.ReplaceAll(c[0]+"/"+c[1], " ", "-"))
	}
}

// line is one row of the table.
func line(name, unit string, rates map[string][]float64) string {
	text := fmt.Sprintf("%-25s %14.4g %-6s", name, middle(rates[plainRouting]), unit)
	for _, c := range compared {
		low, middle, high := quartiles(ratios(rates[c[0]], rates[c[1]]))
		text += fmt.Sprintf("  %.2f [%.2f, %.2f]", middle, low, high)
	}
	return text + "\n"
}

// ratios are of values of the same round.
func ratios(of, by []float64) (out []float64) {
	for i := range of {
		out = append(out, of[i]/by[i])
	}
	return out
}

func middle(values []float64) float64 {
	_, median, _ := quartiles(values)
	return median
}

// quartiles returns the first quartile, the median and the third.
func quartiles(values []float64) (low, middle, high float64) {
	sorted := slices.Sorted(slices.Values(values))
	at := func(share int) float64 { return sorted[(len(sorted)-1)*share/4] }
	return at(1), at(2), at(3)
}

// bridgeNetfilter tells whether bridged packets of a pod pass the rules twice, which costs more than any of them.
func bridgeNetfilter(p path) (value string) {
	value = "absent"
	p.vm.Pod.Do(func() error {
		if raw, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
			value = strings.TrimSpace(string(raw))
		}
		return nil
	})
	return value
}
