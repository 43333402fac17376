package migration

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip/test/rig/guest"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// Ports in the guest and on the hosts.
const (
	echoPort     = 7
	passOnPort   = 8
	reflectPort  = 9001
	downloadPort = 9002
)

// serveEcho has the guest echo what comes to echoPort, by TCP and by UDP, and returns when it does: the kernel would refuse
// what came earlier. Its tables have ports in hexadecimal.
func serveEcho(ctx context.Context, g *guest.Channel) error {
	start := fmt.Sprintf("nc -ll -p %d -e cat >/dev/null 2>&1 & agent udp-echo %d >/dev/null 2>&1 &", echoPort, echoPort)
	wait := fmt.Sprintf("for p in tcp udp; do until cat /proc/net/$p /proc/net/${p}6 | grep -q ':%04X '; do sleep 0.1; done; done", echoPort)
	for _, command := range []string{start, wait} {
		if _, err := g.Run(ctx, command); err != nil {
			return err
		}
	}
	return nil
}

// track is one kind of traffic, and how steadily it moves.
type track struct {
	name string

	mu      sync.Mutex // guards what follows
	moved   int        // messages that arrived
	last    time.Time  // when one did
	longest time.Duration
	err     error
}

// move notes that something arrived.
func (t *track) move(messages int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.longest = max(t.longest, now.Sub(t.last))
	t.moved, t.last = t.moved+messages, now
}

func (t *track) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
	}
}

// mark begins a new measurement and returns the count so far.
func (t *track) mark() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.longest, t.last = 0, time.Now()
	return t.moved
}

// silence is the longest one since mark.
func (t *track) silence() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(t.longest, time.Since(t.last))
}

// proceeds returns nil when so many messages more have arrived than at a mark.
func (t *track) proceeds(since, more int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return fmt.Errorf("%s broke after %d messages: %w", t.name, t.moved, t.err)
	}
	if t.moved < since+more {
		return fmt.Errorf("%s stands still: %d messages", t.name, t.moved-since)
	}
	return nil
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// inbound opens a TCP connection to the guest and keeps numbered messages going to and fro.
func inbound(ctx context.Context, from string, to netip.Addr) (*track, error) {
	conn, err := process.Dialer(from)(ctx, "tcp", netip.AddrPortFrom(to, echoPort).String())
	if err != nil {
		return nil, err
	}
	return pingPong(ctx, "TCP, inbound, "+family(to), conn), nil
}

// outbound has the guest open a TCP connection to a host, and keeps numbered messages going to and fro.
func outbound(ctx context.Context, g *guest.Channel, host string, at netip.Addr) (*track, error) {
	conn, err := called(ctx, g, host, at, reflectPort, "nc %s %d -e cat >/dev/null 2>&1 &")
	if err != nil {
		return nil, err
	}
	return pingPong(ctx, "TCP, outbound, "+family(at), conn), nil
}

// betweenGuests has the guest pass on to the other one, by that one's floating address, what a host of the LAN sends to it, and
// keeps numbered messages going that way and back: a connection to the guest, and one from it to the other.
func betweenGuests(ctx context.Context, t *testing.T, s *story.Story, g *guest.Channel) (*track, error) {
	t.Helper()
	o, err := s.Guest(ctx, story.Namespace, other.name)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	if err := serveEcho(ctx, o); err != nil {
		return nil, err
	}
	listens, err := dialUntil(ctx, s.Rig.LAN.ProviderHost.Namespace, netip.AddrPortFrom(other.floating[0], echoPort))
	if err != nil {
		return nil, err
	}
	listens.Close()
	const passOn = "nc -ll -p %d -e nc %s %d >/dev/null 2>&1 &"
	if _, err := g.Run(ctx, fmt.Sprintf(passOn, passOnPort, other.floating[0], echoPort)); err != nil {
		return nil, err
	}
	conn, err := dialUntil(ctx, s.Rig.LAN.ProviderHost.Namespace, netip.AddrPortFrom(testvm.floating[0], passOnPort))
	if err != nil {
		return nil, err
	}
	return pingPong(ctx, "TCP, guest to guest", conn), nil
}

