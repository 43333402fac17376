package arrival

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/nodetest"
)

const patience = time.Minute

// bridge is the pod that a guest comes into, and the guest's own Ethernet address.
func bridge(t *testing.T) (pod, guest *nodetest.Namespace, mac string) {
	pod, guest = nodetest.NewNamespace(t), nodetest.NewNamespace(t)
	guest.Sysctl("ipv6/conf/default/disable_ipv6=1") // it would speak by itself
	pod.Cable("tap0", guest, "eth0")
	pod.Bridge("k6t-eth0", "tap0")
	guest.Up("eth0")
	pod.WaitUp("tap0")
	return pod, guest, guest.Get("eth0").Attrs().HardwareAddr.String()
}

// TestReadLate: the time of a frame is when it came, also for one who reads it later. The kernel begins to stamp a moment after it
// was told to.
func TestReadLate(t *testing.T) {
	pod, guest, _ := bridge(t)
	conn, err := listen(pod.File, pod.Get("k6t-eth0").Attrs().Index)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var before, after, at time.Time
	punctual := func() bool {
		before = time.Now()
		guest.AnnounceSelf("eth0")
		after = time.Now()
		<-time.After(50 * time.Millisecond) // being late is what is tested
		var n int
		if n, at, err = read(conn, make([]byte, 64)); err != nil || n < 14 {
			t.Fatalf("%d bytes, %v", n, err)
		}
		return !at.Before(before) && !at.After(after.Add(time.Millisecond))
	}
	if !nodetest.Until(patience/10, punctual) {
		t.Errorf("a frame is said to have come at %s, want a time between %s and %s", at, before, after)
	}
}

// TestAwait: the first frame is heard as the guest's. Those of others, and the pod's own, are not.
func TestAwait(t *testing.T) {
	pod, guest, mac := bridge(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	frames := make(chan Frame, 1)
	go func() {
		f, err := Await(ctx, pod.File, "k6t-eth0", []string{mac})
		if err != nil {
			t.Error(err)
		}
		frames <- f
	}()
	if !nodetest.Until(patience, func() bool { return listeners(t, pod) > 0 }) {
		t.Fatal("nobody listens")
	}
	pod.AnnounceSelf("k6t-eth0")
	if err := guest.Link.LinkSetHardwareAddr(guest.Get("eth0"), net.HardwareAddr{2, 0, 0, 0, 0, 9}); err != nil {
		t.Fatal(err)
	}
	guest.AnnounceSelf("eth0")
	own, _ := net.ParseMAC(mac)
	if err := guest.Link.LinkSetHardwareAddr(guest.Get("eth0"), own); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	guest.AnnounceSelf("eth0")
	if f := <-frames; f.Source.String() != mac || f.EtherType != 0x8035 || f.At.Before(before) {
		t.Errorf("have %+v, want a RARP of %s after %s", f, mac, before)
	}
}

// listeners counts the packet sockets of a namespace.
func listeners(t *testing.T, ns *nodetest.Namespace) (count int) {
	ns.Do(func() error {
		raw, err := os.ReadFile("/proc/thread-self/net/packet")
		count = strings.Count(string(raw), "\n") - 1
		return err
	})
	return count
}

// TestPresent: a guest that was there before anybody listened is found without another frame of it, and nobody pretends to
// know when it came.
func TestPresent(t *testing.T) {
	pod, guest, mac := bridge(t)
	guest.AnnounceSelf("eth0")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	f, err := Await(ctx, pod.File, "k6t-eth0", []string{mac})
	if err != nil || f.Source.String() != mac || !f.At.IsZero() {
		t.Errorf("have %+v, %v; want %s, at a time that is not known", f, err, mac)
	}
}

// TestStamped: a time that makes no sense is none.
func TestStamped(t *testing.T) {
	now := time.Unix(10_000, 0)
	for _, tt := range []struct {
		name string
		ago  time.Duration
		want time.Time
	}{
		{"a moment ago", 30 * time.Millisecond, now.Add(-30 * time.Millisecond)},
		{"an hour ago: the clock was set", time.Hour, now},
		{"in the future", -time.Second, now},
	} {
		ts, err := unix.TimeToTimespec(now.Add(-tt.ago))
		if err != nil {
			t.Fatal(err)
		}
		header := unix.Cmsghdr{Level: unix.SOL_SOCKET, Type: unix.SCM_TIMESTAMPNS}
		header.SetLen(unix.CmsgLen(16))
		raw, err := binary.Append(nil, binary.NativeEndian, header)
		if err == nil {
			raw, err = binary.Append(raw, binary.NativeEndian, ts)
		}
		if err != nil {
			t.Fatal(err)
		}
		if have := stamped(raw, now); !have.Equal(tt.want) {
			t.Errorf("%s: %s, want %s", tt.name, have, tt.want)
		}
	}
	if have := stamped(nil, now); have != now {
		t.Errorf("without a stamp: %s, want %s", have, now)
	}
}
