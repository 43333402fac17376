package leg

import (
	"net/netip"
	"testing"
	"time"

	"floatip.io/floatip/nat/node/nodetest"
)

// A guest is seen from the moment it has its address, without anybody in the pod sending it anything of his own.
func TestGuestAnswers(t *testing.T) {
	pod, guest := nodetest.NewNamespace(t), nodetest.NewNamespace(t)
	fixed, fixed6 := netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd10:0:2::2")
	look := func(fixed netip.Addr) bool {
		t.Helper()
		there, err := GuestAnswers(pod.File, "k6t-eth0", fixed)
		if err != nil {
			t.Fatal(err)
		}
		return there
	}
	if look(fixed) || look(fixed6) {
		t.Fatal("a guest is seen on a bridge that does not exist")
	}
	pod.Cable("tap0", guest, "eth0")
	pod.Bridge("k6t-eth0", "tap0")
	pod.Address("k6t-eth0", "10.0.2.1/24", "fd10:0:2::1/120")
	guest.Up("eth0")
	if look(fixed) || look(fixed6) {
		t.Fatal("a guest is seen before it has an address")
	}
	guest.Address("eth0", "10.0.2.2/24", "fd10:0:2::2/120")
	for _, fixed := range []netip.Addr{fixed, fixed6} {
		// The kernel repeats a question after a second (neigh/default/retrans_time_ms).
		for begun := time.Now(); !look(fixed); <-time.After(10 * time.Millisecond) {
			if time.Since(begun) > patience {
				t.Fatalf("the guest is not seen under %s", fixed)
			}
		}
	}
}
