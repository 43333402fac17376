package announce

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// wire sends and receives what one family says about neighbours on one NIC.
type wire interface {
	// receive waits for the next packet of another host that says something. It returns false when the deadline passed.
	receive() (heard, bool, error)
	answer(heard) error
	announce(netip.Addr) error
	// defend sends one announcement, and no more than one (RFC 5227 section 2.4).
	defend(netip.Addr) error
	probe(netip.Addr) error
	// listen makes the NIC deliver what concerns the addresses.
	listen([]netip.Addr) error
	setDeadline(time.Time) error
	// interrupt has receive fail. Unlike the others it may be called by any goroutine.
	interrupt()
	close() error
}

// half is the Responder for one family.
type half struct {
	responder *Responder
	what      string
	open      func(ns *os.File, n nic) (wire, error)

	mu      sync.Mutex // guards what follows
	holds   map[netip.Addr]*hold
	changed bool      // holds has other keys than the socket listens for
	stale   bool      // next is not known
	look    bool      // the NIC may have changed
	next    time.Time // when one of holds has something to do
	wire    wire      // nil while there is none
	nic     nic       // of wire
	untold  news      // what hurry has done
	failed  error     // and what it could not

	answers, announced, reopened, probes, claims, defences atomic.Uint64
}

func (h *half) figures() Figures {
	return Figures{
		Answers: h.answers.Load(), Announcements: h.announced.Load(), Reopened: h.reopened.Load(),
		Probes: h.probes.Load(), Claims: h.claims.Load(), Defences: h.defences.Load(),
	}
}

// set makes the keys of wishes the addresses that are looked after. True: it is answered for.
func (h *half) set(wishes map[netip.Addr]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now, next := time.Now(), make(map[netip.Addr]*hold, len(wishes))
	for a, answer := range wishes {
		if next[a] = h.holds[a]; next[a] == nil {
			next[a], h.changed = newHold(answer, h.responder.Timing, now), true
		}
		next[a].wish(answer, now)
	}
	h.changed = h.changed || len(next) != len(h.holds)
	h.holds, h.stale = next, true
	h.look = true // a change of links is one of the reasons to be called
	h.hurry()
}

func (h *half) standing(a netip.Addr) (Standing, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	held := h.holds[a]
	if held == nil {
		return Standing{}, false
	}
	return held.standing(h.wire != nil && h.nic.running), true
}

// resume, add and drop are Responder's.
func (h *half) resume(a netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.put(a, resumed(h.responder.Timing, time.Now()))
}

func (h *half) add(a netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if held := h.holds[a]; held != nil {
		held.wish(true, now)
		h.stale = true
	} else {
		h.put(a, newHold(true, h.responder.Timing, now))
	}
	h.hurry()
}

func (h *half) drop(a netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.holds, a)
	h.changed = true
	h.wake()
}

// put adds a hold, with h.mu held.
func (h *half) put(a netip.Addr, held *hold) {
	if h.holds == nil {
		h.holds = map[netip.Addr]*hold{}
	}
	h.holds[a], h.changed, h.stale = held, true, true
}

// hurry says what is due at once, and has the loop look at the rest, with h.mu held: the loop's goroutine may take a
// millisecond to be woken, and a guest cannot be reached before its address was announced. What came of it the loop tells.
func (h *half) hurry() {
	if h.wire != nil && h.failed == nil {
		h.failed = h.catchUp(h.wire, h.untold)
	}
	h.wake()
}

// wake has the loop look at the holds, with h.mu held. A socket that cannot be woken is broken, which its reader will
// find out.
func (h *half) wake() {
	if h.wire != nil {
		_ = h.wire.setDeadline(time.Unix(1, 0))
	}
}

func (h *half) addresses(answered, tested *[]netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for a, held := range h.holds {
		if held.answers() {
			*answered = append(*answered, a)
		} else {
			*tested = append(*tested, a)
		}
	}
}

// serve lives as long as one socket.
func (h *half) serve(ctx context.Context, f finder) error {
	name := h.responder.NIC
	n, err := f.find(name)
	if err != nil {
		return err
	}
	w, err := h.open(h.responder.NetNS, n)
	if err != nil {
		return err
	}
	h.install(w, n)
	defer func() {
		h.install(nil, nic{})
		w.close()
	}()
	stop := context.AfterFunc(ctx, w.interrupt)
	defer stop()
	looked := time.Now()
	for {
		if h.shallLook() || time.Since(looked) >= lookEvery {
			looked = time.Now()
			if now, err := f.find(name); err != nil || now != n {
				return fmt.Errorf("the interface changed from %+v to %+v (%v)", n, now, err)
			}
		}
		if err := h.act(w, looked.Add(lookEvery)); err != nil {
			return err
		}
		what, ok, err := w.receive()
		if err != nil {
			return err
		}
		if ok {
			if err := h.react(w, what); err != nil {
				return err
			}
		}
	}
}

// shallLook reports whether somebody asked for a look at the NIC since the last one.
func (h *half) shallLook() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	shall := h.look
	h.look = false
	return shall
}

