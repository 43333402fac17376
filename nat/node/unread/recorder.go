package unread

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// MaxFrames and MaxBytes bound what is kept: a tap device holds 1000 packets (its txqueuelen, drivers/net/tun.c), and
	// drops the rest.
	MaxFrames = 1000
	MaxBytes  = 2 << 20

	// socketBuffer bounds what the kernel holds between two looks, in bytes.
	socketBuffer = 4 << 20

	// lookEvery is the pause between two looks at the socket: 200 a second, however many packets come.
	lookEvery = 5 * time.Millisecond

	// maxFrame is the longest one: 64 KiB of segments that are cut later, and headers.
	maxFrame = 64<<10 + 256
)

// outgoing accepts what is sent to the guest (PACKET_OUTGOING), and nothing that it sends.
var outgoing = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipFalse: 1},
	bpf.RetConstant{Val: 0x40000},
	bpf.RetConstant{},
}

// Recorder keeps what was sent to a guest lately. A nil one keeps nothing.
type Recorder struct {
	port *port
	buf  []byte

	mu     sync.Mutex // guards what follows
	closed bool
	log    log
}

// Record begins to keep what is sent to the guest whose device is the only port of bridge in ns, until ctx is done.
func Record(ctx context.Context, ns *os.File, bridge string) (*Recorder, error) {
	p, err := openPort(ns, bridge, outgoing)
	if err != nil {
		return nil, err
	}
	r := &Recorder{port: p, buf: make([]byte, maxFrame)}
	if err := r.look(); err != nil {
		p.close()
		return nil, err
	}
	go r.run(ctx)
	return r, nil
}

// look reads the count before the packets: those that were read are among them then.
func (r *Recorder) look() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.count()
	if err == nil {
		err = r.drain()
	}
	if err == nil {
		r.log.compare(c)
	}
	return err
}

func (r *Recorder) run(ctx context.Context) {
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.closed = true
		r.port.close()
	}()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for r.look() == nil {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// Unread returns what the guest has not read so far, and has not been returned before.
func (r *Recorder) Unread() ([]Frame, error) {
	if r == nil {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errors.New("the packets to the guest are not recorded any more")
	}
	count, err := r.count()
	if err == nil {
		err = r.drain()
	}
	if err != nil {
		return nil, err
	}
	return r.log.take(count), nil
}

// count asks for the counters of the guest's device.
func (r *Recorder) count() (count, error) {
	link, err := r.port.netlink.LinkByIndex(r.port.index)
	if err != nil {
		return count{}, fmt.Errorf("counters of the guest's device: %w", err)
	}
	s := link.Attrs().Statistics
	if s == nil {
		return count{}, errors.New("the guest's device has no counters")
	}
	return count{read: s.TxPackets, dropped: s.TxDropped}, nil
}

// drain reads what the socket holds.
func (r *Recorder) drain() error {
	raw, err := r.port.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for {
			n, err := unix.Read(int(fd), r.buf)
			switch {
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				if stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
					r.log.missed(uint64(stats.Drops))
				}
				return
			case errors.Is(err, unix.ENETDOWN): // the device was down for a moment
			case err != nil:
				failed = fmt.Errorf("read packets to the guest: %w", err)
				return
			default:
				r.log.add(r.buf[:n])
			}
		}
	})
	return errors.Join(err, failed)
}
