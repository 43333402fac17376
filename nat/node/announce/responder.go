package announce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"
)

// Responder answers for addresses on one NIC. Its exported fields are set before Run.
type Responder struct {
	// NIC is the name of the provider interface.
	NIC string
	// NetNS is the namespace of the NIC, nil for that of the process.
	NetNS *os.File
	// Log gets changes of the sockets' state.
	Log *slog.Logger
	// Timing of probes and defences. The zero Timing stands for DefaultTiming.
	Timing Timing
	// Changed is called when an address was announced for the first time since it was set, when it was found Free or
	// Taken, and when a conflict began or ended. nil ignores it.
	Changed func(netip.Addr, Standing)
	// Peer returns the name of the node that has this Ethernet address on a provider network, or false. What a node
	// claims is no conflict: the address moves there. nil knows no other node.
	Peer func(net.HardwareAddr) (string, bool)
	// Moved is called when another node announces an address that is answered for here. Nothing else happens then. nil
	// ignores it.
	Moved func(Move)

	four, six *half
}

// Changed, Peer and Moved are called by the goroutines of Run, without any lock held; they must not block.

// NewResponder makes a Responder with the exported fields of r.
func NewResponder(r Responder) *Responder {
	if r.Timing == (Timing{}) {
		r.Timing = DefaultTiming
	}
	r.four = &half{responder: &r, what: "ARP", open: openARP, untold: news{}}
	r.six = &half{responder: &r, what: "neighbour discovery", open: openNeighbour, untold: news{}}
	return &r
}

// Figures counts what a Responder did.
type Figures struct {
	Answers, Announcements, Reopened uint64
	// Probes were sent before a first use, Claims of others were heard, Defences were sent against them.
	Probes, Claims, Defences uint64
}

// Figures returns the counts since the start, by family: 4 and 6.
func (r *Responder) Figures() map[int]Figures {
	return map[int]Figures{4: r.four.figures(), 6: r.six.figures()}
}

// Set makes answer the addresses that are answered for, and probe those that are only tested and watched. New ones of
// answer are announced at once, without waiting for anything; those that left are answered for no more when Set returns.
// An address in both lists is answered for. One that was found Taken is not answered for before probes found it Free,
// wherever it stands.
func (r *Responder) Set(answer, probe []netip.Addr) {
	wishes := [2]map[netip.Addr]bool{{}, {}}
	for i, list := range [][]netip.Addr{probe, answer} {
		for _, a := range list {
			wishes[slot(a)][a] = i == 1
		}
	}
	r.four.set(wishes[0])
	r.six.set(wishes[1])
}

// Resume is Set for addresses that an earlier agent of this node has announced: they are answered for at once, and
// announced at the next refresh only. The agent may have been away while one of them moved to another node, where an
// announcement would take it from.
func (r *Responder) Resume(answer []netip.Addr) {
	for _, a := range answer {
		r.of(a).resume(a)
	}
}

// Add answers for one more address, which is announced at once.
func (r *Responder) Add(a netip.Addr) { r.of(a).add(a) }

// Drop answers for one address no more, from when it returns.
func (r *Responder) Drop(a netip.Addr) { r.of(a).drop(a) }

// Addresses lists what is answered for, and what is only tested and watched.
func (r *Responder) Addresses() (answered, tested []netip.Addr) {
	r.four.addresses(&answered, &tested)
	r.six.addresses(&answered, &tested)
	return answered, tested
}

func slot(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (r *Responder) of(a netip.Addr) *half {
	if a.Is4() {
		return r.four
	}
	return r.six
}

// Standing returns where the address stands, or false if it is not set.
func (r *Responder) Standing(a netip.Addr) (Standing, bool) { return r.of(a).standing(a) }

// Run works until ctx is done, and returns nil then. A NIC that is missing or broken is waited for. It fails only if the
// namespace cannot be entered at all.
func (r *Responder) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 2)
	for _, h := range []*half{r.four, r.six} {
		go func() {
			err := h.run(ctx)
			cancel()
			ended <- err
		}()
	}
	return errors.Join(<-ended, <-ended)
}

const (
	// lookEvery is how often the NIC is compared with the one that the socket was opened on, while nothing else
	// happens.
	lookEvery = 2 * time.Second

	// reopenFirst and reopenMost bound the pause before a failed socket is opened again.
	reopenFirst = 20 * time.Millisecond
	reopenMost  = time.Second
)

// run opens the socket, again and again.
func (h *half) run(ctx context.Context) error {
	f, err := newFinder(h.responder.NetNS)
	if err != nil {
		return fmt.Errorf("netlink socket for %s: %w", h.responder.NIC, err)
	}
	defer f.handle.Close()
	pause, said := reopenFirst, ""
	for ctx.Err() == nil {
		began := time.Now()
		if err := h.serve(ctx, f); err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			h.responder.Log.Info("no "+h.what+" on provider interface, trying again", "interface", h.responder.NIC, "reason", err)
		}
		h.reopened.Add(1)
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
