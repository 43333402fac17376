package nat

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"floatip.io/floatip"
	"floatip.io/floatip/test/lab"
)

// Each counter says exactly what passed, for each address and direction, before and after the rules are written anew:
// packets, and bytes with the headers of the network layer.
func TestCountersAreExact(t *testing.T) {
	w, vm, kernel := newPlugged(t)
	p := podNAT(vm)
	closed := p
	closed.Firewall = &floatip.Firewall{Ingress: floatip.Admitted{Everything: true}}
	const header4, header6, datagram = 20, 40, 8
	want := []Counter{{Floating: netip.MustParseAddr(vm.Floating4)}, {Floating: netip.MustParseAddr(vm.Floating6)}}
	for round, description := range []floatip.PodNAT{p, closed, p} {
		if err := kernel.Apply(Desired(description)); err != nil {
			t.Fatal(err)
		}
		for i, to := range []string{vm.Floating4, vm.Floating6} {
			answer := sendAndRead(t, w.Host, to, 100+round)
			size := uint64([]int{header4, header6}[i] + datagram)
			add(&want[i].In, size+uint64(100+round))
			add(&want[i].Out, size+uint64(answer))
			if description.Firewall != nil { // the guest may open nothing
				outside := []string{lab.Outside4, lab.Outside6}[i]
				if err := vm.Guest.Do(func() error { return sendFrom(vmAddress(vm, i), outside) }); err != nil {
					t.Fatal(err)
				}
				add(&want[i].Refused, size+uint64(len("spoofed")))
			}
		}
	}
	diff := ""
	defer func() {
		if t.Failed() {
			t.Logf("(-want +have):\n%s", diff)
		}
	}()
	eventually(t, "the counters are exact", func() bool {
		have, err := kernel.Counters()
		if err != nil {
			t.Fatal(err)
		}
		diff = cmp.Diff(want, have, byValue)
		return diff == ""
	})
}

var byValue = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func add(f *Figure, bytes uint64) { f.Packets, f.Bytes = f.Packets+1, f.Bytes+bytes }

func vmAddress(vm *lab.VM, family int) string {
	return []string{vm.Shape.Guest4, vm.Shape.Guest6}[family]
}

// sendAndRead sends one datagram of n bytes and returns the length of the answer.
func sendAndRead(t *testing.T, from *lab.Namespace, to string, n int) int {
	t.Helper()
	conn, err := from.Dial("udp", to, 80, 0, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	answer, err := conn.Read(make([]byte, 128))
	if err != nil {
		t.Fatal(err)
	}
	return answer
}
