package node

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"floatip.io/floatip/nat/node/nodetest"
)

// machineOf is qemu: it carries frames between the guest's NIC and the tap device of a pod, as long as the guest runs.
type machineOf struct {
	nic, tap *os.File
	running  sync.WaitGroup
}

func run(nic, tap *os.File) *machineOf {
	m := &machineOf{nic: nic, tap: tap}
	for _, way := range [][2]*os.File{{nic, tap}, {tap, nic}} {
		way[0].SetReadDeadline(time.Time{})
		m.running.Go(func() {
			for buf := make([]byte, 64<<10); ; {
				n, err := way[0].Read(buf)
				if err != nil {
					return // it stands still, or the test is over
				}
				_, _ = way[1].Write(buf[:n])
			}
		})
	}
	return m
}

// stop makes the guest stand still. What was read from a device has been written to the other one.
func (m *machineOf) stop() {
	past := time.Unix(1, 0)
	m.nic.SetReadDeadline(past)
	m.tap.SetReadDeadline(past)
	m.running.Wait()
}

// received counts numbered datagrams.
type received struct {
	mu    sync.Mutex // guards times
	times map[uint32]int
}

func (r *received) listen(l net.PacketConn) {
	for buf := make([]byte, 64); ; {
		if _, _, err := l.ReadFrom(buf); err != nil {
			return
		}
		r.mu.Lock()
		r.times[binary.BigEndian.Uint32(buf)]++
		r.mu.Unlock()
	}
}

// missing says which of the first count did not come just once, "" for none.
func (r *received) missing(count uint32) (text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := range count {
		if times := r.times[n]; times != 1 {
			text += fmt.Sprintf(" %d:%d", n, times)
		}
	}
	return text
}

// TestStandStill: a guest on real tap devices stands still for its move. Each packet that is sent to it before, meanwhile and
// afterwards reaches it, and none of them twice.
func TestStandStill(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	guest := r.source.Guest
	if err := r.source.Link.LinkDel(r.source.Get("tap0")); err != nil {
		t.Fatal(err)
	}
	plug := func(pod *nodetest.Pod) *os.File {
		tap := pod.Tap("tap0")
		pod.Enslave("k6t-eth0", "tap0")
		return tap
	}
	nic, tap := guest.Tap("nic0"), plug(r.source.Pod)
	guest.Enslave("eth0", "nic0")
	machine := run(nic, tap)

	var l net.PacketConn
	guest.Do(func() (err error) {
		l, err = net.ListenPacket("udp4", ":7")
		return err
	})
	t.Cleanup(func() { l.Close() })
	got := &received{times: map[uint32]int{}}
	go got.listen(l)
	conn := sender(t, r.from.world.Host, fifty.String()+":7")
	sent := uint32(0)
	send := func(count int) {
		for range count {
			if _, err := conn.Write(binary.BigEndian.AppendUint32(nil, sent)); err != nil {
				t.Fatal(err)
			}
			sent++
		}
	}
	all := func(when string) {
		t.Helper()
		for deadline := time.Now().Add(patience); got.missing(sent) != ""; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: packets, and how often they came:%s", when, got.missing(sent))
			}
		}
	}
	send(20)
	all("before the move")
	for range 2 {
		r.begin()
		r.to.await("the connection in the target's pod", func() bool { return r.target.Flows(fifty) == 1 })
		next := plug(r.target.Pod)
		machine.stop()
		send(40)
		machine = run(nic, next)
		tap.Close()
		r.target.Guest, r.source.Guest, tap = guest, nil, next
		guest.AnnounceSelf("eth0")
		r.arrived()
		send(20)
		all("after the move")
		r.finish()
	}
	send(20)
	all("at last")
}

func sender(t *testing.T, host *nodetest.Namespace, to string) (conn net.Conn) {
	t.Helper()
	host.Do(func() (err error) {
		conn, err = net.Dial("udp4", to)
		return err
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}
