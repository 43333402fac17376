package announce

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// lookEvery is how often the NIC is compared with the one that the socket was opened on, while nothing else
	// happens.
	lookEvery = 2 * time.Second

	// reopenFirst and reopenMost bound the pause before a failed socket is opened again.
	reopenFirst = 20 * time.Millisecond
	reopenMost  = time.Second
)

// Responder answers for addresses on one NIC. Its exported fields are set before Run.
type Responder struct {
	// NIC is the name of the provider interface.
	NIC string
	// NetNS is the namespace of the NIC, nil for that of the process.
	NetNS *os.File
	// Log gets changes of the socket's state and conflicts.
	Log *slog.Logger
	// Conflict is called for each packet of somebody else who claims one of the addresses, on the goroutine of Run. nil
	// ignores them.
	Conflict func(Conflict)
	// First is called when an address has been announced for the first time since Set, on the goroutine of Run. nil
	// ignores it.
	First func(netip.Addr)

	mu        sync.Mutex // guards addresses and socket
	addresses map[netip.Addr]*held
	socket    *socket // nil while there is none

	answers, announced, reopened atomic.Uint64
}

// held is an address that is ours.
type held struct {
	schedule  schedule
	announced bool
	// known: an earlier agent has announced it, and the next announcement may wait.
	known bool
}

// knownSchedule is that of an address whose announcements are over, until the next refresh.
func knownSchedule(now time.Time) schedule {
	return schedule{since: now.Add(-burst[len(burst)-1]), sent: len(burst)}
}

// Figures counts what a Responder did.
type Figures struct{ Answers, Announcements, Reopened uint64 }

// Figures returns the counts since the start.
func (r *Responder) Figures() Figures {
	return Figures{r.answers.Load(), r.announced.Load(), r.reopened.Load()}
}

// Set makes addresses the ones that are answered for. New ones are announced at once, without waiting for anything;
// those that left are answered for no more when Set returns.
func (r *Responder) Set(addresses []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set(addresses)
}

// set is Set under the lock.
func (r *Responder) set(addresses []netip.Addr) {
	now, next := time.Now(), make(map[netip.Addr]*held, len(addresses))
	changed := len(addresses) != len(r.addresses)
	for _, a := range addresses {
		if next[a] = r.addresses[a]; next[a] == nil {
			next[a] = &held{schedule: schedule{since: now}}
			changed = true
		}
	}
	r.addresses = next
	if changed && r.socket != nil {
		// A socket that cannot be woken is broken, which its reader will find out.
		_ = r.socket.wake()
	}
}

// Resume is Set for addresses that an earlier agent of this node has announced: they are answered for at once, and
// announced at the next refresh only. The agent may have been away while one of them moved to another node, where an
// announcement would take it from.
func (r *Responder) Resume(addresses []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addresses = make(map[netip.Addr]*held, len(addresses))
	for _, a := range addresses {
		r.addresses[a] = &held{schedule: knownSchedule(time.Now()), announced: true, known: true}
	}
}

// Add answers for one more address, which is announced at once.
func (r *Responder) Add(a netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set(append(r.without(a), a))
}

// Drop answers for one address no more, from when it returns.
func (r *Responder) Drop(a netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set(r.without(a))
}

// Addresses lists what is answered for.
func (r *Responder) Addresses() []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.without(netip.Addr{})
}

// without lists the addresses but for a.
func (r *Responder) without(a netip.Addr) []netip.Addr {
	list := make([]netip.Addr, 0, len(r.addresses)+1)
	for other := range r.addresses {
		if other != a {
			list = append(list, other)
		}
	}
	return list
}

// Announced reports whether address was announced since it was set, on a NIC that has a carrier.
func (r *Responder) Announced(address netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.addresses[address]
	return h != nil && h.announced && r.socket != nil && r.socket.nic.running
}

// Run answers and announces until ctx is done, and returns nil then. A NIC that is missing or broken is waited for. It
// fails only if the namespace cannot be entered at all.
func (r *Responder) Run(ctx context.Context) error {
	f, err := newFinder(r.NetNS)
	if err != nil {
		return fmt.Errorf("netlink socket for %s: %w", r.NIC, err)
	}
	defer f.handle.Close()
	pause, said := reopenFirst, ""
	for ctx.Err() == nil {
		began := time.Now()
		if err := r.serve(ctx, f); err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			r.Log.Info("no ARP on provider interface, trying again", "interface", r.NIC, "reason", err)
		}
		r.reopened.Add(1)
		if time.Since(began) > reopenMost {
			pause = reopenFirst
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			pause = min(2*pause, reopenMost)
		}
	}
	return nil
}

// serve lives as long as one socket.
func (r *Responder) serve(ctx context.Context, f finder) error {
	n, err := f.find(r.NIC)
	if err != nil {
		return err
	}
	s, err := listen(r.NetNS, r.NIC, n)
	if err != nil {
		return err
	}
	r.install(s)
	defer func() {
		r.install(nil)
		s.close()
	}()
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	looked := time.Now()
	for {
		if time.Since(looked) >= lookEvery {
			looked = time.Now()
			if now, err := f.find(r.NIC); err != nil || now != n {
				return fmt.Errorf("the interface changed from %+v to %+v (%v)", n, now, err)
			}
		}
		if err := r.announceDue(s, looked.Add(lookEvery)); err != nil {
			return err
		}
		p, err := s.receive()
		if err != nil {
			return err
		}
		if p != nil {
			if err := r.react(s, react(p, s.mac(), r.NIC, r.holds)); err != nil {
				return err
			}
		}
	}
}

// install makes s the socket, and begins all announcements anew: whatever ended the last socket may have made switches
// forget us.
func (r *Responder) install(s *socket) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.socket = s
	now := time.Now()
	for _, h := range r.addresses {
		if h.known && s != nil { // the first socket since Resume
			h.known = false
			continue
		}
		*h = held{schedule: schedule{since: now}}
	}
}

func (r *Responder) holds(a netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addresses[a] != nil
}

// announceDue sends what is due and sets the socket's deadline to what is due next, at latest to latest. Both happen
// under one lock, so that an address set in between is not slept over.
func (r *Responder) announceDue(s *socket, latest time.Time) error {
	first, err := r.announceLocked(s, latest)
	if r.First != nil {
		for _, a := range first {
			r.First(a)
		}
	}
	return err
}

func (r *Responder) announceLocked(s *socket, latest time.Time) (first []netip.Addr, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, next := time.Now(), latest
	for a, h := range r.addresses {
		if !h.schedule.due().After(now) {
			switch err := s.announce(a); {
			case err == nil:
				r.announced.Add(1)
				if !h.announced {
					h.announced = true
					first = append(first, a)
				}
			case a.Is4():
				return first, fmt.Errorf("announce %s: %w", a, err)
			default:
				// A NIC without a link-local address, for instance a new one, is no reason to leave IPv4 unanswered.
				r.Log.Info("could not announce, trying again", "address", a, "interface", r.NIC, "reason", err)
			}
			h.schedule = h.schedule.next(now)
		}
		if due := h.schedule.due(); due.Before(next) {
			next = due
		}
	}
	return first, s.conn.SetReadDeadline(next)
}

func (r *Responder) react(s *socket, what reaction) error {
	if what.conflict != nil && r.Conflict != nil {
		r.Conflict(*what.conflict)
	}
	if what.answer == nil {
		return nil
	}
	// Asked under the lock once more: after Set has returned, nobody is answered for an address that left.
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.addresses[what.answer.SenderIP] == nil {
		return nil
	}
	r.answers.Add(1)
	return s.send(what.answer, what.answer.TargetHardwareAddr)
}
