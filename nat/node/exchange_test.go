package node

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node/announce"
	"floatip.io/floatip/nat/node/flows"
	"floatip.io/floatip/nat/node/nodetest"
	"floatip.io/floatip/nat/node/peer"
)

// book is the exchange of the node "here", from which machine "m" migrates.
type book struct {
	*exchange
	t    *testing.T
	now  time.Time
	view View
	// looks is how often the pod's kernel was asked.
	looks int
}

func newBook(t *testing.T) *book {
	t.Helper()
	e, err := newExchange(Options{Patience: Patience{Remembered: time.Hour}, Log: slog.New(slog.DiscardHandler)}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	return &book{exchange: e, t: t, now: time.Now(), view: View{Peers: map[string]floatip.NodeAgent{
		"there": {Key: "key", Address: "there:1"}, "old": {},
	}}}
}

// to is a departure into a pod, of a guest with one connection more at each look.
func (b *book) to(node, pod string) departure {
	return departure{to: node, pod: pod, Departure: peer.Departure{
		Flows: func() ([]flows.Entry, error) {
			b.looks++
			return make([]flows.Entry, b.looks), nil
		},
		Heard:   func() (time.Time, bool) { return b.now, true },
		Arrived: func() {},
	}}
}

// round is one with the departure of m, none where pod is "", and what the view says of m.
func (b *book) round(node, pod string, here map[string]Migration, machine *Machine) {
	departures := map[string]departure{}
	if pod != "" {
		departures["m"] = b.to(node, pod)
	}
	b.view.Machines = map[string]Machine{}
	if machine != nil {
		b.view.Machines["m"] = *machine
	}
	b.set(departures, nil, here, b.view, "here", b.now)
}

// stands wants m to stand so to a migration into the pod.
func (b *book) stands(when, pod string, want peer.Standing) peer.Departure {
	b.t.Helper()
	d, standing, changed := b.departure("m", pod)
	if standing != want || (changed != nil) != (want == peer.Unheard) || (d.Flows != nil) != (want == peer.Leaving) {
		b.t.Errorf("%s: who asks about pod %q is told %d, want %d", when, pod, standing, want)
	}
	return d
}

var (
	goes  = Migration{SourceNode: "here", TargetNode: "there", TargetPod: "p2"}
	fails = Migration{SourceNode: "here", TargetNode: "there", TargetPod: "p2", Failed: true}
	away  = &Machine{Node: "there"}
	home  = &Machine{Node: "here"}
)

// TestExchangeTells: who asks about a machine is told what it is for, and nothing about another migration.
func TestExchangeTells(t *testing.T) {
	b := newBook(t)
	b.stands("nobody knows the machine", "p2", peer.Refused)
	b.round("", "", map[string]Migration{"m": {}}, home)
	b.stands("it runs here", "p2", peer.Unheard)
	b.stands("it runs here", "", peer.Refused)
	b.round("", "", map[string]Migration{"m": fails}, home)
	b.stands("this migration has failed", "p2", peer.Refused)
	b.stands("another one has failed", "p3", peer.Unheard)
	b.round("there", "p2", nil, home)
	if d := b.stands("it leaves", "p2", peer.Leaving); d.Key != "key" {
		t.Errorf("it is told to who has the key %q", d.Key)
	}
	b.stands("it leaves, asks an agent of an earlier version", "", peer.Leaving)
	b.stands("it leaves for another pod", "p3", peer.Refused)
	b.round("old", "p2", nil, home)
	b.stands("it leaves for a node that has published no key", "p2", peer.Refused)
	b.round("there", "p2", nil, home)
	b.view.Peers = map[string]floatip.NodeAgent{"there": {Key: "another"}, "old": {}}
	b.round("there", "p2", nil, home)
	if d := b.stands("the other agent has started anew", "p2", peer.Leaving); d.Key != "another" {
		t.Errorf("it is told to who has the key %q", d.Key)
	}
	for key, want := range map[string]bool{"another": true, "key": false, "": false} {
		if b.expected(key) != want {
			t.Errorf("an agent with the key %q is expected: %t", key, !want)
		}
	}
}

// TestExchangeRemembers: what the pod of a guest that has left knew last is told for a while, once it was looked at, until the
// guest is back; what a guest left behind later counts.
func TestExchangeRemembers(t *testing.T) {
	b := newBook(t)
	connections := func(d peer.Departure) int {
		entries, err := d.Flows()
		if _, known := d.Heard(); err != nil || !known {
			t.Errorf("%v; when the guest was heard is known: %t", err, known)
		}
		return len(entries)
	}
	for range 2 {
		b.round("there", "p2", nil, &Machine{Node: "here", Migration: goes})
	}
	if b.looks != 0 {
		t.Errorf("the pod's kernel was asked %d times, though nobody has asked and the guest is there", b.looks)
	}
	b.view.Unknown = map[string]bool{"m": true}
	b.round("", "", nil, nil)
	b.stands("its machine cannot be read", "p2", peer.Leaving)
	if b.looks != 0 {
		t.Error("a guest whose machine cannot be read is taken for gone")
	}
	b.view.Unknown = nil
	b.round("", "", nil, away)
	for range 2 {
		if n := connections(b.stands("it has left", "p2", peer.Leaving)); n != 1 || b.looks != 1 {
			t.Errorf("%d connections after %d looks, want those of one look when it left", n, b.looks)
		}
		b.round("", "", nil, away)
	}
	b.round("there", "p4", nil, nil) // there and back, of which nobody has heard
	b.round("", "", nil, away)
	b.stands("it has left once more", "p4", peer.Leaving)
	b.stands("it has left once more", "p2", peer.Refused)
	b.round("", "", nil, home)
	b.stands("it is back", "", peer.Refused)

	b.round("there", "p2", nil, &Machine{Node: "here", Migration: goes})
	b.round("", "", nil, &Machine{Node: "here", Migration: goes}) // the pod has ended, and KubeVirt has not said where the guest is
	b.stands("it must be there", "p2", peer.Leaving)
	b.round("there", "p3", nil, &Machine{Node: "here", Migration: goes})
	b.round("", "", nil, &Machine{Node: "here", Migration: goes})
	b.stands("the migration into another pod was given up for this one", "p3", peer.Refused)
	b.round("there", "p2", nil, home)
	b.round("", "", nil, &Machine{Node: "here", Migration: fails})
	b.stands("it was given up", "p2", peer.Refused)

	broken := b.to("there", "p5")
	broken.Flows = func() ([]flows.Entry, error) { return nil, unix.EPERM }
	b.set(map[string]departure{"m": broken}, nil, nil, b.view, "here", b.now)
	b.round("", "", nil, away)
	if _, err := b.stands("its connections could not be read", "p5", peer.Leaving).Flows(); err == nil {
		t.Error("a guest whose connections could not be read is said to have had none")
	}

	b.now = time.Now().Add(-2 * time.Hour)
	b.round("there", "p2", nil, home)
	b.round("", "", nil, away)
	b.stands("it has left long ago", "p2", peer.Refused)
	b.now = time.Now()
	b.round("", "", nil, away)
	if len(b.gone) != 0 {
		t.Error("what was left behind long ago is kept")
	}
	b.set(nil, map[string]departure{"m": b.to("there", "p2")}, nil, b.view, "here", b.now)
	b.stands("it has left before anybody knew", "p2", peer.Leaving)
}

// TestExchangeWakes: who waits for a word of a migration hears of everything that may bring one, and of nothing else.
func TestExchangeWakes(t *testing.T) {
	b := newBook(t)
	for _, step := range []struct {
		what      string
		pod       string
		migration Migration
		machine   *Machine
		want      bool
	}{
		{"it runs here", "", Migration{}, home, true},
		{"nothing", "", Migration{}, home, false},
		{"its migration", "", goes, home, true},
		{"it leaves", "p2", goes, home, true},
		{"nothing again", "p2", goes, home, false},
		{"it leaves for another pod", "p3", goes, home, true},
		{"it has left", "", goes, away, true},
		{"nothing more", "", goes, away, false},
		{"it is back", "", goes, home, true},
	} {
		waits := b.changed
		b.round("there", step.pod, map[string]Migration{"m": step.migration}, step.machine)
		select {
		case <-waits:
			if !step.want {
				t.Errorf("%s: who waits is woken", step.what)
			}
		default:
			if step.want {
				t.Errorf("%s: nobody is woken", step.what)
			}
		}
	}
}

// TestListensAgain: an address that cannot be listened on is tried again, and other agents are told of it when it can.
func TestListensAgain(t *testing.T) {
	t.Parallel()
	ns := nodetest.NewNamespace(t)
	first := ns.Listen("127.0.0.1:9448")
	var wakes atomic.Int32
	complaint := make(firstLine, 1)
	e, err := newExchange(Options{
		NetNS: ns.File, PeerAddress: "127.0.0.1:9448", Log: slog.New(slog.NewTextHandler(complaint, nil)),
	}, func() { wakes.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(ended)
		e.run(ctx)
	}()
	<-complaint
	if a := e.describe(floatip.NodeAgent{}); a.Key != "" || a.Address != "" || wakes.Load() != 0 {
		t.Errorf("nobody listens, and it is said to be %+v", a)
	}
	first.Close()
	if !nodetest.Until(patience, func() bool { return e.describe(floatip.NodeAgent{}).Key != "" && wakes.Load() == 1 }) {
		t.Fatal("nobody listens")
	}
	cancel()
	<-ended
	if a := e.describe(floatip.NodeAgent{}); a.Key != "" || wakes.Load() != 2 {
		t.Errorf("nobody listens any more, and it is said to be %+v", a)
	}
}

// firstLine takes the first line of a log.
type firstLine chan string

func (f firstLine) Write(p []byte) (int, error) {
	select {
	case f <- string(p):
	default:
	}
	return len(p), nil
}

// TestMissed: a machine that has migrated away, of which nobody knew that it would, is told of as long as its pod is known here.
func TestMissed(t *testing.T) {
	for name, tt := range map[string]struct {
		machine Machine
		want    string // the pod
	}{
		"has migrated away":      {Machine{Node: "there", Migration: goes}, "p2"},
		"is about to":            {Machine{Node: "here", Migration: goes}, ""},
		"came from elsewhere":    {Machine{Node: "there", Migration: Migration{SourceNode: "x", TargetNode: "there", TargetPod: "p2"}}, ""},
		"was started elsewhere":  {Machine{Node: "x", Migration: goes}, ""},
		"has failed to":          {Machine{Node: "there", Migration: fails}, ""},
		"its machine is no more": {Machine{}, ""},
	} {
		tt.machine.UID = "m"
		s := newSession(t.Context(), "", slog.New(slog.DiscardHandler), func() {})
		s.last.grant.Pod.Machine.UID = "m"
		a := &Agent{Options: Options{Name: "here"}, sessions: map[string]*session{"pod": s}}
		missed := a.missed(View{Machines: map[string]Machine{"m": tt.machine}})
		if d := missed["m"]; d.pod != tt.want || len(missed) > 1 || tt.want != "" && d.to != "there" {
			t.Errorf("%s: %+v, want the pod %q", name, missed, tt.want)
		}
	}
}

// TestDeparture: what a pod is told about are the connections of addresses that it is granted. A machine is present where its
// guest is. Who hears that the guest has arrived elsewhere gives its addresses up at once.
func TestDeparture(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	s := newSession(t.Context(), "", log, func() {})
	pod := func(mode Mode, change func(*Grant)) *podPlan {
		return &podPlan{mode: mode, session: s, grant: granted(mode, func(g *Grant) {
			g.NAT = nodetest.Describe(floatip.Owner{}, fifty, fifty6)
			g.Pod.Machine.UID, g.Addresses = "m", []netip.Addr{fifty6}
			if change != nil {
				change(g)
			}
		})}
	}
	s.granted(pod(Active, nil))
	s.granted(pod(Active, func(g *Grant) { g.Provisional, g.MACs = true, []string{"nobody knows"} }))
	if b := s.last.bindings; len(b) != 1 || b[0].Floating != fifty6 || s.last.grant.MACs != nil {
		t.Errorf("what is kept is %+v, want the binding of the one address that is granted", s.last)
	}
	for mode, want := range map[Mode]int{Active: 1, Staged: 0, Left: 0} {
		if here := (plan{pods: []*podPlan{pod(mode, nil)}}).present(View{}); len(here) != want {
			t.Errorf("a machine whose pod is %s is present: %v", mode, here)
		}
	}
	woken := make(chan struct{}, 1)
	a := &Agent{Options: Options{Name: "here", Log: log}, wake: woken}
	a.responders = newResponders(a.Options, func() {})
	a.responders.byNIC["red0"] = &running{Responder: announce.NewResponder(announce.Responder{NIC: "red0", Log: log})}
	a.responders.byNIC["red0"].Set([]netip.Addr{fifty, fifty6}, nil)
	a.departure(s, "there", "p2").Arrived()
	answered, _ := a.responders.byNIC["red0"].Addresses()
	if len(answered) != 1 || answered[0] != fifty || !s.journey.yielded || len(woken) != 1 {
		t.Errorf("the guest is elsewhere, and %v are answered for; yielded: %t; %d wakes", answered, s.journey.yielded, len(woken))
	}
}

// TestWatchesOnce: one keeps what the guest does not read, however many rounds there are.
func TestWatchesOnce(t *testing.T) {
	t.Parallel()
	pod := nodetest.NewWorld(t).AddNode("10").AddPod("a", "100.0.0.1")
	s := newSession(t.Context(), "", slog.New(slog.DiscardHandler), func() {})
	ns, err := duplicate(pod.File)
	if err != nil {
		t.Fatal(err)
	}
	s.netns = ns
	t.Cleanup(s.close)
	g := granted(Active, func(g *Grant) { g.NAT.Interface = "k6t-eth0" })
	s.watch(g)
	first, reason := s.recorder, s.recording
	if s.watch(g); s.recorder != first || s.recording != reason || first == nil && reason == nil {
		t.Errorf("watched by %p (%v) and by %p (%v)", first, reason, s.recorder, s.recording)
	}
}
