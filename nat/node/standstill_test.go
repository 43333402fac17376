package node

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"floatip.io/floatip/nat/node/nodetest"
	"floatip.io/floatip/nat/node/peer"
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

// tapGuest is a guest on real tap devices. Unlike one on a veth pair it can stand still.
type tapGuest struct {
	r        *road
	nic, tap *os.File
	left     *os.File // of the machine that it has left
	machine  *machineOf
}

// newTapGuest puts the guest of r on a tap device.
func newTapGuest(r *road) *tapGuest {
	r.t.Helper()
	if err := r.source.Link.LinkDel(r.source.Get("tap0")); err != nil {
		r.t.Fatal(err)
	}
	g := &tapGuest{r: r, nic: r.source.Guest.Tap("nic0"), tap: plugTap(r.source.Pod)}
	r.source.Guest.Enslave("eth0", "nic0")
	g.machine = run(g.nic, g.tap)
	return g
}

func plugTap(pod *nodetest.Pod) *os.File {
	tap := pod.Tap("tap0")
	pod.Enslave("k6t-eth0", "tap0")
	return tap
}

// move lets the guest stand still while meanwhile is done, and go on in the pod that waits for it, where qemu announces it. It
// returns how long it stood still.
func (g *tapGuest) move(meanwhile func()) time.Duration {
	next := plugTap(g.r.target.Pod)
	g.machine.stop()
	began := time.Now()
	meanwhile()
	pause := time.Since(began)
	g.machine = run(g.nic, next)
	g.left, g.tap = g.tap, next
	g.r.target.Guest, g.r.source.Guest = g.r.source.Guest, nil
	g.r.target.Guest.AnnounceSelf("eth0")
	return pause
}

// TestStandStill: a guest on real tap devices stands still for its move. Each packet that is sent to it before, meanwhile and
// afterwards reaches it, and none of them twice.
func TestStandStill(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	guest := newTapGuest(r)

	var l net.PacketConn
	r.source.Guest.Do(func() (err error) {
		l, err = net.ListenPacket("udp4", ":7")
		return err
	})
	t.Cleanup(func() { l.Close() })
	got := &received{times: map[uint32]int{}}
	go got.listen(l)
	host := r.from.world.Host
	conn := sender(t, host, fifty.String()+":7")
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
	for _, late := range []bool{false, true, true} {
		r.begin()
		r.to.await("the connection in the target's pod", func() bool { return r.target.Flows(fifty) == 1 })
		if late { // the host does not hear of the move
			host.Run("ip neigh replace " + fifty.String() + " lladdr " + r.from.node.Get("red0").Attrs().HardwareAddr.String() +
				" dev eth0 nud permanent")
		}
		guest.move(func() { send(40) })
		if late {
			during(func() { send(1) }, r.arrived)
		}
		guest.left.Close()
		r.arrived()
		r.cleared()
		send(20)
		all("after the move")
		r.finish()
		if late {
			host.Run("ip neigh del " + fifty.String() + " dev eth0")
		}
	}
	send(20)
	all("at last")
}

// cleared waits until the old node says that nothing is led to the guest's old pod any more.
func (r *road) cleared() {
	r.t.Helper()
	d, standing, _ := r.from.agent.exchange.departure(r.machine.UID, r.target.entry.Name)
	if standing != peer.Leaving || d.Cleared == nil {
		r.t.Fatalf("the old node knows nothing of the move: %v", standing)
	}
	select {
	case <-d.Cleared:
	case <-time.After(patience):
		r.t.Fatal("the old node does not say that nothing is led to the guest any more")
	}
}

// during does one thing every millisecond until another one is done.
func during(often, once func()) {
	stop := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for ticker := time.NewTicker(time.Millisecond); ; {
			select {
			case <-ticker.C:
				often()
			case <-stop:
				ticker.Stop()
				return
			}
		}
	})
	defer group.Wait()
	defer close(stop)
	once()
}

