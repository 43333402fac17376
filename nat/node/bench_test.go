package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/announce"
	"floatip.io/floatip/nat/node/leg"
	"floatip.io/floatip/nat/node/nodetest"
)

// legs at once: what the kubelet allows on a node is 110 pods by default; large nodes are set to 250.
const legsAtOnce = 250

// BenchmarkManyAtOnce is a node on which 250 pods get their addresses at the same moment: from the objects to the last
// address announced, with the probes of the real timing, which take a second of it.
func BenchmarkManyAtOnce(bb *testing.B) {
	for range bb.N {
		bb.StopTimer()
		b := newBench(bb)
		p := b.view.Pools["lan"]
		p.Networks, p.Interface = []netip.Prefix{netip.MustParsePrefix("192.168.100.0/23")}, "red0"
		b.view.Pools["lan"] = p
		addresses := b.addBare(legsAtOnce)
		b.timing = announce.DefaultTiming
		b.start()
		bb.StartTimer()
		began := time.Now()
		b.publish()
		b.within(time.Minute, "all announced", func(r Report) bool {
			for _, a := range addresses {
				if !r.Statuses[a].Announced.True {
					return false
				}
			}
			return true
		})
		bb.ReportMetric(time.Since(began).Seconds()*1000/legsAtOnce, "ms/leg")
		bb.StopTimer()
		b.stop()
	}
}

// BenchmarkFirstAnswer follows a pod whose address was found free while its sidecar started: from the sidecar's socket to
// the leg, from the leg to the first announcement on the wire and to the guest's first answer on the LAN. Medians; the
// aim is an answer within 10 ms of the leg. The socket comes at any time, and seldom just after a round of the agent.
func BenchmarkFirstAnswer(bb *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(Parallel, runtime.GOMAXPROCS(0))))
	b := newBench(bb)
	links := make(chan netlink.LinkUpdate, 1024)
	w := newKernelWatch(b.node.File, nil, nil)
	err := netlink.LinkSubscribeWithOptions(links, bb.Context().Done(), netlink.LinkSubscribeOptions{Namespace: w.at})
	if err != nil {
		bb.Fatal(err)
	}
	heard := b.world.Host.Frames("eth0")
	b.start()
	var plugs, announced, answered []float64
	for n := 1; n <= min(max(bb.N, 5), 50); n++ { // the LAN of these tests has no more addresses free
		a := netip.AddrFrom4([4]byte{192, 168, 100, byte(20 + n)})
		v := b.addVM(n, a.String())
		socket := socketPath(b.kubelet, v.entry.UID)
		if err := os.Rename(socket, socket+".later"); err != nil {
			bb.Fatal(err)
		}
		b.publish()
		b.awaitReport("free", func(r Report) bool { return r.Statuses[a].ConflictFree.True })
		// What is measured begins with an agent that rests, as on a node: just after a round the next one would wait for the pause
		// between rounds. The rests differ, so that none keeps step with what the agent does now and then.
		time.Sleep(300*time.Millisecond + time.Duration(n*53%200)*time.Millisecond)
		began := time.Now()
		if err := os.Rename(socket+".later", socket); err != nil {
			bb.Fatal(err)
		}
		plugged := b.awaitLink(links, v)
		b.awaitAnnouncement(heard, a)
		said := time.Now()
		b.answers(fmt.Sprintf("vm%d", n), a.String())
		plugs = append(plugs, milliseconds(plugged.Sub(began)))
		announced = append(announced, milliseconds(said.Sub(plugged)))
		answered = append(answered, milliseconds(time.Since(plugged)))
	}
	bb.ReportMetric(0, "ns/op") // of no meaning
	bb.ReportMetric(median(plugs), "ms-to-leg")
	bb.ReportMetric(median(announced), "ms-leg-to-announcement")
	bb.ReportMetric(median(answered), "ms-leg-to-answer")
}