// dialUntil dials until somebody listens.
func dialUntil(ctx context.Context, from string, to netip.AddrPort) (conn net.Conn, err error) {
	err = process.Wait(ctx, nil, "an answer of "+to.String(), func(ctx context.Context) error {
		conn, err = process.Dialer(from)(ctx, "tcp", to.String())
		return err
	})
	return conn, err
}

// called lets the guest call a host by a command that gets its address and port.
func called(ctx context.Context, g *guest.Channel, host string, at netip.Addr, port uint16, command string) (net.Conn, error) {
	var l net.Listener
	err := process.InNetNS(host, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, port).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if _, err := g.Run(ctx, fmt.Sprintf(command, at, port)); err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := l.(*net.TCPListener).SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	return l.Accept()
}

// pingPong sends the next number two milliseconds after the last one came back.
func pingPong(ctx context.Context, name string, conn net.Conn) *track {
	t := &track{name: name, last: time.Now()}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		defer stop()
		var number, back [8]byte
		for n := uint64(1); ; n++ {
			binary.BigEndian.PutUint64(number[:], n)
			_, err := conn.Write(number[:])
			if err == nil {
				_, err = io.ReadFull(conn, back[:])
			}
			if err == nil && back != number {
				err = fmt.Errorf("message %d came back as %x", n, back)
			}
			if err != nil {
				t.fail(err)
				return
			}
			t.move(1)
			time.Sleep(2 * time.Millisecond)
		}
	}()
	return t
}

// download has the guest open a TCP connection and only receive: nothing but what the host sends keeps it alive.
func download(ctx context.Context, g *guest.Channel, host string, at netip.Addr) (*track, error) {
	conn, err := called(ctx, g, host, at, downloadPort, "sleep 1000000 | nc %s %d >/dev/null 2>&1 &")
	if err != nil {
		return nil, err
	}
	t := &track{name: "TCP, download, " + family(at), last: time.Now()}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	go func() {
		defer stop()
		// What counts is what the guest has acknowledged: the rest stands in the socket (tcp(7), SIOCOUTQ).
		block, sent, acknowledged := make([]byte, 1024), 0, 0
		for {
			if _, err := conn.Write(block); err != nil {
				t.fail(err)
				return
			}
			sent += len(block)
			var waiting int
			control := raw.Control(func(fd uintptr) { waiting, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
			if err := errors.Join(control, err); err != nil {
				t.fail(err)
				return
			}
			if sent-waiting > acknowledged {
				t.move((sent - waiting - acknowledged + len(block) - 1) / len(block))
				acknowledged = sent - waiting
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	return t, nil
}

// datagrams sends a thousand UDP packets in a second to the guest, which sends them back. On two cores that do other work
// besides, the emulated guest answers all but a few of them when it stands still nowhere.
type datagrams struct {
	track
	sent int // guarded by mu
}

// perSecond is how many datagrams are sent. A sender that had to wait for the processor makes up for it.
const perSecond = 1000

func startDatagrams(ctx context.Context, from string, to netip.Addr) (*datagrams, error) {
	conn, err := process.Dialer(from)(ctx, "udp", netip.AddrPortFrom(to, echoPort).String())
	if err != nil {
		return nil, err
	}
	d := &datagrams{track: track{name: "UDP, 1 kHz", last: time.Now()}}
	context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		begun, sent := time.Now(), 0
		for tick := time.NewTicker(time.Second / perSecond); ctx.Err() == nil; <-tick.C {
			for due := int(time.Since(begun) * perSecond / time.Second); sent < due; sent++ {
				if _, err := conn.Write([]byte("floatip")); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
					d.fail(err)
					return
				}
				d.mu.Lock()
				d.sent++
				d.mu.Unlock()
			}
		}
	}()
	go func() {
		for buf := make([]byte, 64); ctx.Err() == nil; {
			switch _, err := conn.Read(buf); {
			case err == nil:
				d.move(1)
			case errors.Is(err, unix.ECONNREFUSED): // an answer of the kernel: nobody is to send one
				d.fail(err)
			case errors.Is(err, net.ErrClosed):
				return
			}
		}
	}()
	return d, nil
}

// lost is how many did not come back so far.
func (d *datagrams) lost() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sent - d.moved
}
