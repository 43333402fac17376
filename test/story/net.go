package story

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"floatip.io/floatip/test/rig/guest"
	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/process"
)

// dialWithin bounds one attempt to connect. On the rig's wires an answer takes milliseconds, on a busy machine a few
// hundred.
const dialWithin = 3 * time.Second

// How long an answer to an echo request is waited for, where it must come and where it may not: an emulated guest on a
// busy machine may stand still for a while.
const (
	answersWithin = 30 * time.Second
	silentFor     = 2 * time.Second
)

// Ping sends echo requests from a namespace to somebody who must answer, and returns ping's line with the round-trip
// times. The error carries what ping said.
func Ping(ctx context.Context, namespace string, to netip.Addr, count int) (string, error) {
	return ping(ctx, namespace, to, count, answersWithin)
}

// Knock is Ping to somebody who may not answer, and gives up soon.
func Knock(ctx context.Context, namespace string, to netip.Addr, count int) (string, error) {
	return ping(ctx, namespace, to, count, silentFor)
}

func ping(ctx context.Context, namespace string, to netip.Addr, count int, wait time.Duration) (string, error) {
	out, err := lan.Exec(ctx, namespace, "ping", "-n", "-c", fmt.Sprint(count), "-i", "0.2", "-W", fmt.Sprint(wait.Seconds()), to.String())
	if err != nil {
		return "", err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1], nil
}

// Banner connects from a namespace and returns the first line that the server sends.
func Banner(ctx context.Context, namespace string, to netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	conn, err := process.Dialer(namespace)(ctx, "tcp", to.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimRight(line, "\r\n"), err
}

// WaitBanner asks for the banner until it comes and returns it with the time that this took.
func WaitBanner(ctx context.Context, namespace string, to netip.AddrPort) (banner string, took time.Duration, err error) {
	begun := time.Now()
	err = process.Wait(ctx, nil, "an answer of "+to.String(), func(ctx context.Context) error {
		banner, err = Banner(ctx, namespace, to)
		return err
	})
	return banner, time.Since(begun), err
}

// Witness is a TCP server in some namespace that remembers who connected to it last.
type Witness struct {
	listener net.Listener
	seen     chan netip.AddrPort
}

// NewWitness listens on an address of a namespace, on a port that is free.
func NewWitness(namespace string, address netip.Addr) (*Witness, error) {
	w := &Witness{seen: make(chan netip.AddrPort, 1)}
	err := process.InNetNS(namespace, func() (err error) {
		w.listener, err = net.Listen("tcp", netip.AddrPortFrom(address, 0).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	go w.serve()
	return w, nil
}

func (w *Witness) serve() {
	for {
		conn, err := w.listener.Accept()
		if err != nil {
			return // closed
		}
		peer, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
		select {
		case <-w.seen: // only the last one counts
		default:
		}
		w.seen <- peer
		fmt.Fprintf(conn, "%s\n", peer.Addr())
		conn.Close()
	}
}

// Address is where the witness listens.
func (w *Witness) Address() netip.AddrPort {
	address, _ := netip.ParseAddrPort(w.listener.Addr().String())
	return address
}

// Close stops listening.
func (w *Witness) Close() error { return w.listener.Close() }

// Sees lets a guest connect and returns the address that the connection came from, as the witness saw it.
func (w *Witness) Sees(ctx context.Context, g *guest.Channel) (netip.Addr, error) {
	to := w.Address()
	answer, err := g.Run(ctx, fmt.Sprintf("nc -w 30 %s %d </dev/null", to.Addr(), to.Port()))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("guest connects to %s: %w", to, err)
	}
	select {
	case peer := <-w.seen:
		if told := strings.TrimSpace(answer); told != peer.Addr().String() {
			return netip.Addr{}, fmt.Errorf("the witness saw %s, the guest was told %q", peer.Addr(), told)
		}
		return peer.Addr(), nil
	default:
		return netip.Addr{}, errors.New("the guest's connection did not reach the witness at " + to.String())
	}
}