// BenchmarkMove lets a guest go to another node and back: from its first frame there to the announcement on the LAN, and to the
// first packet of the LAN that it answers, by the new way. Medians. What a user of the LAN notices besides is the guest's own
// pause.
func BenchmarkMove(bb *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(Parallel, runtime.GOMAXPROCS(0))))
	r := newRoadBy(bb, "", fifty)
	host := r.from.world.Host
	udp := startEcho(bb, r.source.Guest, host, fifty.String()+":7")
	heard := host.Frames("eth0")
	var announced, answered []float64
	for range min(max(bb.N, 5), 50) {
		r.begin()
		r.target.Receive(r.source.Pod)
		for len(heard) > 0 {
			<-heard
		}
		sent := make(chan time.Time, 1)
		go func() { sent <- r.target.Guest.AnnounceSelf("eth0") }() // beside: coming back takes longer than the agent
		r.to.awaitAnnouncement(heard, fifty)
		now, began := time.Now(), <-sent
		announced = append(announced, milliseconds(now.Sub(began)))
		for !udp.send(2 * time.Millisecond) {
			if time.Since(began) > patience {
				bb.Fatalf("no answer within %s of the guest's arrival", patience)
			}
		}
		answered = append(answered, milliseconds(time.Since(began)))
		r.arrived()
		r.finish()
	}
	bb.ReportMetric(0, "ns/op") // of no meaning
	bb.ReportMetric(median(announced), "ms-frame-to-announcement")
	bb.ReportMetric(announced[len(announced)*9/10], "ms-frame-to-announcement-p90")
	bb.ReportMetric(median(answered), "ms-frame-to-answer")
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// awaitLink waits until the node's end of a pod's leg is there, and returns when it was heard of.
func (b *bench) awaitLink(links <-chan netlink.LinkUpdate, v *vm) time.Time {
	b.t.Helper()
	for timeout := time.After(patience); ; {
		select {
		case u := <-links:
			if u.Attrs().Name == leg.PortName(v.entry.UID) {
				return time.Now()
			}
		case <-timeout:
			b.t.Fatalf("no leg within %s", patience)
		}
	}
}

// awaitAnnouncement waits until the LAN is told of the address: an ARP request for it by the one who has it.
func (b *bench) awaitAnnouncement(heard <-chan []byte, a netip.Addr) {
	b.t.Helper()
	for timeout := time.After(patience); ; {
		select {
		case frame := <-heard:
			const sender = 14 + 14 // behind the Ethernet header and the sender's Ethernet address (RFC 826)
			if len(frame) >= sender+4 && frame[12] == 8 && frame[13] == 6 && netip.AddrFrom4([4]byte(frame[sender:sender+4])) == a {
				return
			}
		case <-timeout:
			b.t.Fatalf("%s is not announced within %s", a, patience)
		}
	}
}

// BenchmarkRound is what one round costs the agent on a node where everything stands, as one follows each change of an
// object: the processor's time, its own and the kernel's on its behalf. Growth is that time against the one of the
// smallest node with more than one address, per address; 1 is linear.
func BenchmarkRound(bb *testing.B) {
	perAddress := 0.0
	for _, count := range []int{1, 1000, 5000} {
		bb.Run(fmt.Sprint(count), func(bb *testing.B) {
			b := newBench(bb)
			b.wide()
			b.addStanding(count)
			a := b.quiet()
			if _, err := a.round(bb.Context(), b.view); err != nil {
				bb.Fatal(err)
			}
			if h := b.holding(); len(h.Active) != count || len(h.Answered["red0"]) != count {
				bb.Fatalf("%d addresses have a way, the kernel answers for %d; want %d", len(h.Active), len(h.Answered["red0"]), count)
			}
			before := processorTime(bb)
			for bb.Loop() {
				if _, err := a.round(bb.Context(), b.view); err != nil {
					bb.Fatal(err)
				}
			}
			spent := (processorTime(bb) - before).Seconds() * 1000 / float64(bb.N)
			bb.ReportMetric(spent, "cpu-ms/round")
			if perAddress == 0 && count > 1 {
				perAddress = spent / float64(count)
			}
			if count > 1 {
				bb.ReportMetric(spent/float64(count)/perAddress, "growth")
			}
		})
	}
}