// install makes w the socket, and begins anew what was under way: whatever ended the last socket may have made switches
// forget us.
func (h *half) install(w wire, n nic) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wire, h.nic, h.changed, h.stale, h.failed = w, n, true, true, nil
	if w == nil {
		return
	}
	now := time.Now()
	for _, held := range h.holds {
		held.reopen(now)
	}
}

// news are standings to be told when no lock is held.
type news map[netip.Addr]Standing

func (h *half) tell(all news) {
	if h.responder.Changed == nil {
		return
	}
	for a, s := range all {
		h.responder.Changed(a, s)
	}
}

// act sends what is due and sets the socket's deadline to what is due next, at latest to latest. Both happen under one
// lock, so that an address set in between is not slept over.
func (h *half) act(w wire, latest time.Time) error {
	all := news{}
	defer h.tell(all)
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.Copy(all, h.untold)
	clear(h.untold)
	if h.failed != nil {
		return h.failed
	}
	if err := h.catchUp(w, all); err != nil {
		return err
	}
	return w.setDeadline(earlier(h.next, latest))
}

// catchUp sends what is due, with h.mu held.
func (h *half) catchUp(w wire, all news) error {
	if h.changed {
		addresses := make([]netip.Addr, 0, len(h.holds))
		for a := range h.holds {
			addresses = append(addresses, a)
		}
		if err := w.listen(addresses); err != nil {
			return fmt.Errorf("listen for %d addresses: %w", len(addresses), err)
		}
		h.changed = false
	}
	// On a LAN others speak all the time. Most of it says nothing about our addresses, and is no reason to look at all.
	if h.stale || !h.next.After(time.Now()) {
		h.next, h.stale = farAway(), false
		for a, held := range h.holds {
			if err := h.attend(w, a, held, all); err != nil {
				return err
			}
		}
	}
	return nil
}

// farAway is later than anything that a hold waits for.
func farAway() time.Time { return time.Now().Add(24 * time.Hour) }

// attend does what is due for one address, and brings h.next forward to what is due next, with h.mu held.
func (h *half) attend(w wire, a netip.Addr, held *hold, all news) error {
	for {
		now, due := time.Now(), held.due(h.nic.running)
		if due.IsZero() {
			return nil
		}
		if due.After(now) {
			h.next = earlier(h.next, due)
			return nil
		}
		do, changed := held.step(now)
		first, err := h.send(w, do, a, held, now)
		if err != nil {
			h.stale = true
			return err
		}
		if changed || first {
			all[a] = held.standing(h.nic.running)
		}
	}
}

// send does what a hold wants, with h.mu held.
func (h *half) send(w wire, do action, a netip.Addr, held *hold, now time.Time) (first bool, err error) {
	switch do {
	case sendProbe:
		h.probes.Add(1)
		err = w.probe(a)
	case sendDefence:
		h.defences.Add(1)
		err = w.defend(a)
	case sendAnnouncement:
		if err = w.announce(a); err == nil {
			h.announced.Add(1)
			first = held.sent(now)
		}
	}
	if err != nil {
		return false, fmt.Errorf("speak of %s: %w", a, err)
	}
	return first, nil
}

// react takes in what another host said.
func (h *half) react(w wire, what heard) error {
	peer, isPeer := "", false
	if h.responder.Peer != nil {
		peer, isPeer = h.responder.Peer(what.from)
	}
	all := news{}
	defer h.tell(all)
	if isPeer {
		return h.reactToNode(w, what, peer)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if held := h.holds[what.claims]; held != nil {
		h.claims.Add(1)
		if err := h.hear(w, what.claims, held, what, all, now); err != nil {
			return err
		}
	}
	held := h.holds[what.asks]
	if held == nil {
		return nil
	}
	if what.probe {
		if err := h.hear(w, what.asks, held, what, all, now); err != nil {
			return err
		}
	}
	return h.reply(w, what, held)
}

func (h *half) hear(w wire, a netip.Addr, held *hold, what heard, all news, now time.Time) error {
	do, changed := held.hear(what.from, what.probe, now)
	h.stale = true
	if changed {
		all[a] = held.standing(h.nic.running)
	}
	_, err := h.send(w, do, a, held, now)
	return err
}

// reactToNode answers another node as anybody, and takes nothing that it says for a conflict.
func (h *half) reactToNode(w wire, what heard, node string) error {
	h.mu.Lock()
	held := h.holds[what.claims]
	moved := held != nil && held.answers()
	var err error
	if held := h.holds[what.asks]; held != nil {
		err = h.reply(w, what, held)
	}
	h.mu.Unlock()
	if moved && h.responder.Moved != nil {
		h.responder.Moved(Move{Address: what.claims, MAC: what.from, NIC: h.responder.NIC, Node: node})
	}
	return err
}

// reply answers the one who asked, with h.mu held: after set has returned, nobody is answered for an address that left.
func (h *half) reply(w wire, what heard, held *hold) error {
	if !held.answers() {
		return nil
	}
	h.answers.Add(1)
	return w.answer(what)
}
