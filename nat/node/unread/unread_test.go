package unread

import (
	"encoding/binary"
	"net"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/nodetest"
)

// guest is a tap device as qemu has it, behind the bridge of a pod, and a sender in that pod.
type guest struct {
	t    *testing.T
	ns   *nodetest.Namespace
	tap  *os.File
	conn net.Conn
	sent uint32
}

var guestMAC = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}

func newGuest(t *testing.T) *guest {
	t.Helper()
	g := &guest{t: t, ns: nodetest.NewNamespace(t)}
	g.ns.Bridge("k6t-eth0")
	g.ns.Address("k6t-eth0", "10.0.2.1/24")
	g.tap = g.ns.Tap("tap0")
	g.ns.Enslave("k6t-eth0", "tap0")
	err := g.ns.Link.NeighSet(&netlink.Neigh{
		LinkIndex: g.ns.Get("k6t-eth0").Attrs().Index, IP: net.IPv4(10, 0, 2, 2), HardwareAddr: guestMAC, State: netlink.NUD_PERMANENT,
	})
	if err != nil {
		t.Fatal(err)
	}
	g.ns.Do(func() (err error) {
		g.conn, err = net.Dial("udp4", "10.0.2.2:7")
		return err
	})
	t.Cleanup(func() { g.conn.Close() })
	return g
}

// send sends numbered packets to the guest.
func (g *guest) send(count int) {
	g.t.Helper()
	for range count {
		g.sent++
		if _, err := g.conn.Write(binary.BigEndian.AppendUint32(nil, g.sent)); err != nil {
			g.t.Fatal(err)
		}
	}
}

