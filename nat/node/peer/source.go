package peer

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"floatip.io/floatip/nat/node/flows"
	"floatip.io/floatip/nat/node/netns"
)

// Departure is a guest that is about to leave the node.
type Departure struct {
	// Key is that of the agent of the node which the guest goes to.
	Key string
	// Flows reads the tracked connections of the guest.
	Flows func() ([]flows.Entry, error)
	// Heard is when the guest was last heard here, false where nobody knows.
	Heard func() (time.Time, bool)
	// Arrived is called when the target says that the guest is there.
	Arrived func()
	// Unread returns packets that the guest has not read, each once. nil: nobody knows.
	Unread func() [][]byte
	// Cleared is closed when packets for the guest are not led to it here any more. nil: nobody says.
	Cleared <-chan struct{}
}

// Until the LAN and this node know of an arrival, packets for the guest still come to where it was. They are looked for so
// often, and for so long at most; the node needs some milliseconds, and more where it has much to do.
const (
	lateEvery = time.Millisecond
	lateMost  = time.Second
)

// Standing is what a source knows of a migration that it is asked about.
type Standing int

const (
	// Refused: the machine does not migrate so, or not any more.
	Refused Standing = iota
	// Unheard: the machine runs here, and nobody has said yet that it migrates so. The node of the new pod often hears of a
	// migration first.
	Unheard
	// Leaving: it does migrate so, or has done so a short time ago.
	Leaving
)

// Source serves the targets of migrations. Its exported fields are set before Serve.
type Source struct {
	Identity *Identity
	Log      *slog.Logger
	// Departure returns that of the machine with the UID into the pod of that name, "" for any pod, as it stands now. With
	// Unheard comes a channel that is closed when that may be different.
	Departure func(machine, pod string) (Departure, Standing, <-chan struct{})
	// Expected reports whether an agent of the cluster has the key.
	Expected func(key string) bool
	// Wait bounds each read and write. 0 stands for DefaultWait.
	Wait time.Duration
}

// Listen returns the listener for Serve, in the network namespace ns, or that of the process where ns is nil.
func Listen(ns *os.File, address string) (l net.Listener, err error) {
	err = netns.Do(ns, func() error {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen for other agents: %w", err)
	}
	return l, nil
}

// Serve answers on l until ctx is done, and closes it. It returns nil then.
func (s *Source) Serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, maxConnections)
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // too many open files, or a connection that ended before it began
			select {
			case <-ctx.Done():
			case <-time.After(Interval):
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		running.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			defer closeWith(ctx, conn)()
			if err := s.serve(conn); err != nil && ctx.Err() == nil {
				s.Log.Info("the exchange with another agent ended", "remote", conn.RemoteAddr().String(), "reason", err)
			}
		})
	}
}

// serve is one exchange.
func (s *Source) serve(plain net.Conn) error {
	wait := cmp.Or(s.Wait, DefaultWait)
	if err := plain.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	conn := tls.Server(plain, s.Identity.config(s.Expected))
	if err := conn.Handshake(); err != nil {
		return err
	}
	key := fingerprint(conn.ConnectionState().PeerCertificates[0])
	l := newLine(conn, wait)
	var a ask
	if err := l.receive(&a); err != nil {
		return err
	}
	if a.Version != Version {
		return l.tell(update{Refused: fmt.Sprintf("version %d of the exchange, want %d", a.Version, Version)})
	}
	arrived := make(chan arrival, 1)
	go func() {
		var a ask
		err := l.receiveAnyTime(&a)
		if err == nil && !a.Arrived {
			err = errors.New("the other agent said something else than that the guest has arrived")
		}
		arrived <- arrival{at: time.Now().Add(-max(0, a.Ago)), err: err}
	}()
	return s.follow(l, a, key, arrived)
}

// arrival is what the target says of it.
type arrival struct {
	at  time.Time // by this node's clock, but for the time that the message took
	err error
}

// follow sends what is tracked for the machine until it has arrived, or does not migrate there any more. Until the source has
// heard of the migration itself it says at least that it is there: the target would lose half a second by asking again, and
// some migrations take no longer.
func (s *Source) follow(l *line, asked ask, key string, said <-chan arrival) error {
	var sent flows.Ledger
	var arrived *arrival
	for told := false; ; {
		d, standing, changed := s.Departure(asked.Machine, asked.Pod)
		if !asked.Frames || d.Unread == nil {
			d.Unread = func() [][]byte { return nil }
		}
		var err error
		switch {
		case standing == Unheard && !told:
			err = l.tell(update{})
		case standing != Leaving || d.Key != key:
			return l.tell(update{Refused: "no such machine migrates from here to the node of this agent"})
		case arrived != nil && told:
			return s.finish(l, d, arrived.at, &sent)
		default:
			changed, told = nil, true
			err = s.tell(l, d, &sent)
		}
		if err != nil {
			return err
		}
		if told && arrived != nil {
			continue
		}
		select {
		case a := <-said:
			if a.err != nil {
				return a.err
			}
			arrived, said = &a, nil
		case <-changed:
		case <-time.After(Interval):
		}
	}
}

// tell sends what has changed since the last time.
func (s *Source) tell(l *line, d Departure, sent *flows.Ledger) error {
	entries, err := d.Flows()
	if err != nil {
		return errors.Join(err, l.tell(update{Refused: "the tracked connections cannot be read"}))
	}
	return l.sendUpdate(sent.Update(entries, time.Now()), update{})
}

// finish sends what the source knows last. Its connections are read beside, and not before the guest's first packets have had
// their time: that takes the kernel milliseconds of a processor.
func (s *Source) finish(l *line, d Departure, arrived time.Time, sent *flows.Ledger) error {
	d.Arrived()
	if err := l.sendFrames(d.Unread()); err != nil {
		return err
	}
	last := update{Last: true}
	if heard, known := d.Heard(); known {
		silence := max(0, arrived.Sub(heard))
		last.Heard, last.Silence = heard, &silence
	}
	read := make(chan tracked, 1)
	var reading sync.WaitGroup
	reading.Go(func() {
		<-time.After(time.Until(arrived.Add(StandBack))) // at most that long: arrived is not in the future
		entries, err := d.Flows()
		read <- tracked{entries, err}
	})
	defer reading.Wait()
	failed, err := s.sendLate(l, d, read, sent)
	if err != nil {
		return err
	}
	return errors.Join(failed, l.tell(last))
}

// tracked is what Departure.Flows returned.
type tracked struct {
	entries []flows.Entry
	err     error
}

// sendLate sends the connections once they are read, and meanwhile, and until nothing does any more, what still comes for the
// guest: a host that answers its first packet from there at once answers before it has heard of the new node. It returns why the
// connections could not be read, and an error of the line.
func (s *Source) sendLate(l *line, d Departure, read <-chan tracked, sent *flows.Ledger) (failed, err error) {
	most := time.After(lateMost)
	for cleared := d.Cleared == nil; err == nil && !(cleared && read == nil); {
		select {
		case t := <-read:
			if read, failed = nil, t.err; failed == nil {
				err = l.sendUpdate(sent.Update(t.entries, time.Now()), update{})
			}
		case <-d.Cleared:
			d.Cleared, cleared = nil, true
		case <-most:
			d.Cleared, cleared = nil, true
		case <-time.After(lateEvery):
		}
		if err == nil {
			err = l.sendFrames(d.Unread()) // what came before it was clear, too
		}
	}
	return failed, err
}
