package announce

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/arp"
	"golang.org/x/sys/unix"
)

const (
	// answerWithin is how long after a question an answer counts: what nobody asked for is nobody's business.
	answerWithin = 3 * time.Second
	// askedMost bounds what is remembered of questions. The kernel asks for each host once a second.
	askedMost = 4096
)

// Asker asks for the Ethernet addresses of the IPv4 hosts on one NIC. Its exported fields are set before Run.
type Asker struct {
	NIC   string
	NetNS *os.File // nil for that of the process
	Log   *slog.Logger
	// Found is told what hosts answer, by the goroutine of Run.
	Found func(host netip.Addr, mac net.HardwareAddr)

	mu    sync.Mutex // guards what follows
	wire  *arpWire   // nil while there is none
	asked map[netip.Addr]time.Time
}

// Ask asks for host in the name of sender, which must be answered for on this NIC: hosts remember who has asked. It does
// not wait. Without a socket nothing is asked; the next question may find one.
func (a *Asker) Ask(sender, host netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if len(a.asked) >= askedMost {
		for host, at := range a.asked {
			if now.Sub(at) > answerWithin {
				delete(a.asked, host)
			}
		}
	}
	if a.wire == nil || len(a.asked) >= askedMost {
		return
	}
	a.asked[host] = now
	p, err := arp.NewPacket(arp.OperationRequest, a.wire.own, sender, make(net.HardwareAddr, len(a.wire.own)), host)
	_ = a.wire.sendPacket(p, err, broadcast) // a socket that is broken is found by its reader
}

// answered reports whether somebody asked for the host lately, and forgets the question.
func (a *Asker) answered(host netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, asked := a.asked[host]
	delete(a.asked, host)
	return asked && time.Since(at) <= answerWithin
}

// Run works until ctx is done. A NIC that is missing or changes is waited for.
func (a *Asker) Run(ctx context.Context) {
	pause, said := reopenFirst, ""
	for ctx.Err() == nil {
		began := time.Now()
		if err := a.serve(ctx); ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			a.Log.Info("cannot ask for hosts of the LAN, trying again", "interface", a.NIC, "reason", err)
		}
		if time.Since(began) > reopenMost {
			pause = reopenFirst
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			pause = min(2*pause, reopenMost)
		}
	}
}

// serve lives as long as one socket. Its error is never nil.
func (a *Asker) serve(ctx context.Context) error {
	f, err := newFinder(a.NetNS)
	if err != nil {
		return err
	}
	defer f.handle.Close()
	n, err := f.find(a.NIC)
	if err != nil {
		return err
	}
	frames, err := openFrames(a.NetNS, n, unix.ETH_P_ARP, everything)
	if err != nil {
		return fmt.Errorf("ARP socket: %w", err)
	}
	defer frames.close()
	a.use(&arpWire{frames})
	defer a.use(nil)
	stop := context.AfterFunc(ctx, frames.interrupt)
	defer stop()
	for {
		if err := frames.setDeadline(time.Now().Add(lookEvery)); err != nil {
			return err
		}
		what, ok, err := arpWire{frames}.receive()
		if err != nil {
			return err
		}
		if ok && what.claims.IsValid() && a.answered(what.claims) {
			a.Found(what.claims, what.from)
		}
		if !ok {
			if now, err := f.find(a.NIC); err != nil || now.index != n.index || now.mac != n.mac {
				return fmt.Errorf("the interface changed from %+v to %+v (%v)", n, now, err)
			}
		}
	}
}

func (a *Asker) use(w *arpWire) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wire, a.asked = w, map[netip.Addr]time.Time{}
}
