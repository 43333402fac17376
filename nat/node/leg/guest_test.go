package leg

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

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

// TestGuestHeard: when a guest was last heard is known after its device has lost its carrier, as it does when qemu ends, if the
// guest was pinned; frames after that count, and time goes on. Of one that was not pinned nothing is known then.
func TestGuestHeard(t *testing.T) {
	for _, pinned := range []bool{true, false} {
		t.Run(fmt.Sprintf("pinned: %t", pinned), func(t *testing.T) {
			pod, guest := nodetest.NewNamespace(t), nodetest.NewNamespace(t)
			pod.Cable("tap0", guest, "eth0")
			pod.Bridge("k6t-eth0", "tap0")
			guest.Up("eth0")
			pod.WaitUp("tap0")
			macs := []string{guest.Get("eth0").Attrs().HardwareAddr.String()}
			heard := func() (time.Time, bool) {
				t.Helper()
				at, known, err := GuestHeard(pod.File, "k6t-eth0", macs)
				if err != nil {
					t.Fatal(err)
				}
				return at, known
			}
			if done, err := PinGuest(pod.File, "k6t-eth0", []string{"02:00:00:00:00:99"}); done || err != nil {
				t.Fatalf("a guest that was never heard is pinned: %t, %v", done, err)
			}
			guest.AnnounceSelf("eth0")
			if _, known := heard(); !known {
				t.Fatal("a guest that speaks is not heard")
			}
			for range 2 {
				if !pinned {
					break
				}
				if done, err := PinGuest(pod.File, "k6t-eth0", macs); !done || err != nil {
					t.Fatalf("pinned: %t, %v", done, err)
				}
			}
			<-time.After(5 * clockTick) // the frame that counts is later than what was done before
			last := time.Now()
			guest.AnnounceSelf("eth0")
			after := time.Now()
			guest.Down("eth0")
			if !nodetest.Until(patience, func() bool { return pod.Get("tap0").Attrs().OperState != netlink.OperUp }) {
				t.Fatal("the device keeps its carrier")
			}
			<-time.After(5 * clockTick)
			at, known := heard()
			switch {
			case !pinned && known:
				t.Errorf("the bridge still knows of %s: the test shows nothing", at)
			case pinned && (!known || at.Before(last.Add(-clockTick)) || at.After(after.Add(clockTick))):
				t.Errorf("have %s, %t, want a time between %s and %s", at, known, last, after)
			}
		})
	}
}