// read is what qemu does: it takes packets from the device, until it has so many numbered ones. It returns their numbers.
func (g *guest) read(count int) (numbers []uint32) {
	g.t.Helper()
	for buf := make([]byte, 2048); len(numbers) < count; {
		n, err := g.tap.Read(buf)
		if err != nil {
			g.t.Fatal(err)
		}
		if n, ok := number(buf[:n]); ok {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// number is that in a packet to the guest; others, of the kernel's own, have none.
func number(f Frame) (uint32, bool) {
	e := f.Ethernet()
	if len(e) < 14+20+8+4 || !slices.Equal(e[:6], guestMAC) || e[12] != 8 || e[13] != 0 || e[23] != unix.IPPROTO_UDP {
		return 0, false
	}
	return binary.BigEndian.Uint32(e[14+20+8:]), true
}

func numbers(frames []Frame) (list []uint32) {
	for _, f := range frames {
		if n, ok := number(f); ok {
			list = append(list, n)
		}
	}
	return list
}

func sequence(first, last uint32) (list []uint32) {
	for n := first; n <= last; n++ {
		list = append(list, n)
	}
	return list
}

// TestUnread: what qemu has read from the device is not told, all else is, once and in its order; and the guest on the
// other side gets just that.
func TestUnread(t *testing.T) {
	old, now := newGuest(t), newGuest(t)
	old.send(5) // before anybody looks
	r, err := Record(t.Context(), old.ns.File, "k6t-eth0")
	if err != nil {
		t.Fatal(err)
	}
	old.send(100)
	old.read(105)
	if frames, err := r.Unread(); err != nil || len(numbers(frames)) != 0 {
		t.Fatalf("have %v, %v after the guest has read all", numbers(frames), err)
	}
	if err := r.look(); err != nil { // a moment in which nothing is on the way
		t.Fatal(err)
	}
	old.send(50)
	old.read(20)
	frames, err := r.Unread()
	if want := sequence(126, 155); err != nil || !slices.Equal(numbers(frames), want) {
		t.Fatalf("have %v, %v, want %v", numbers(frames), err, want)
	}
	if n, err := Put(now.ns.File, "k6t-eth0", frames); err != nil || n != len(frames) {
		t.Fatalf("put %d packets of %d: %v", n, len(frames), err)
	}
	if have, want := now.read(30), sequence(126, 155); !slices.Equal(have, want) {
		t.Errorf("the guest got %v, want %v", have, want)
	}
	old.send(3)
	if frames, err = r.Unread(); err != nil || !slices.Equal(numbers(frames), sequence(156, 158)) {
		t.Errorf("have %v, %v, want the later three", numbers(frames), err)
	}
}

// TestNoPort: a bridge with another device than the guest's is left alone.
func TestNoPort(t *testing.T) {
	ns := nodetest.NewNamespace(t)
	ns.Bridge("k6t-eth0")
	if _, err := Record(t.Context(), ns.File, "k6t-eth0"); err == nil {
		t.Error("recorded without a port")
	}
	other := nodetest.NewNamespace(t)
	ns.Cable("a", other, "a")
	ns.Cable("b", other, "b")
	ns.Enslave("k6t-eth0", "a", "b")
	if _, err := Record(t.Context(), ns.File, "k6t-eth0"); err == nil {
		t.Error("recorded with two ports")
	}
}

// TestLog: what the log does where it cannot know.
func TestLog(t *testing.T) {
	fill := func(l *log, first, last uint32) {
		for _, n := range sequence(first, last) {
			f := make(Frame, headerLength+14+20+8+4)
			copy(f.Ethernet(), guestMAC)
			f.Ethernet()[12], f.Ethernet()[23] = 8, unix.IPPROTO_UDP
			binary.BigEndian.PutUint32(f.Ethernet()[14+20+8:], n)
			l.add(f)
		}
	}
	for _, tt := range []struct {
		name string
		do   func(l *log) []Frame
		want []uint32
	}{
		{"never compared", func(l *log) []Frame { fill(l, 1, 9); return l.take(count{}) }, nil},
		{"nothing read", func(l *log) []Frame { l.compare(count{}); fill(l, 1, 9); return l.take(count{}) }, sequence(1, 9)},
		{"a queue at the start", func(l *log) []Frame {
			l.compare(count{read: 100}) // with 4 on the way that were not seen
			fill(l, 1, 9)
			l.compare(count{read: 113})
			fill(l, 10, 12)
			return l.take(count{read: 114})
		}, sequence(11, 12)},
		{"never without a queue", func(l *log) []Frame { // 4 are taken as read: none comes twice
			l.compare(count{read: 100})
			fill(l, 1, 9)
			return l.take(count{read: 105})
		}, sequence(6, 9)},
		{"the device dropped some before", func(l *log) []Frame {
			l.compare(count{read: 100})
			fill(l, 1, 9)
			l.compare(count{read: 107, dropped: 2})
			fill(l, 10, 12)
			return l.take(count{read: 108, dropped: 2})
		}, sequence(11, 12)},
		{"the device drops some at last", func(l *log) []Frame {
			l.compare(count{read: 100})
			fill(l, 1, 9)
			return l.take(count{read: 107, dropped: 2})
		}, sequence(8, 9)},
		{"the carrier is gone", func(l *log) []Frame {
			l.compare(count{read: 100})
			fill(l, 1, 9)
			l.compare(count{read: 105, dropped: 1})
			return l.take(count{read: 105, dropped: 2})
		}, sequence(6, 9)},
		{"the socket missed some", func(l *log) []Frame {
			l.compare(count{read: 100})
			fill(l, 1, 9)
			l.missed(3)
			fill(l, 13, 14)
			return l.take(count{read: 104})
		}, sequence(13, 14)},
		{"more than is kept", func(l *log) []Frame {
			l.compare(count{})
			fill(l, 1, MaxFrames+5)
			return l.take(count{})
		}, sequence(6, MaxFrames+5)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if have := numbers(tt.do(new(log))); !slices.Equal(have, tt.want) {
				t.Errorf("have %v, want %v", have, tt.want)
			}
		})
	}
}