// TestAnswerToTheOldNode: a host answers what a guest had to say first on its new node before it has heard of that node. Its answer
// acknowledges what the old pod's kernel has never seen, and reaches the guest all the same; it is sent but once here.
func TestAnswerToTheOldNode(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	guest := newTapGuest(r)
	host := r.from.world.Host
	l := host.Listen(nodetest.Beyond + ":82")
	conn, err := r.source.Guest.Dial(nodetest.Beyond+":82", patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	go io.Copy(far, far)
	say := func(what string) {
		t.Helper()
		if _, err := conn.Write([]byte(what)); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(what string) {
		t.Helper()
		got := make([]byte, len(what))
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != what {
			t.Fatalf("the guest hears %q, %v; want %q", got, err, what)
		}
	}
	say("before")
	hear("before")
	r.begin()
	r.to.await("the connection in the target's pod", func() bool { return r.target.Flows(fifty) == 1 })
	r.listened()
	host.Run("ip neigh replace "+fifty.String()+" lladdr "+r.from.node.Get("red0").Attrs().HardwareAddr.String()+
		" dev eth0 nud permanent",
		"nft add table ip once", "nft add chain ip once out { type filter hook output priority 0 ; }",
		"nft add rule ip once out tcp sport 82 tcp flags psh limit rate over 1/day burst 1 packets drop")
	guest.move(func() { say("after") })
	hear("after")
	r.arrived()
}

// TestOpenedMeanwhile: a host opens a connection to a guest that stands still for its move. The only packet of it that the guest can get
// comes to the old node, whose agent has told of no such connection; the connection stands without a second one.
func TestOpenedMeanwhile(t *testing.T) {
	t.Parallel()
	r := newRoad(t)
	guest := newTapGuest(r)
	host := r.from.world.Host
	r.source.Guest.Serve("guest", ":84")
	ask := func(patience time.Duration) error {
		said, err := host.Ask(fifty.String()+":84", patience)
		if err == nil && !strings.HasPrefix(said, "guest sees ") {
			err = fmt.Errorf("the guest says %q", said)
		}
		return err
	}
	if err := ask(patience); err != nil { // so that the pod's kernel knows the guest's Ethernet address
		t.Fatal(err)
	}
	r.begin()
	r.listened()
	host.Run("nft add table ip once", "nft add chain ip once out { type filter hook output priority 0 ; }",
		"nft add rule ip once out tcp dport 84 tcp flags & (syn | ack) == syn limit rate over 1/day burst 1 packets drop")
	before := r.source.Flows(fifty)
	answered := make(chan error, 1)
	guest.move(func() {
		go func() { answered <- ask(patience) }()
		r.from.await("the new connection in the old pod", func() bool { return r.source.Flows(fifty) == before+1 })
	})
	if err := <-answered; err != nil {
		t.Error(err)
	}
	r.arrived()
}

// BenchmarkStall is what a move adds to the guest's own pause, as the other ends of its established TCP connections see it: the
// longest silence of one, over which a message goes to and fro every millisecond, less the time for which the guest stood still.
// An emulated guest is itself silent for longer than that after a migration; this one is a kernel beside the agents', on real
// tap devices, whose NIC stands still for as long as a guest's pause is in most moves on the rig. Medians, nine of ten, and the worst.
func BenchmarkStall(bb *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(Parallel, runtime.GOMAXPROCS(0))))
	r := newRoadBy(bb, "", fifty)
	guest := newTapGuest(r)
	host := r.from.world.Host
	streams := map[string]*stream{
		"in":  startStream(bb, r.source.Guest, host, fifty.String(), 81),
		"out": startStream(bb, host, r.source.Guest, nodetest.Beyond, 82),
	}
	beyond, before := map[string][]float64{}, []float64{}
	for range min(max(bb.N, 5), 50) {
		r.begin()
		r.to.await("the connections in the target's pod", func() bool { return r.target.Flows(fifty) == len(streams) })
		r.listened()
		for _, s := range streams {
			s.silence()
		}
		for _, s := range streams {
			s.proceeds(20)
			before = append(before, milliseconds(s.silence()))
		}
		pause := guest.move(func() { <-time.After(10 * time.Millisecond) })
		for name, s := range streams {
			s.proceeds(20)
			beyond[name] = append(beyond[name], milliseconds(s.silence()-pause))
		}
		r.arrived()
		guest.left.Close()
		r.finish()
	}
	bb.ReportMetric(0, "ns/op") // of no meaning
	bb.ReportMetric(median(before), "ms-silence-before")
	for name, all := range beyond {
		bb.ReportMetric(median(all), "ms-beyond-pause-"+name)
		bb.ReportMetric(all[len(all)*9/10], "ms-beyond-pause-"+name+"-p90")
		bb.ReportMetric(all[len(all)-1], "ms-beyond-pause-"+name+"-max")
	}
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
