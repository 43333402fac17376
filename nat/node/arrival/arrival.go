// Package arrival hears a guest arrive by live migration: its first frame on the bridge of the pod that waits for it.
//
// When qemu resumes a machine on the target of a migration it announces it by RARP (migration/announce.c), and a guest
// that has something to say speaks on its own. Either is on the bridge a second before anybody has told the API server.
//
// The package decides nothing: what an arrival calls for is the business of package node.
package arrival

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	vishnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"floatip.io/floatip/nat/node/netns"
)

const (
	// lookEvery is the pause between two looks for a bridge that KubeVirt has not made yet. It makes it seconds before a
	// guest can come.
	lookEvery = 50 * time.Millisecond
	// renew is how long one socket is listened on before the bridge is looked up again: KubeVirt may have made it anew.
	renew = time.Second
	// sane is the age of a frame that is believed: agents that wait so long for the processor are ended as dead.
	sane = time.Minute
)

// Frame is the first one of a guest.
type Frame struct {
	// At is when the bridge got it, as the kernel says: who has to wait for the processor reads it later. The zero Time where the
	// guest was there before anybody listened.
	At time.Time
	// EtherType is what it carried, 0x8035 for RARP; 0 where At is not known.
	EtherType uint16
	// Source is the guest's Ethernet address.
	Source net.HardwareAddr
}

// Await returns the first frame of the guest that enters bridge in the network namespace ns. Macs are the guest's, in the
// form of net.HardwareAddr.String; when there are none, any frame counts that does not come from the bridge itself. A
// bridge that does not exist yet is waited for. It fails when ctx is done, or when the namespace cannot be used.
func Await(ctx context.Context, ns *os.File, bridge string, macs []string) (Frame, error) {
	h, err := netlink.NewHandleAt(vishnetns.NsHandle(int(ns.Fd())), unix.NETLINK_ROUTE)
	if err != nil {
		return Frame{}, fmt.Errorf("netlink socket of a pod: %w", err)
	}
	defer h.Close()
	for {
		link, err := h.LinkByName(bridge)
		if err == nil {
			frame, err := hear(ctx, h, ns, link.Attrs(), macs)
			if !errors.Is(err, errRenew) {
				return frame, err
			}
			continue
		}
		if !errors.As(err, &netlink.LinkNotFoundError{}) {
			return Frame{}, fmt.Errorf("look for link %s in a pod: %w", bridge, err)
		}
		select {
		case <-ctx.Done():
			return Frame{}, ctx.Err()
		case <-time.After(lookEvery):
		}
	}
}

// errRenew: nobody came, or the bridge went.
var errRenew = errors.New("look again")

// hear listens on one bridge until it has changed.
func hear(ctx context.Context, h *netlink.Handle, ns *os.File, bridge *netlink.LinkAttrs, macs []string) (Frame, error) {
	conn, err := listen(ns, bridge.Index)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENETDOWN) {
		return Frame{}, pause(ctx)
	}
	if err != nil {
		return Frame{}, fmt.Errorf("listen on %s in a pod: %w", bridge.Name, err)
	}
	// Closing waits until no processor can be looking at the socket (packet_release, net/packet/af_packet.c), ten milliseconds or
	// more in which the guest, which has arrived, would not be announced.
	defer func() { go conn.Close() }()
	if mac, err := present(h, bridge, macs); mac != nil || err != nil {
		return Frame{Source: mac}, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for buf := make([]byte, 64); ; {
		if err := conn.SetReadDeadline(time.Now().Add(renew)); err != nil {
			return Frame{}, errRenew
		}
		if err := ctx.Err(); err != nil { // after the deadline was set: it may have been the one that was to wake us
			return Frame{}, err
		}
		n, at, err := read(conn, buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if now, err := h.LinkByName(bridge.Name); err != nil || now.Attrs().Index != bridge.Index {
				return Frame{}, errRenew
			}
			continue
		}
		if err != nil {
			return Frame{}, pause(ctx) // the bridge went down, or away
		}
		if of(buf[:n], bridge.HardwareAddr, macs) {
			return Frame{At: at, EtherType: uint16(buf[12])<<8 | uint16(buf[13]), Source: buf[6:12]}, nil
		}
	}
}

// present returns the Ethernet address of a guest that the bridge has heard already, nil where it has not, or where macs are not
// known.
func present(h *netlink.Handle, bridge *netlink.LinkAttrs, macs []string) (net.HardwareAddr, error) {
	entries, err := h.NeighList(0, unix.AF_BRIDGE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // what has changed meanwhile was a frame that the socket has
		return nil, fmt.Errorf("list forwarding entries of %s in a pod: %w", bridge.Name, err)
	}
	for _, e := range entries {
		if e.MasterIndex == bridge.Index && slices.Contains(macs, e.HardwareAddr.String()) {
			return e.HardwareAddr, nil
		}
	}
	return nil, nil
}

// read returns a frame's length and when the kernel got it.
func read(conn *packet.Conn, buf []byte) (n int, at time.Time, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, at, err
	}
	var control [128]byte
	var length int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, length, _, _, failed = unix.Recvmsg(int(fd), buf, control[:], 0)
		return !errors.Is(failed, unix.EAGAIN) && !errors.Is(failed, unix.EINTR)
	})
	if err = errors.Join(err, failed); err != nil {
		return 0, at, err
	}
	return n, stamped(control[:length], time.Now()), nil
}

// stamped returns the time in control messages (SO_TIMESTAMPNS, socket(7)), now where there is none, or one that makes no sense
// since the clock was set.
func stamped(control []byte, now time.Time) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return now
	}
	for _, m := range messages {
		var ts unix.Timespec
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_TIMESTAMPNS {
			continue
		}
		if _, err := binary.Decode(m.Data, binary.NativeEndian, &ts); err != nil {
			return now
		}
		if ago := now.Sub(time.Unix(ts.Unix())); ago > 0 && ago < sane {
			return now.Add(-ago)
		}
	}
	return now
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(lookEvery):
		return errRenew
	}
}

func listen(ns *os.File, index int) (conn *packet.Conn, err error) {
	err = netns.Do(ns, func() error {
		conn, err = packet.Listen(&net.Interface{Index: index}, packet.Raw, unix.ETH_P_ALL, nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	// What the pod itself sends, ARP requests for the guest above all, is none of the guest's.
	raw, err := conn.SyscallConn()
	if err == nil {
		var set error
		err = errors.Join(raw.Control(func(fd uintptr) {
			set = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1))
		}), set)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("set options of a packet socket: %w", err)
	}
	return conn, nil
}

// of reports whether an Ethernet frame comes from one of macs, or, when there are none, from anybody but own.
func of(frame []byte, own net.HardwareAddr, macs []string) bool {
	if len(frame) < 14 {
		return false
	}
	source := net.HardwareAddr(frame[6:12]).String()
	if len(macs) == 0 {
		return source != own.String()
	}
	return slices.Contains(macs, source)
}
