package nat

import (
	"fmt"
	"strings"
	"testing"

	"floatip.io/floatip/test/lab"
)

// BenchmarkInstall is the first Apply in a fresh pod, both families, without and with KubeVirt's table. The first nat
// chain of a namespace also switches connection tracking on there, which is the kernel's share.
func BenchmarkInstall(b *testing.B) {
	for _, kubevirt := range []bool{false, true} {
		b.Run(fmt.Sprintf("kubevirt=%v", kubevirt), func(b *testing.B) {
			want := Desired(examples()["dual"])
			for b.Loop() {
				b.StopTimer()
				ns := lab.New(b, "pod")
				if kubevirt {
					for _, c := range kubevirtCommands() {
						ns.Run(b, "", "nft", c)
					}
				}
				b.StartTimer()
				k, err := Open(Config{NetNS: ns.FD()})
				if err != nil {
					b.Fatal(err)
				}
				if err := k.Apply(want); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				k.Close()
				b.StartTimer()
			}
		})
	}
}

// BenchmarkRead is one look for drift, both families.
func BenchmarkRead(b *testing.B) {
	k := openKernel(b, lab.New(b, "pod"))
	if err := k.Apply(Desired(examples()["dual"])); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Read(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkApply rewrites rules that stand, both families, from one description to another and back.
func BenchmarkApply(b *testing.B) {
	k := openKernel(b, lab.New(b, "pod"))
	tables := []Tables{Desired(examples()["dual"]), Desired(examples()["ports"])}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		if err := k.Apply(tables[n%2]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkNFT is the same plan by nft(8), for comparison: one process, one transaction.
func BenchmarkNFT(b *testing.B) {
	ns := lab.New(b, "pod")
	var plan strings.Builder
	for _, family := range []string{"ip", "ip6"} {
		fmt.Fprintf(&plan, "add table %[1]s nat\ndelete table %[1]s nat\n", family)
	}
	plan.WriteString(Text(examples()["dual"]))
	for b.Loop() {
		ns.NFT(b, plan.String())
	}
}