// processorTime is what the process has used, in its own code and in the kernel's (getrusage(2)).
func processorTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// wide makes the pool as large as these benchmarks need it.
func (b *bench) wide() {
	p := b.view.Pools["lan"]
	p.Networks, p.Interface, p.Unasked = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}, "red0", true
	b.view.Pools["lan"] = p
}

// addStanding adds pods whose legs are plugged. There is nothing behind.
func (b *bench) addStanding(count int) {
	b.t.Helper()
	behind := nodetest.NewNamespace(b.t)
	for n := range count {
		b.addStandingLeg(n, behind)
	}
}

// addStandingLeg adds the n-th of such pods.
func (b *bench) addStandingLeg(n int, behind *nodetest.Namespace) {
	b.t.Helper()
	err := b.node.Link.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: leg.PortName(b.addObjects(n, standing(n))), TxQLen: -1, Flags: net.FlagUp},
		PeerName:  fmt.Sprintf("x%d", n), PeerNamespace: netlink.NsFd(int(behind.File.Fd())),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	behind.Up(fmt.Sprintf("x%d", n)) // or each leg would be waited for
}

// standing is the address of the n-th of such pods.
func standing(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 168, byte(128 + (n+1)/256), byte(n + 1)})
}

// quiet is an agent whose loop does not run. It takes each pod for one that it has reached and found right.
func (b *bench) quiet() *Agent {
	b.t.Helper()
	log := slog.New(slog.DiscardHandler)
	a, err := NewAgent(Options{
		Name: b.name, KubeletDir: b.kubelet, NetNS: b.node.File, Sysctls: leg.DefaultSysctls, Timing: quick, Log: log,
	}, b.cluster, b.cluster)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		a.responders.stop()
		a.kernel.Close()
	})
	b.reached(a)
	return a
}

// reached has a quiet agent believe that it has reached all pods.
func (b *bench) reached(a *Agent) {
	for address, held := range b.view.Addresses {
		uid := strings.TrimPrefix(held.Owner.UID, "vm-")
		if a.sessions[uid] == nil {
			s := newSession(context.Background(), "", a.Log, a.Wake)
			s.state, s.err = installed(address), nil
			a.sessions[uid] = s
		}
	}
}

// addBare adds pods that have a sidecar and no guest.
func (b *bench) addBare(count int) (addresses []netip.Addr) {
	b.t.Helper()
	a := netip.MustParseAddr("192.168.100.11")
	for n := range count {
		if a = a.Next(); a.String() == nodetest.LANHost || a.As4()[3] == 255 {
			a = netip.MustParseAddr("192.168.101.1") // the pool of this benchmark is wider
		}
		pod := &nodetest.Pod{Namespace: nodetest.NewNamespace(b.t)}
		b.serveSidecar(pod, b.addObjects(n, a), a)
		addresses = append(addresses, a)
	}
	return addresses
}

// addObjects adds the objects of a VM and its pod, and returns the pod's UID.
func (b *bench) addObjects(n int, a netip.Addr) string {
	b.t.Helper()
	uid, name := uidOf(1000+n), fmt.Sprintf("vm%d", n)
	owner := floatip.Owner{Namespace: "prod", Name: name, UID: "vm-" + uid}
	text, err := nodetest.Describe(owner, a).Encode()
	if err != nil {
		b.t.Fatal(err)
	}
	b.view.Pods = append(b.view.Pods, Pod{
		UID: uid, Namespace: "prod", Name: name, Machine: Reference{Name: name, UID: "vmi-" + uid}, NAT: text,
	})
	b.view.Addresses[a] = Held{Pool: "lan", Owner: owner}
	b.view.Machines["vmi-"+uid] = Machine{Namespace: "prod", Name: name, UID: "vmi-" + uid, VM: owner.UID, Node: b.name}
	return uid
}
